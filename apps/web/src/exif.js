// The EXIF orientation of an image file, read from its bytes and taken out of them.

const TAG = 0x0112;
const text = (bytes, start, length) => String.fromCharCode(...bytes.subarray(start, start + length));

/**
 * Take the tag 0x0112 out of a JPEG, PNG or WebP file, so that no browser turns the image itself:
 * Chromium turns JPEG and PNG whatever it is asked for, and does not turn WebP.
 *
 * @param bytes Uint8Array of the file; it may be changed.
 * @returns {{orientation: number, parts: Uint8Array[]}} the value 1..8, 1 where there is none; and
 *   the file without it, in pieces for a Blob.
 */
export function takeOrientation(bytes) {
  const view = new DataView(bytes.buffer, bytes.byteOffset, bytes.byteLength);
  try {
    const block = blockOf(bytes, view);
    const at = block && tagAt(view, block.start);
    if (!at) return { orientation: 1, parts: [bytes] };
    const value = view.getUint16(at.offset, at.little);
    const orientation = value >= 1 && value <= 8 ? value : 1;
    if (block.cut) {
      const [from, to] = block.cut;
      return { orientation, parts: [bytes.subarray(0, from), bytes.subarray(to)] };
    }
    view.setUint16(at.offset, 1, at.little);
    return { orientation, parts: [bytes] };
  } catch (error) {
    if (error instanceof RangeError) return { orientation: 1, parts: [bytes] }; // ends too early
    throw error;
  }
}

/** Where the EXIF block starts; `cut` is what has to go with it, since a checksum covers it. */
function blockOf(bytes, view) {
  if (view.getUint16(0) === 0xffd8) return inJpeg(bytes, view);
  if (text(bytes, 1, 3) === 'PNG') return inPng(bytes, view);
  if (text(bytes, 0, 4) === 'RIFF') return inWebp(bytes, view);
  return null;
}

function inJpeg(bytes, view) {
  for (let at = 2; view.getUint8(at) === 0xff; at += 2 + view.getUint16(at + 2)) {
    const marker = view.getUint8(at + 1);
    if (marker === 0xe1 && text(bytes, at + 4, 6) === 'Exif\0\0') return { start: at + 10 };
    if (marker === 0xda) return null; // the pixels begin
  }
  return null;
}

function inPng(bytes, view) {
  for (let at = 8; at + 8 <= bytes.length;) {
    const end = at + 12 + view.getUint32(at); // length, name, content, checksum
    if (text(bytes, at + 4, 4) === 'eXIf') return { start: at + 8, cut: [at, end] };
    at = end;
  }
  return null;
}

function inWebp(bytes, view) {
  for (let at = 12; at + 8 <= bytes.length;) {
    const length = view.getUint32(at + 4, true);
    if (text(bytes, at, 4) === 'EXIF') {
      return { start: text(bytes, at + 8, 6) === 'Exif\0\0' ? at + 14 : at + 8 };
    }
    at += 8 + length + (length % 2);
  }
  return null;
}

/** Where a TIFF block has the tag's value. */
function tagAt(view, start) {
  const little = view.getUint16(start) === 0x4949;
  const directory = start + view.getUint32(start + 4, little);
  const count = view.getUint16(directory, little);
  for (let entry = 0; entry < count; entry++) {
    const at = directory + 2 + entry * 12;
    if (view.getUint16(at, little) === TAG) return { offset: at + 8, little };
  }
  return null;
}
