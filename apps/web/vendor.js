// Copies what the page needs of the npm packages into vendor/: `npm ci --ignore-scripts && npm run vendor`.
// There is no bundler; the one import between packages is made relative.
import { cp, mkdir, readFile, rename, rm, writeFile } from 'node:fs/promises';

const modules = new URL('node_modules/', import.meta.url);
const vendor = new URL('vendor/', import.meta.url);
const temporary = new URL('vendor.tmp/', import.meta.url);

// [package, folder in it, files]
const COPIED = [
  ['onnxruntime-web', 'dist', [
    'ort.wasm.min.mjs', 'ort-wasm-simd-threaded.mjs', 'ort-wasm-simd-threaded.wasm',
    'ort.webgpu.min.mjs', 'ort-wasm-simd-threaded.asyncify.mjs', 'ort-wasm-simd-threaded.asyncify.wasm',
  ]],
  // plain, without relaxed SIMD, and with threads; what the browser can do decides
  ['@litertjs/core', 'wasm', ['internal', 'compat_internal', 'threaded_internal'].flatMap(
    (kind) => [`litert_wasm_${kind}.js`, `litert_wasm_${kind}.wasm`])],
];
const IMPORT = '"@litertjs/wasm-utils"';

await rm(temporary, { recursive: true, force: true });
for (const [name, folder, files] of COPIED) {
  const to = new URL(`${name}/`, temporary);
  await mkdir(to, { recursive: true });
  for (const file of files) {
    await cp(new URL(`${name}/${folder}/${file}`, modules), new URL(file, to));
  }
}
const litert = new URL('@litertjs/core/', temporary);
const code = await readFile(new URL('@litertjs/core/dist/index.js', modules), 'utf8');
if (code.split(IMPORT).length !== 2) {
  throw new Error(`@litertjs/core no longer imports ${IMPORT} once: look at this script again`);
}
await writeFile(new URL('index.js', litert), code.replace(IMPORT, '"./wasm-utils.js"'));
await cp(new URL('@litertjs/wasm-utils/dist/index.js', modules), new URL('wasm-utils.js', litert));
await rm(vendor, { recursive: true, force: true });
await rename(temporary, vendor);
