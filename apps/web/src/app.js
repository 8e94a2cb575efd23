// The page: choices and buttons on one side, the contract and the runtimes on the other.

import { listBundles, openBundle, readArtifact } from './bundles.js';
import { startCamera } from './camera.js';
import { decode, preprocess } from './contract.js';
import { checkGoldens } from './golden.js';
import { pixelsOf } from './pixels.js';
import { download, latencyReport } from './report.js';
import { BACKENDS, load } from './runtimes.js';
import { Times, topK } from './statistics.js';
import * as view from './view.js';

const CLASSES_SHOWN = 5;
const TIMED_RUNS = 20;

const element = (id) => document.getElementById(id);

const state = {
  entries: [],
  bundle: null,
  artifact: null,
  backend: null,
  model: null,
  times: null,
  parity: null,
  image: null,
  sample: 0,
  frame: null,
  stopCamera: null,
};

/** Run one action at a time; what it throws is shown as one line. */
let busy = false;
async function act(action) {
  if (busy) return;
  busy = true;
  view.showError(null);
  view.showBusy(true, state.model);
  await state.frame?.catch(() => {}); // it has the model; the camera's loop says what went wrong
  try {
    await action();
  } catch (error) {
    view.showError(error);
  } finally {
    busy = false;
    view.showBusy(false, state.model);
  }
}

/** [result, milliseconds] of a step, which is counted. */
async function timed(times, step) {
  const start = performance.now();
  const result = await step();
  const took = performance.now() - start;
  times.add(took);
  return [result, took];
}

async function classify(image) {
  const { bundle, model, times } = state;
  const [tensor, before] = await timed(times.preprocess, () => preprocess(image, bundle.contract));
  const [logits, inference] = await timed(times.inference, () => model.run(tensor));
  state.image = image;
  view.showPredictions(topK(logits, bundle.labels, CLASSES_SHOWN));
  view.showLast(before, inference);
  showTimes();
}

function showTimes() {
  const { load: loaded, preprocess: before, inference } = state.times;
  view.showTimes({ load: loaded, preprocess: before.summary(), inference: inference.summary() });
}

async function loadModel() {
  stopCamera();
  await state.model?.close();
  Object.assign(state, { model: null, parity: null });
  view.showParity(null);
  const entry = state.entries.find(({ name }) => name === element('bundle').value);
  state.backend = BACKENDS.find(({ id }) => id === element('backend').value);
  view.showStatus(`Loading ${entry.name} …`);
  try {
    state.bundle = await openBundle(entry);
    state.artifact = await readArtifact(entry);
    const start = performance.now();
    // a copy: a runtime may keep or change what it is given
    state.model = await load(state.backend, state.artifact.slice(), state.bundle.manifest);
    const loaded = performance.now() - start;
    state.times = { load: loaded, preprocess: new Times(), inference: new Times() };
    if (state.image) await classify(state.image);
    else await showSample();
    showTimes();
  } catch (error) {
    await state.model?.close();
    state.model = null;
    view.showStatus('No model is loaded');
    throw error;
  }
  const { contract, labels } = state.bundle;
  view.showStatus(`${labels.length} classes · ${contract.size} px · ${size(entry.bytes)} · ${threads()}`);
}

const size = (bytes) => `${(bytes / 1e6).toFixed(1)} MB`;

function threads() {
  const { backend, model } = state;
  if (backend.gpu) return 'GPU';
  return model.threads === 1 ? '1 thread' : `${model.threads} threads`;
}

async function showSample() {
  stopCamera();
  const { goldens } = state.bundle;
  const golden = goldens[state.sample++ % goldens.length];
  const image = await golden.decoded();
  view.showImage(image);
  await classify(image);
}

async function showFile(file) {
  stopCamera();
  const image = await decode(file);
  view.showImage(image);
  await classify(image);
}

async function toggleCamera() {
  if (state.stopCamera) {
    stopCamera();
    return;
  }
  view.showCamera(true);
  try {
    state.stopCamera = await startCamera(element('video'), classifyFrame, (error) => {
      stopCamera();
      view.showError(error);
    });
  } catch (error) {
    view.showCamera(false);
    throw error;
  }
}

async function classifyFrame(video) {
  if (busy) return; // a button has the model
  const image = pixelsOf(video, video.videoWidth, video.videoHeight);
  view.showImage(image);
  state.frame = classify(image);
  await state.frame;
}

function stopCamera() {
  state.stopCamera?.();
  state.stopCamera = null;
  view.showCamera(false);
}

async function timeRuns() {
  stopCamera();
  for (let run = 0; run < TIMED_RUNS; run++) {
    await classify(state.image);
    await new Promise(requestAnimationFrame); // so that the page stays alive
  }
}

async function checkParity() {
  stopCamera();
  const { bundle, artifact, model } = state;
  state.parity = await checkGoldens(bundle, artifact, (tensor) => model.run(tensor));
  view.showParity(state.parity);
}

async function chooseBundle() {
  const entry = state.entries.find(({ name }) => name === element('bundle').value);
  const able = BACKENDS.filter(({ target }) => target === entry.target);
  const kept = able.find(({ id }) => id === element('backend').value) ?? able[0];
  view.showChoices(element('backend'), able.map(({ id, title }) => [id, title]), kept.id);
  await loadModel();
}

async function start() {
  state.entries = await listBundles();
  const choices = state.entries.map(({ name, bytes }) => [name, `${name} (${size(bytes)})`]);
  view.showChoices(element('bundle'), choices, state.entries[0].name);
  await chooseBundle();
}

function connect() {
  const click = (id, action) => element(id).addEventListener('click', () => act(action));
  element('bundle').addEventListener('change', () => act(chooseBundle));
  element('backend').addEventListener('change', () => act(loadModel));
  click('sample', showSample);
  click('camera', toggleCamera);
  click('check', checkParity);
  click('time', timeRuns);
  click('export', () => download(latencyReport({ ...state, threads: state.model.threads })));
  element('photo').addEventListener('click', () => element('file').click());
  element('file').addEventListener('change', ({ target }) => {
    const [file] = target.files;
    target.value = ''; // the same file can be chosen again
    if (file) act(() => showFile(file));
  });
}

/**
 * The service worker makes the page work offline, and lets WebAssembly have threads.
 *
 * @returns {Promise<boolean>} whether this page came through it.
 */
async function goOffline() {
  if (!navigator.serviceWorker) return false;
  try {
    await navigator.serviceWorker.register('sw.js');
    await navigator.serviceWorker.ready;
  } catch {
    return false; // the page works without it, online and on one thread
  }
  // Only a page that came through the worker has its headers, and its files in the cache.
  if (!self.crossOriginIsolated && !sessionStorage.getItem('reloaded')) {
    sessionStorage.setItem('reloaded', 'yes');
    location.reload();
    await new Promise(() => {});
  }
  return navigator.serviceWorker.controller !== null;
}

connect();
view.showBusy(false, null);
const kept = await goOffline();
await act(start);
element('offline').hidden = !(kept && state.model);
