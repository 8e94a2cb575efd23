// The parity check: the bundle's golden vectors through this page's preprocessing and runtime.
//
// Bounds are those of docs/bundle.md; `tinyvit-edge parity BUNDLE` makes the same check.

import { normalise, resize } from './contract.js';
import { argmax, maxAbs, sqnrDb } from './statistics.js';

const TENSOR_BOUND = 1e-5;
const FLOAT_SQNR_DB = { fp32: 90, fp16: 35 };
const INT8_SQNR_DB = 15;

/** The bound on SQNR against recorded logits, by the manifest's recipe. */
export function sqnrBound({ name, weights, activations }) {
  const integers = !weights.startsWith('float');
  // weights alone are integers: the arithmetic is that of fp16
  const like = integers && activations === 'half' ? 'fp16' : name;
  return FLOAT_SQNR_DB[like] ?? INT8_SQNR_DB;
}

/**
 * Check a loaded bundle.
 *
 * @param bundle of `openBundle`.
 * @param artifact Uint8Array that was loaded.
 * @param run float32 (3, S, S) -> Promise of logits.
 * @returns {Promise<{passed: boolean, gates: object[], images: object[]}>} gates are {name,
 *   passed, text}, over all images; images are what each measured.
 */
export async function checkGoldens(bundle, artifact, run) {
  const images = [];
  const [recorded, measured] = [[], []];
  for (const golden of bundle.goldens) {
    if (!golden.has('artifact_logits')) {
      throw new Error(`${bundle.entry.name} has no artifact logits to compare with; export it again`);
    }
    const { image, expected, logits } = await checkImage(golden, bundle, run);
    images.push(image);
    recorded.push(...expected);
    measured.push(...logits);
  }
  const same = images.filter((image) => image.same_top1).length;
  const exact = bundle.manifest.recipe.name === 'fp32';
  const worst = (key) => images.reduce((most, image) =>
    (Number.isNaN(image[key]) || image[key] > most ? image[key] : most), 0);
  const bytes = worst('different_bytes');
  const apart = worst('tensor_error');
  const sqnr = sqnrDb(recorded, measured);
  const bound = sqnrBound(bundle.manifest.recipe);
  const intact = await unchanged(artifact, bundle.manifest);
  const gates = [
    gate('Resized pixels', bytes === 0, bytes === 0 ? 'identical' : `${bytes} bytes differ`),
    gate('Input tensor', apart <= TENSOR_BOUND, `${small(apart)} apart (≤ 1e-5)`),
    gate('Logits', sqnr >= bound, `${decibels(sqnr)} (≥ ${bound} dB)`),
    // at most precisions one photo of three may lie between two classes
    gate('First class', same >= images.length * (exact ? 1 : 2 / 3), `${same} of ${images.length} the same`),
    gate('Artifact', intact, intact ? 'as in the manifest' : 'not that of the manifest'),
  ];
  return { passed: gates.every((one) => one.passed), gates, images };
}

async function checkImage(golden, { contract }, run) {
  const resized = resize(await golden.decoded(), contract);
  const tensor = normalise(resized, contract);
  const recordedTensor = (await golden.read('tensor')).data;
  const expected = (await golden.read('artifact_logits')).data;
  // the recorded tensor: a wrong contract is its own gate, and would hide the artifact's
  const logits = await run(recordedTensor);
  const image = {
    name: golden.name,
    different_bytes: differences((await golden.read('resized')).data, resized),
    tensor_error: maxAbs(recordedTensor, tensor),
    logit_error: maxAbs(expected, logits),
    sqnr_db: sqnrDb(expected, logits),
    same_top1: argmax(expected) === argmax(logits),
  };
  return { image, expected, logits };
}

function differences(one, other) {
  if (one.length !== other.length) return Math.max(one.length, other.length);
  return one.reduce((count, value, i) => count + (value !== other[i] ? 1 : 0), 0);
}

async function unchanged(artifact, manifest) {
  const digest = new Uint8Array(await crypto.subtle.digest('SHA-256', artifact));
  const hex = Array.from(digest, (byte) => byte.toString(16).padStart(2, '0')).join('');
  return hex === manifest.artifact.sha256;
}

function gate(name, passed, text) {
  return { name, passed, text };
}

const small = (value) => (value === 0 ? '0' : value.toExponential(1));

function decibels(value) {
  return value === Infinity ? 'exact' : Number.isFinite(value) ? `${value.toFixed(1)} dB` : 'not a number';
}
