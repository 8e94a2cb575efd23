// Drives the page in headless Chromium for the tests: `node drive.js SCENARIO OPTIONS_JSON`.
// Prints one JSON object: what the scenario returns, with what the page logged and requested.
import { chromium } from 'playwright-core';

import * as scenarios from './scenarios.js';

const [, , name, json] = process.argv;
const options = JSON.parse(json);
const WEBGPU = ['--enable-unsafe-webgpu', '--use-webgpu-adapter=swiftshader', '--enable-features=Vulkan'];

const browser = await chromium.launch({
  executablePath: options.chromium,
  headless: true,
  args: [
    '--no-sandbox', '--disable-quic', '--no-first-run', '--disable-background-networking',
    '--disable-component-update', '--disable-sync',
    '--use-fake-ui-for-media-stream', '--use-fake-device-for-media-stream',
    ...(options.webgpu ? WEBGPU : ['--disable-gpu']),
  ],
});
try {
  const context = await browser.newContext({
    viewport: { width: 360, height: 740 },
    deviceScaleFactor: 2,
    isMobile: true,
    hasTouch: true,
    acceptDownloads: true,
    colorScheme: options.scheme ?? 'light',
  });
  const page = await context.newPage();
  const [logs, errors, requests] = [[], [], []];
  page.on('console', (message) => logs.push(message.text()));
  page.on('pageerror', (error) => errors.push(error.message));
  page.on('request', (request) => requests.push(request.url()));
  page.setDefaultTimeout(60_000);
  const result = await scenarios[name]({ page, context, requests, options });
  console.log(JSON.stringify({ result, logs, errors }));
} finally {
  await browser.close();
}
