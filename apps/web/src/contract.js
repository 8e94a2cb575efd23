// The preprocessing contract: from an image file to the model's input tensor.
//
// tinyvit_edge/preprocessing.py spells out the steps, and Pillow is the reference: steps 4 and 5
// give its bytes, step 6 NumPy's to float32 rounding. An image here is {width, height, data}
// with data a Uint8Array of shape (height, width, 3), RGB.

import { orientationOf } from './exif.js';
import { storedPixelsOf } from './pixels.js';

const FRACTION_BITS = 22;
const FILTERS = {
  bicubic: { radius: 2, weight: bicubic },
  bilinear: { radius: 1, weight: (x) => Math.max(0, 1 - Math.abs(x)) },
};
// A JPEG of 2 x 1 pixels that is to be turned by a quarter: tells whether a browser can be kept
// from doing that itself.
const TURNED = 'data:image/jpeg;base64,/9j/4AAQSkZJRgABAQAAAQABAAD/4QAiRXhpZgAATU0AKgAAAAgAAQESAAMA'
  + 'AAABAAYAAAAAAAD/2wBDAP////////////////////////////////////////////////////////////////////////'
  + '//////////////wAALCAABAAIBAREA/8QAFAABAAAAAAAAAAAAAAAAAAAAAP/EABQQAQAAAAAAAAAAAAAAAAAAAAD/2gAI'
  + 'AQEAAD8AP//Z';
const AS_STORED = { colorSpaceConversion: 'none', premultiplyAlpha: 'none', imageOrientation: 'none' };

/** Steps 1 to 3: an image file to an upright RGB image. Throws where it cannot be decoded. */
export async function decode(blob) {
  const header = new Uint8Array(await blob.arrayBuffer());
  let bitmap;
  try {
    bitmap = await createImageBitmap(blob, AS_STORED);
  } catch {
    throw new Error(`${blob.name ?? 'The image'} cannot be decoded: choose a JPEG, PNG or WebP`);
  }
  const image = storedPixelsOf(bitmap);
  bitmap.close();
  return (await storedOrderIsKept()) ? orient(image, orientationOf(header)) : image;
}

let kept;

/** Whether `imageOrientation: 'none'` is honoured; if not, bitmaps are upright already. */
function storedOrderIsKept() {
  kept ??= (async () => {
    const bytes = Uint8Array.from(atob(TURNED.split(',')[1]), (c) => c.charCodeAt(0));
    const bitmap = await createImageBitmap(new Blob([bytes], { type: 'image/jpeg' }), AS_STORED);
    return bitmap.width === 2;
  })();
  return kept;
}

/** Step 2: an image as stored to an upright one, by the value 1..8 of the EXIF tag 0x0112. */
export function orient(image, orientation) {
  if (orientation === 1) return image;
  const { width: w, height: h, data } = image;
  const turned = orientation > 4;
  const [width, height] = turned ? [h, w] : [w, h];
  // where the upright pixel (x, y) is stored
  const stored = {
    2: (x, y) => [w - 1 - x, y],
    3: (x, y) => [w - 1 - x, h - 1 - y],
    4: (x, y) => [x, h - 1 - y],
    5: (x, y) => [y, x],
    6: (x, y) => [y, h - 1 - x],
    7: (x, y) => [w - 1 - y, h - 1 - x],
    8: (x, y) => [w - 1 - y, x],
  }[orientation];
  const upright = new Uint8Array(data.length);
  for (let y = 0, to = 0; y < height; y++) {
    for (let x = 0; x < width; x++, to += 3) {
      const [column, row] = stored(x, y);
      const from = (row * w + column) * 3;
      upright[to] = data[from];
      upright[to + 1] = data[from + 1];
      upright[to + 2] = data[from + 2];
    }
  }
  return { width, height, data: upright };
}

/** Steps 4 and 5: an RGB image to the bytes (S, S, 3), resized and cropped. */
export function resize(image, contract) {
  const { size } = contract;
  const [width, height] = resizedSize(image.width, image.height, contract);
  const columns = axisTaps(image.width, width, halfToEven((width - size) / 2), contract);
  const rows = axisTaps(image.height, height, halfToEven((height - size) / 2), contract);
  return alongRows(alongColumns(image, columns, size), rows, size);
}

/** Step 6: bytes (S, S, 3) to float32 (3, S, S). */
export function normalise(pixels, { size, mean, std }) {
  const plane = size * size;
  const tensor = new Float32Array(3 * plane);
  for (let channel = 0; channel < 3; channel++) {
    const [m, s] = [Math.fround(mean[channel]), Math.fround(std[channel])];
    // one rounding to float32 an operation; there are only 256 values
    const table = Float32Array.from({ length: 256 }, (_, v) =>
      Math.fround(Math.fround(Math.fround(v / 255) - m) / s));
    for (let i = 0; i < plane; i++) tensor[channel * plane + i] = table[pixels[3 * i + channel]];
  }
  return tensor;
}

/** Steps 4 to 6: an RGB image to float32 (3, S, S). */
export function preprocess(image, contract) {
  return normalise(resize(image, contract), contract);
}

function resizedSize(width, height, { size, mode, crop_pct: cropPct }) {
  if (mode === 'squash') return [size, size];
  const short = Math.trunc(size / cropPct);
  const long = Math.trunc((short * Math.max(width, height)) / Math.min(width, height));
  return width <= height ? [short, long] : [long, short];
}

function halfToEven(value) {
  const floor = Math.floor(value);
  const rest = value - floor;
  if (rest !== 0.5) return Math.round(value);
  return floor % 2 === 0 ? floor : floor + 1;
}

function bicubic(signed) {
  const a = -0.5;
  const x = Math.abs(signed);
  if (x < 1) return ((a + 2) * x - (a + 3)) * x * x + 1;
  if (x < 2) return (((x - 5) * x + 8) * x - 4) * a;
  return 0;
}

/** For each of `size` output pixels from `offset` on: its first tap, and integer weights. */
function axisTaps(length, resized, offset, { interpolation, size }) {
  const { radius, weight } = FILTERS[interpolation];
  const scale = length / resized;
  const stretch = Math.max(scale, 1);
  return Array.from({ length: size }, (_, i) => {
    const centre = (offset + i + 0.5) * scale;
    const first = Math.max(0, Math.trunc(centre - radius * stretch + 0.5));
    const end = Math.min(length, Math.trunc(centre + radius * stretch + 0.5));
    const exact = Array.from({ length: end - first }, (_, t) =>
      weight((first + t - centre + 0.5) * (1 / stretch)));
    const sum = exact.reduce((total, w) => total + w, 0);
    const weights = Int32Array.from(exact, (w) => {
      const fixed = (w / sum) * 2 ** FRACTION_BITS;
      return Math.trunc(fixed + (fixed < 0 ? -0.5 : 0.5));
    });
    return { first, weights };
  });
}

const HALF = 2 ** (FRACTION_BITS - 1);
const clip = (sum) => Math.min(255, Math.max(0, sum >> FRACTION_BITS));

function alongColumns({ width, height, data }, taps, size) {
  const out = new Uint8Array(height * size * 3);
  for (let y = 0, to = 0; y < height; y++) {
    const row = y * width * 3;
    for (let x = 0; x < size; x++, to += 3) {
      const { first, weights } = taps[x];
      let [r, g, b] = [HALF, HALF, HALF];
      for (let t = 0, from = row + first * 3; t < weights.length; t++, from += 3) {
        r += data[from] * weights[t];
        g += data[from + 1] * weights[t];
        b += data[from + 2] * weights[t];
      }
      out[to] = clip(r);
      out[to + 1] = clip(g);
      out[to + 2] = clip(b);
    }
  }
  return out;
}

function alongRows(data, taps, size) {
  const stride = size * 3;
  const out = new Uint8Array(size * stride);
  for (let y = 0, to = 0; y < size; y++) {
    const { first, weights } = taps[y];
    for (let x = 0; x < stride; x++, to++) {
      let sum = HALF;
      for (let t = 0, from = first * stride + x; t < weights.length; t++, from += stride) {
        sum += data[from] * weights[t];
      }
      out[to] = clip(sum);
    }
  }
  return out;
}
