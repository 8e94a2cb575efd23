// What the tests do on the page; tests/test_app_web.py judges what comes back.

const settled = (page) => page.waitForFunction(
  () => !document.querySelector('#check').disabled || !document.querySelector('#error').hidden);

const text = (page, selector) => page.locator(selector).innerText();

async function open(page, options) {
  await page.goto(options.url);
  await page.waitForFunction(() => document.querySelector('#predictions .bar')
    || !document.querySelector('#error').hidden);
  await settled(page);
}

async function choose(page, bundle, backend) {
  if (await page.locator('#bundle').inputValue() !== bundle) {
    await page.selectOption('#bundle', bundle);
    await settled(page);
  }
  if (backend && await page.locator('#backend').inputValue() !== backend) {
    await page.selectOption('#backend', backend);
    await settled(page);
  }
}

async function check(page) {
  await page.click('#check');
  await page.waitForSelector('#gates li');
  await settled(page);
  return {
    verdict: await text(page, '#verdict'),
    failed: await page.locator('#parity').evaluate((node) => node.classList.contains('failed')),
    colour: await page.locator('#verdict').evaluate((node) => getComputedStyle(node).color),
    gates: await page.locator('#gates li').evaluateAll((items) => Object.fromEntries(
      items.map((item) => [item.querySelector('.name').textContent, item.className]))),
    error: await text(page, '#error').catch(() => ''),
  };
}

/** The page's own modules: golden logits of each bundle on each backend, and of every EXIF value. */
export async function numbers({ page, options }) {
  await open(page, options);
  return page.evaluate(async ({ backends, photos }) => {
    const { listBundles, openBundle, readArtifact } = await import('./src/bundles.js');
    const { decode, preprocess, resize } = await import('./src/contract.js');
    const { BACKENDS, load, threadsHere } = await import('./src/runtimes.js');
    // one string: the driver's protocol takes a minute for as many numbers
    const base64 = (bytes) => btoa(Array.from(bytes, (byte) => String.fromCharCode(byte)).join(''));
    const out = { isolated: self.crossOriginIsolated, threads: threadsHere(), logits: {}, decoded: {}, resized: {} };
    for (const entry of await listBundles()) {
      const bundle = await openBundle(entry);
      const artifact = await readArtifact(entry);
      for (const backend of BACKENDS.filter((b) => backends.includes(b.id) && b.target === entry.target)) {
        const model = await load(backend, artifact.slice(), bundle.manifest);
        const rows = [];
        for (const golden of bundle.goldens) {
          const tensor = preprocess(await golden.decoded(), bundle.contract);
          rows.push(Array.from(await model.run(tensor)));
        }
        await model.close();
        out.logits[`${entry.name} ${backend.id}`] = rows;
      }
    }
    for (const { name, contracts } of photos) {
      const image = await decode(await (await fetch(`photos/${name}`)).blob());
      out.decoded[name] = { shape: [image.height, image.width, 3], data: base64(image.data) };
      for (const [key, contract] of Object.entries(contracts)) {
        out.resized[`${name} ${key}`] = base64(resize(image, contract));
      }
    }
    return out;
  }, { backends: options.backends, photos: options.photos });
}

/** A visit as a user makes it: every bundle, camera, photo, timing, parity, report; then offline. */
export async function visit({ page, context, requests, options }) {
  await open(page, options);
  const out = { parity: {}, offline: {} };
  for (const bundle of options.bundles) {
    await choose(page, bundle);
    out.parity[bundle] = await check(page);
  }
  requests.length = 0; // the page and its model have been loaded: from here on nothing is fetched
  await page.setInputFiles('#file', options.photo);
  await settled(page);
  out.photo = await text(page, '#predictions li:first-child .label');
  await page.click('#time');
  await settled(page);
  out.runs = await text(page, '#count');
  await page.click('#camera');
  await page.waitForFunction(() => document.querySelector('#preview').width === 640);
  out.camera = await page.locator('#preview').evaluate((canvas) => {
    const { data } = canvas.getContext('2d').getImageData(0, 0, canvas.width, canvas.height);
    return new Set(data).size; // distinct values: the fake camera's picture is colourful
  });
  await page.click('#camera');
  const [download] = await Promise.all([page.waitForEvent('download'), page.click('#export')]);
  await download.saveAs(options.report);
  out.requests = requests.filter((url) => !url.startsWith('blob:'));
  out.offlineChip = await page.locator('#offline').isVisible();
  out.overflow = await page.evaluate(() => document.documentElement.scrollWidth - innerWidth);
  await page.screenshot({ path: options.screenshot, fullPage: true });

  await context.setOffline(true);
  await page.reload();
  await page.waitForSelector('#predictions .bar');
  await settled(page);
  await choose(page, options.bundles.at(-1));
  out.offline = await check(page);
  out.isolatedOffline = await page.evaluate(() => self.crossOriginIsolated);
  return out;
}

/** Opens the page with bundles that are damaged: {error, parity}. */
export async function damaged({ page, options }) {
  await open(page, options);
  const out = {};
  for (const bundle of options.bundles) {
    await choose(page, bundle);
    const error = await page.locator('#error').isVisible() ? await text(page, '#error') : '';
    out[bundle] = { error, parity: error ? null : await check(page) };
    await page.screenshot({ path: `${options.screenshots}/${bundle}.png`, fullPage: true });
  }
  return out;
}

/** Goes through the page with the keyboard alone, and lists what has no name. */
export async function accessibility({ page, options }) {
  await open(page, options);
  const focused = [];
  await page.locator('body').focus();
  for (let press = 0; press < 9; press++) {
    await page.keyboard.press('Tab');
    focused.push(await page.evaluate(() => document.activeElement.id));
  }
  await page.locator('#sample').focus();
  const before = await text(page, '#predictions li:first-child .label');
  await page.keyboard.press('Enter');
  await page.waitForFunction(
    (label) => document.querySelector('#predictions li:first-child .label').innerText !== label, before);
  await settled(page);
  await check(page);
  return { focused, contrast: await page.evaluate(lowContrast) };
}

/** Texts whose contrast with what is behind them is below 4.5 (WCAG 2.2, AA). */
function lowContrast() {
  const context = document.createElement('canvas').getContext('2d', { willReadFrequently: true });
  const rgb = (colour) => {
    context.fillStyle = colour;
    context.fillRect(0, 0, 1, 1);
    return [...context.getImageData(0, 0, 1, 1).data].slice(0, 3);
  };
  const luminance = (colour) => {
    const [r, g, b] = rgb(colour).map((v) => v / 255)
      .map((v) => (v <= 0.04045 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4));
    return 0.2126 * r + 0.7152 * g + 0.0722 * b;
  };
  const behind = (node) => {
    for (let at = node; at; at = at.parentElement) {
      const colour = getComputedStyle(at).backgroundColor;
      if (colour !== 'rgba(0, 0, 0, 0)') return colour;
    }
    return 'white';
  };
  const found = [];
  for (const node of document.querySelectorAll('body *')) {
    const own = [...node.childNodes].some((child) => child.nodeType === 3 && child.data.trim());
    if (!own || !node.checkVisibility()) continue;
    const [light, dark] = [getComputedStyle(node).color, behind(node)].map(luminance)
      .sort((a, b) => b - a);
    const ratio = (light + 0.05) / (dark + 0.05);
    if (ratio < 4.5) found.push(`${node.id || node.className || node.tagName}: ${ratio.toFixed(2)}`);
  }
  return found;
}

/** Compiles and runs a bundle on WebGPU; the log says which operators were left out. */
export async function gpu({ page, options }) {
  await open(page, options);
  await choose(page, options.bundle, options.backend);
  return {
    error: await page.locator('#error').isVisible() ? await text(page, '#error') : '',
    status: await text(page, '#status'),
    label: await text(page, '#predictions li:first-child .label'),
  };
}
