// The latency report: what was measured, on what, and whether it was right. `tinyvit-edge report`
// reads it; its keys are described in tinyvit_edge/assets/device_report.schema.json.

export const VERSION = '0.1.0';

/**
 * The report as an object for JSON.
 *
 * @param bundle of `openBundle`.
 * @param backend row of `BACKENDS`.
 * @param times {load: number, preprocess: Times, inference: Times}.
 * @param threads that the runtime was given.
 * @param parity result of `checkGoldens`, or null before the check.
 */
export function latencyReport({ bundle, backend, times, threads, parity }) {
  const { manifest, contract, entry } = bundle;
  return {
    schema_version: 1,
    created: new Date().toISOString(),
    app: { name: 'tinyvit-edge-web', version: VERSION },
    device: browser(),
    bundle: {
      name: entry.name,
      target: manifest.target,
      precision: manifest.recipe.name,
      artifact_sha256: manifest.artifact.sha256,
      artifact_bytes: manifest.artifact.size_bytes,
      tool_version: manifest.tool.version,
      image_size: contract.size,
    },
    backend: backend.id,
    threads,
    latency_ms: {
      load: times.load,
      preprocess: times.preprocess.summary(),
      inference: times.inference.summary(),
    },
    parity: parity && { passed: parity.passed, images: parity.images.map(judged) },
  };
}

/** What a browser says of the device; it cannot tell a phone from an emulator. */
function browser() {
  const hints = navigator.userAgentData;
  const brand = hints?.brands.find(({ brand: name }) => !/not.?a.?brand/i.test(name));
  return {
    kind: 'browser',
    manufacturer: null,
    model: null,
    os: hints?.platform || navigator.platform || 'unknown',
    browser: brand ? `${brand.brand} ${brand.version}` : navigator.userAgent,
    logical_cores: navigator.hardwareConcurrency || 1,
  };
}

/** JSON has no infinity: logits that are the same to the bit have no noise either. */
function judged({ name, different_bytes, tensor_error, sqnr_db, same_top1 }) {
  const finite = (value) => (Number.isFinite(value) ? value : null);
  return {
    name,
    different_bytes,
    tensor_error: finite(tensor_error),
    sqnr_db: finite(sqnr_db),
    same_top1,
  };
}

/** Hand a report to the user as a file. */
export function download(report) {
  const text = `${JSON.stringify(report, null, 2)}\n`;
  const link = document.createElement('a');
  link.href = URL.createObjectURL(new Blob([text], { type: 'application/json' }));
  link.download = `${report.bundle.name}-${report.backend}.json`;
  link.click();
  URL.revokeObjectURL(link.href);
}
