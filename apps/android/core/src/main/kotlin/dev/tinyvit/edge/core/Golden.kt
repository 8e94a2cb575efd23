package dev.tinyvit.edge.core

import java.nio.ByteBuffer
import java.nio.ByteOrder
import org.json.JSONArray
import org.json.JSONObject

/**
 * One photo on its way through the model, as it was where the bundle was made.
 *
 * @property decoded upright RGB.
 * @property resized S x S pixels.
 * @property tensor float32 (3, S, S).
 * @property referenceLogits of the float32 PyTorch model.
 * @property artifactLogits of the artifact; null where its runtime did not exist on that machine.
 */
class Golden(
    val name: String,
    val decoded: RgbImage,
    val resized: RgbImage,
    val tensor: FloatArray,
    val referenceLogits: FloatArray,
    val artifactLogits: FloatArray?,
)

/**
 * The golden vectors of a bundle, one after another: a photo is read when it is its turn.
 *
 * @throws BundleException the index or an array is missing or damaged.
 */
fun Bundle.goldens(): Sequence<Golden> {
    val entries = explain(name) {
        JSONObject(files.text("golden/golden.json")).getJSONArray("images")
            .also { require(it.length() > 0) { "golden.json lists no image" } }
    }
    return (0 until entries.length()).asSequence().map { index ->
        explain(name) { golden(entries.getJSONObject(index)) }
    }
}

private fun Bundle.golden(entry: JSONObject): Golden {
    val side = preprocessing.size
    val resized = image(entry.getJSONObject("resized"))
    require(resized.width == side && resized.height == side) {
        "golden pixels of ${resized.width} x ${resized.height} for a model of $side"
    }
    return Golden(
        name = entry.getString("name"),
        decoded = image(entry.getJSONObject("decoded")),
        resized = resized,
        tensor = floats(entry.getJSONObject("tensor"), RgbImage.CHANNELS * side * side),
        referenceLogits = floats(entry.getJSONObject("reference_logits"), labels.size),
        artifactLogits =
            entry.optJSONObject("artifact_logits")?.let { floats(it, labels.size) },
    )
}

private fun Bundle.image(about: JSONObject): RgbImage {
    require(about.getString("dtype") == "uint8") { "golden pixels that are not uint8" }
    val shape = about.getJSONArray("shape").ints()
    require(shape.size == 3 && shape[2] == RgbImage.CHANNELS) { "golden pixels of shape $shape" }
    return RgbImage(shape[1], shape[0], files.read("golden/${about.getString("file")}"))
}

private fun Bundle.floats(about: JSONObject, count: Int): FloatArray {
    require(about.getString("dtype") == "float32") { "golden numbers that are not float32" }
    val file = about.getString("file")
    val buffer =
        ByteBuffer.wrap(files.read("golden/$file")).order(ByteOrder.LITTLE_ENDIAN).asFloatBuffer()
    require(buffer.remaining() == count) { "$file has ${buffer.remaining()} of $count numbers" }
    return FloatArray(count).also(buffer::get)
}

private fun JSONArray.ints(): List<Int> = List(length()) { getInt(it) }
