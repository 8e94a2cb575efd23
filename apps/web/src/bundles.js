// Bundles: what `tinyvit-edge bundle --app web` put into bundles/.

const FOLDER = new URL('../bundles/', import.meta.url);
const ARRAYS = { uint8: Uint8Array, float32: Float32Array };
const REMEDY = "run 'tinyvit-edge bundle --app web BUNDLE' again";

/** The index's entries: [{name, target, precision, file, bytes}]. */
export async function listBundles() {
  const { bundles } = await fetchJson('index.json');
  if (!bundles?.length) throw new Error(`There is no model in bundles/: ${REMEDY}`);
  return bundles;
}

/** One bundle, less its artifact: {entry, manifest, contract, labels, goldens}. */
export async function openBundle(entry) {
  const [manifest, contract, labels, golden] = await Promise.all([
    fetchJson(`${entry.name}/manifest.json`),
    fetchJson(`${entry.name}/preprocess.json`),
    fetchFile(`${entry.name}/labels.txt`).then((response) => response.text()),
    fetchJson(`${entry.name}/golden/golden.json`),
  ]);
  return {
    entry,
    manifest,
    contract,
    labels: labels.split('\n').slice(0, -1),
    goldens: golden.images.map((image) => reader(entry.name, image)),
  };
}

/** The artifact's bytes. */
export async function readArtifact(entry) {
  const response = await fetchFile(`${entry.name}/${entry.file}`);
  return new Uint8Array(await response.arrayBuffer());
}

/** A golden photo whose stages are read when they are asked for. */
function reader(bundle, image) {
  return {
    name: image.name,
    has: (stage) => stage in image,
    /** {shape, data} of a stage. */
    async read(stage) {
      const { file, shape, dtype } = image[stage];
      const buffer = await (await fetchFile(`${bundle}/golden/${file}`)).arrayBuffer();
      const bytes = shape.reduce((product, side) => product * side, ARRAYS[dtype].BYTES_PER_ELEMENT);
      if (buffer.byteLength !== bytes) {
        throw new Error(`${bundle}/golden/${file}: ${buffer.byteLength} of ${bytes} bytes; ${REMEDY}`);
      }
      return { shape, data: new ARRAYS[dtype](buffer) };
    },
    /** The upright RGB image. */
    async decoded() {
      const { shape: [height, width], data } = await this.read('decoded');
      return { width, height, data };
    },
  };
}

async function fetchJson(path) {
  const response = await fetchFile(path);
  try {
    return await response.json();
  } catch {
    throw new Error(`bundles/${path} is not JSON: ${REMEDY}`);
  }
}

async function fetchFile(path) {
  let response;
  try {
    response = await fetch(new URL(path, FOLDER));
  } catch {
    throw new Error(`bundles/${path} cannot be reached: go online once, with this model chosen`);
  }
  if (!response.ok) throw new Error(`bundles/${path} is missing (${response.status}): ${REMEDY}`);
  return response;
}
