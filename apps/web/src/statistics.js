// Numbers about logits and about times.

/** Softmax of logits, in double precision. */
export function softmax(logits) {
  const top = Math.max(...logits);
  const exponentials = Array.from(logits, (value) => Math.exp(value - top));
  const sum = exponentials.reduce((total, value) => total + value, 0);
  return exponentials.map((value) => value / sum);
}

/** The `count` most probable classes, best first: [{label, probability}]. */
export function topK(logits, labels, count) {
  return softmax(logits)
    .map((probability, index) => ({ label: labels[index], probability }))
    .sort((a, b) => b.probability - a.probability)
    .slice(0, count);
}

/** Index of the largest value; of equal ones, the first. */
export function argmax(values) {
  let best = 0;
  for (let i = 1; i < values.length; i++) if (values[i] > values[best]) best = i;
  return best;
}

/** 10 log10(sum r^2 / sum (r - m)^2) in dB; infinite where both are equal. */
export function sqnrDb(reference, measured) {
  let [signal, noise] = [0, 0];
  for (let i = 0; i < reference.length; i++) {
    signal += reference[i] ** 2;
    noise += (reference[i] - measured[i]) ** 2;
  }
  if (noise === 0) return Infinity;
  return signal === 0 ? -Infinity : 10 * Math.log10(signal / noise);
}

/** Largest absolute difference; NaN if there is one, infinite if lengths differ. */
export function maxAbs(reference, measured) {
  if (reference.length !== measured.length) return Infinity;
  let worst = 0;
  for (let i = 0; i < reference.length; i++) {
    const apart = Math.abs(reference[i] - measured[i]);
    if (Number.isNaN(apart)) return NaN;
    worst = Math.max(worst, apart);
  }
  return worst;
}

/** Value at a fraction of sorted values, interpolated as NumPy does. */
export function quantile(sorted, fraction) {
  const at = (sorted.length - 1) * fraction;
  const low = Math.floor(at);
  const high = Math.min(low + 1, sorted.length - 1);
  return sorted[low] + (sorted[high] - sorted[low]) * (at - low);
}

const KEPT = 200;

/** Times of one step: the first apart, because it pays for what is made once. */
export class Times {
  #first = null;
  #later = [];

  /** Add a time in milliseconds. */
  add(milliseconds) {
    if (this.#first === null) this.#first = milliseconds;
    else this.#later = [...this.#later, milliseconds].slice(-KEPT);
  }

  /** {first, median, p90, count}, or null before the first; median and p90 are of the later ones. */
  summary() {
    if (this.#first === null) return null;
    const sorted = [...this.#later].sort((a, b) => a - b);
    const at = (fraction) => (sorted.length ? quantile(sorted, fraction) : null);
    return { first: this.#first, median: at(0.5), p90: at(0.9), count: sorted.length + 1 };
  }
}
