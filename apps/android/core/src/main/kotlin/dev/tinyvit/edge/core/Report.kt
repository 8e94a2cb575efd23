package dev.tinyvit.edge.core

import org.json.JSONArray
import org.json.JSONObject

/**
 * The device that figures are of.
 *
 * @property kind `physical` or `emulated`: the time of an emulator says nothing about a phone.
 */
data class Device(val kind: String, val manufacturer: String, val model: String, val os: String)

/**
 * The app that measured.
 *
 * @property build `debug` or `release`: a debug build's preprocessing is several times slower.
 */
data class AppInfo(val version: String, val build: String)

/**
 * The latency report: JSON that says what was measured, on what, and whether it was right.
 *
 * Keys are described in `tinyvit_edge/assets/device_report.schema.json`, this app's own in
 * `apps/android/README.md`.
 */
fun latencyReport(bundle: Bundle, state: ScreenState, device: Device, app: AppInfo): String {
    val manifest = bundle.manifest
    val backend = checkNotNull(state.selection) { "nothing was selected" }.backend
    return JSONObject()
        .put("schema_version", 1)
        .put(
            "app",
            JSONObject()
                .put("name", "tinyvit-edge-android")
                .put("version", app.version)
                .put("build", app.build),
        )
        .put(
            "device",
            JSONObject()
                .put("kind", device.kind)
                .put("manufacturer", device.manufacturer)
                .put("model", device.model)
                .put("os", device.os),
        )
        .put(
            "bundle",
            JSONObject()
                .put("name", bundle.name)
                .put("target", manifest.target)
                .put("precision", manifest.precision)
                .put("artifact_sha256", manifest.sha256)
                .put("artifact_bytes", manifest.sizeBytes)
                .put("tool_version", manifest.toolVersion)
                .put("image_size", bundle.preprocessing.size),
        )
        .put("backend", backend.id)
        .put("latency_ms", latencies(state.timings))
        .put("parity", parity(state.parity))
        .toString(2)
}

private fun latencies(timings: Timings): JSONObject =
    JSONObject()
        .put("load", timings.loadMs ?: JSONObject.NULL)
        .put("preprocess", latency(timings.preprocess.summary()))
        .put("inference", latency(timings.inference.summary()))

private fun latency(latency: Latency?): Any =
    if (latency == null) JSONObject.NULL
    else
        JSONObject()
            .put("first", latency.firstMs)
            .put("median", latency.medianMs ?: JSONObject.NULL)
            .put("p90", latency.p90Ms ?: JSONObject.NULL)
            .put("count", latency.count)

private fun parity(parity: Parity): Any {
    val result =
        when (parity) {
            is Parity.Passed -> parity.result
            is Parity.Failed -> parity.result
            Parity.NotRun, Parity.Running -> return JSONObject.NULL
        }
    val images = result.verdicts.map { verdict ->
        JSONObject()
            .put("name", verdict.name)
            .put("different_bytes", verdict.differentBytes)
            .put("tensor_error", finite(verdict.tensorError.toDouble()))
            .put("sqnr_db", finite(verdict.sqnrDb))
            .put("same_top1", verdict.sameTop1)
            .put("problems", JSONArray(verdict.problems))
    }
    return JSONObject().put("passed", result.passed).put("images", JSONArray(images))
}

/** JSON has no infinity: logits that are the same to the bit have none either. */
private fun finite(value: Double): Any = if (value.isFinite()) value else JSONObject.NULL
