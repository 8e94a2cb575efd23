// Makes the page work offline: what was fetched once is kept, and used where the network is not.
// Adds the headers that let WebAssembly share memory between threads, on any static host.

const CACHE = 'tinyvit-edge-1';
const SHELL = [
  './', 'app.css', 'icon.svg', 'manifest.webmanifest',
  ...['app', 'bundles', 'camera', 'contract', 'exif', 'golden', 'pixels', 'report', 'runtimes', 'statistics', 'view']
    .map((name) => `src/${name}.js`),
];
const ISOLATED = {
  'Cross-Origin-Opener-Policy': 'same-origin',
  'Cross-Origin-Embedder-Policy': 'require-corp',
  'Cross-Origin-Resource-Policy': 'same-origin',
};

self.addEventListener('install', (event) => {
  self.skipWaiting();
  event.waitUntil(caches.open(CACHE).then((cache) => cache.addAll(SHELL)));
});

self.addEventListener('activate', (event) => {
  event.waitUntil((async () => {
    const old = (await caches.keys()).filter((name) => name !== CACHE);
    await Promise.all(old.map((name) => caches.delete(name)));
    await self.clients.claim();
  })());
});

self.addEventListener('fetch', (event) => {
  const { method, url } = event.request;
  if (method === 'GET' && new URL(url).origin === self.location.origin) {
    event.respondWith(answer(event.request).then(isolated));
  }
});

/** The network's answer (by its validators, so what did not change is not sent again), or ours. */
async function answer(request) {
  const cache = await caches.open(CACHE);
  try {
    const response = await fetch(request.url, { cache: 'no-cache', credentials: 'same-origin' });
    if (response.ok) await cache.put(request.url, response.clone());
    return response;
  } catch (error) {
    const kept = await cache.match(request.url, { ignoreVary: true });
    if (kept) return kept;
    throw error;
  }
}

function isolated(response) {
  const headers = new Headers(response.headers);
  for (const [name, value] of Object.entries(ISOLATED)) headers.set(name, value);
  const { status, statusText } = response;
  return new Response(response.body, { status, statusText, headers });
}
