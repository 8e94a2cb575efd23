// The EXIF orientation of an image file, read from its bytes.

const TAG = 0x0112;
const text = (bytes, start, length) => String.fromCharCode(...bytes.subarray(start, start + length));

/** The value 1..8 of the tag 0x0112 of a JPEG, PNG or WebP file; 1 where it has none. */
export function orientationOf(bytes) {
  const view = new DataView(bytes.buffer, bytes.byteOffset, bytes.byteLength);
  try {
    const start = tiffStart(bytes, view);
    const value = start === null ? 1 : orientationAt(view, start);
    return value >= 1 && value <= 8 ? value : 1;
  } catch (error) {
    if (error instanceof RangeError) return 1; // a block that ends too early
    throw error;
  }
}

function tiffStart(bytes, view) {
  if (view.getUint16(0) === 0xffd8) return inJpeg(bytes, view);
  if (text(bytes, 1, 3) === 'PNG') return inChunks(bytes, view, 8, 'eXIf', 4, false);
  if (text(bytes, 0, 4) === 'RIFF') return inChunks(bytes, view, 12, 'EXIF', 0, true);
  return null;
}

function inJpeg(bytes, view) {
  for (let at = 2; view.getUint8(at) === 0xff; at += 2 + view.getUint16(at + 2)) {
    const marker = view.getUint8(at + 1);
    if (marker === 0xe1 && text(bytes, at + 4, 6) === 'Exif\0\0') return at + 10;
    if (marker === 0xda) return null; // the pixels begin
  }
  return null;
}

/** PNG: length, name, content, 4 bytes of checksum; RIFF: name, length, content, to an even end. */
function inChunks(bytes, view, first, name, checksum, riff) {
  for (let at = first; at + 8 <= bytes.length;) {
    const length = riff ? view.getUint32(at + 4, true) : view.getUint32(at);
    if (text(bytes, riff ? at : at + 4, 4) === name) {
      return text(bytes, at + 8, 6) === 'Exif\0\0' ? at + 14 : at + 8;
    }
    at += 8 + length + (riff ? length % 2 : checksum);
  }
  return null;
}

function orientationAt(view, start) {
  const little = view.getUint16(start) === 0x4949;
  const directory = start + view.getUint32(start + 4, little);
  const count = view.getUint16(directory, little);
  for (let entry = 0; entry < count; entry++) {
    const at = directory + 2 + entry * 12;
    if (view.getUint16(at, little) === TAG) return view.getUint16(at + 8, little);
  }
  return 1;
}
