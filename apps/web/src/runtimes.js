// The runtimes behind one interface: `load` gives {run(tensor) -> logits, threads, close()}.

const VENDOR = new URL('../vendor/', import.meta.url);
const ORT = new URL('onnxruntime-web/', VENDOR).href;
const LITERT = new URL('@litertjs/core/', VENDOR).href;
// More threads than fast cores slow a phone down.
const MOST_THREADS = 4;

/** What can run a bundle: by its target, on the CPU (WebAssembly) or the GPU. */
export const BACKENDS = [
  { id: 'ort-wasm', target: 'onnx', title: 'ONNX Runtime, CPU', gpu: false, load: loadOrt },
  { id: 'ort-webgpu', target: 'onnx', title: 'ONNX Runtime, WebGPU', gpu: true, load: loadOrt },
  { id: 'litert-wasm', target: 'tflite', title: 'LiteRT, CPU', gpu: false, load: loadLiteRt },
  { id: 'litert-webgpu', target: 'tflite', title: 'LiteRT, WebGPU', gpu: true, load: loadLiteRt },
];

/** Threads that the CPU backends use here: more than one only where memory can be shared. */
export function threadsHere() {
  return self.crossOriginIsolated ? Math.min(navigator.hardwareConcurrency || 1, MOST_THREADS) : 1;
}

/**
 * Load an artifact.
 *
 * @param backend a row of `BACKENDS`.
 * @param artifact Uint8Array of the file.
 * @param manifest of its bundle.
 * @returns {Promise<{run: (tensor: Float32Array) => Promise<Float32Array>, threads: number,
 *   close: () => Promise<void>}>}
 * @throws Error: one line with the runtime's reason.
 */
export async function load(backend, artifact, manifest) {
  try {
    if (backend.gpu && !(await navigator.gpu?.requestAdapter())) {
      throw new Error('this browser has no WebGPU here; choose the CPU');
    }
    return await backend.load(backend, artifact, manifest);
  } catch (error) {
    const reason = String(error?.message ?? error).split('\n')[0];
    throw new Error(`${backend.title} cannot load ${manifest.artifact.file}: ${reason}`);
  }
}

async function loadOrt({ gpu }, artifact, { input, output }) {
  const ort = await import(`${ORT}ort.${gpu ? 'webgpu' : 'wasm'}.min.mjs`);
  const threads = threadsHere();
  ort.env.wasm.wasmPaths = ORT;
  ort.env.wasm.numThreads = threads;
  const session = await ort.InferenceSession.create(artifact, {
    executionProviders: [gpu ? 'webgpu' : 'wasm'],
    logSeverityLevel: 3, // that small operators stay on the CPU is no news
  });
  return {
    threads,
    async run(tensor) {
      const feeds = { [input.name]: new ort.Tensor('float32', tensor, input.shape) };
      const results = await session.run(feeds);
      const logits = Float32Array.from(await results[output.name].getData());
      results[output.name].dispose();
      return logits;
    },
    close: () => session.release(),
  };
}

let liteRt;

/** LiteRT.js, loaded once: a page can hold one. */
function openLiteRt() {
  liteRt ??= (async () => {
    const api = await import(`${LITERT}index.js`);
    const threaded = threadsHere() > 1 && (await api.supportsFeature('relaxedSimd'));
    await api.loadLiteRt(LITERT, { threads: threaded });
    return { api, threaded };
  })();
  liteRt.catch(() => (liteRt = undefined)); // so that the next try is a new one
  return liteRt;
}

async function loadLiteRt({ gpu }, artifact, { input, recipe }) {
  const { api, threaded } = await openLiteRt();
  const accelerator = gpu ? 'webgpu' : 'wasm';
  const threads = threaded ? threadsHere() : 1;
  const model = await api.loadAndCompile(artifact, {
    accelerator,
    cpuOptions: { numThreads: threads },
    // an artifact that promises float32 is to compute in it
    gpuOptions: { precision: recipe.name === 'fp32' ? 'fp32' : 'fp16' },
  });
  // the whole model fell back; single operators that did are in LiteRT's log alone
  if (model.options.accelerator !== accelerator) {
    model.delete();
    throw new Error('it does not run on the GPU here; choose the CPU');
  }
  return {
    threads,
    run: (tensor) => runLiteRt(api, model, tensor, input.shape),
    close: async () => model.delete(),
  };
}

async function runLiteRt(api, model, tensor, shape) {
  const given = new api.Tensor(tensor, shape);
  try {
    const [result] = await model.run([given]);
    const there = await result.moveTo('wasm');
    const logits = Float32Array.from(there.toTypedArray());
    there.delete();
    return logits;
  } finally {
    if (!given.deleted) given.delete();
  }
}
