// What is shown: elements filled from values. Nothing here computes or remembers.

const element = (id) => document.getElementById(id);

function make(tag, properties, ...children) {
  const node = Object.assign(document.createElement(tag), properties);
  node.append(...children);
  return node;
}

/** Fill a <select> with [value, title] pairs. */
export function showChoices(select, choices, chosen) {
  select.replaceChildren(...choices.map(([value, title]) => new Option(title, value)));
  select.value = chosen;
}

/** One line on what the page is doing. */
export function showStatus(text) {
  element('status').textContent = text;
}

/** One line on what went wrong, or nothing. */
export function showError(error) {
  element('error').hidden = !error;
  element('error').textContent = error ? error.message : '';
}

/** The image that is classified. */
export function showImage({ width, height, data }) {
  const canvas = element('preview');
  canvas.width = width;
  canvas.height = height;
  canvas.classList.toggle('pixelated', Math.max(width, height) < 100);
  const pixels = new ImageData(width, height);
  for (let from = 0, to = 0; from < data.length; from += 3, to += 4) {
    pixels.data.set([data[from], data[from + 1], data[from + 2], 255], to);
  }
  canvas.getContext('2d').putImageData(pixels, 0, 0);
  element('placeholder').hidden = true;
}

/** The best classes, as bars. */
export function showPredictions(predictions) {
  element('predictions').replaceChildren(
    ...predictions.map(({ label, probability }) => {
      const percent = `${(100 * probability).toFixed(1)} %`;
      const bar = make('span', { className: 'bar', ariaHidden: 'true' });
      bar.style.setProperty('--share', probability);
      return make('li', {},
        make('span', { className: 'label', textContent: label, title: label }),
        make('span', { className: 'percent', textContent: percent }),
        bar);
    }),
  );
}

function milliseconds(value) {
  if (value === null || value === undefined) return '–';
  return value < 10 ? value.toFixed(2) : value < 100 ? value.toFixed(1) : value.toFixed(0);
}

/** What the last image took, beside its prediction. */
export function showLast(preprocess, inference) {
  element('last').textContent = `${milliseconds(preprocess)} + ${milliseconds(inference)} ms`;
  element('last').title = 'preprocessing + inference';
}

/** Times of loading (a number), preprocessing and inference (summaries), each null at first. */
export function showTimes({ load, preprocess, inference }) {
  const cells = {
    'load-first': load,
    'preprocess-first': preprocess?.first,
    'preprocess-median': preprocess?.median,
    'inference-first': inference?.first,
    'inference-median': inference?.median,
  };
  for (const [id, value] of Object.entries(cells)) element(id).textContent = milliseconds(value);
  const count = inference?.count ?? 0;
  element('count').textContent = count === 1 ? 'of 1 run' : `of ${count} runs`;
}

/** The result of the parity check; null before it. */
export function showParity(parity) {
  const card = element('parity');
  card.classList.toggle('passed', parity?.passed === true);
  card.classList.toggle('failed', parity?.passed === false);
  element('verdict').textContent = !parity ? 'Not checked yet'
    : parity.passed ? 'Same as where it was made' : 'Differs from where it was made';
  element('gates').replaceChildren(
    ...(parity?.gates ?? []).map((gate) => make('li', { className: gate.passed ? 'ok' : 'bad' },
      make('span', { className: 'mark', textContent: gate.passed ? '✓' : '✗' }),
      make('span', { className: 'name', textContent: gate.name }),
      make('span', { className: 'measure', textContent: gate.text }))),
  );
}

/** Enable or disable what needs a loaded model. */
export function showBusy(busy, loaded) {
  document.body.ariaBusy = String(busy);
  for (const id of ['sample', 'camera', 'check', 'time', 'export']) {
    element(id).disabled = busy || !loaded;
  }
  element('file').disabled = busy || !loaded;
}

/** Whether the camera is on. */
export function showCamera(on) {
  element('camera').setAttribute('aria-pressed', String(on));
  element('predictions').ariaLive = on ? 'off' : 'polite'; // not every frame is to be read out
  element('camera').querySelector('span').textContent = on ? 'Stop' : 'Camera';
}
