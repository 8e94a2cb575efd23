package dev.tinyvit.edge.core

import kotlin.math.max
import kotlin.math.min
import org.json.JSONArray
import org.json.JSONException
import org.json.JSONObject

/** How the photo's aspect ratio is treated. */
enum class ResizeMode { CROP, SQUASH }

/** Pillow's antialiased filters; `radius` in output pixels. */
enum class Interpolation(val radius: Double) { BICUBIC(2.0), BILINEAR(1.0) }

/**
 * The preprocessing contract of a bundle: `preprocess.json`.
 *
 * @property size side S of the square model input, in pixels.
 * @property cropPct in (0, 1]; in mode CROP the shorter side becomes `int(S / cropPct)`.
 * @property mean per channel, of values in 0..1.
 * @property std per channel, of values in 0..1; positive.
 */
data class Preprocessing(
    val size: Int,
    val cropPct: Double,
    val mode: ResizeMode,
    val interpolation: Interpolation,
    val mean: List<Float>,
    val std: List<Float>,
) {
    init {
        require(size > 0) { "size is $size; it must be positive" }
        require(cropPct > 0 && cropPct <= 1) { "crop_pct is $cropPct; it must be in (0, 1]" }
        require(mean.size == RgbImage.CHANNELS && mean.all { it.isFinite() }) {
            "mean is $mean; it must be three finite numbers"
        }
        require(std.size == RgbImage.CHANNELS && std.all { it.isFinite() && it > 0 }) {
            "std is $std; it must be three numbers above 0"
        }
    }

    /** Width and height that a photo is resized to before the crop. */
    fun resizedSize(width: Int, height: Int): Pair<Int, Int> {
        if (mode == ResizeMode.SQUASH) return size to size
        val short = (size / cropPct).toInt()
        val long = (short.toLong() * max(width, height) / min(width, height).toDouble()).toInt()
        return if (width <= height) short to long else long to short
    }

    companion object {
        private val KEYS =
            setOf("size", "crop_pct", "mode", "interpolation", "mean", "std", "channel_order")

        /**
         * Reads the contract. All keys are required and no other is accepted: a key that this
         * version does not know may change the pixels.
         *
         * @throws BundleException a key is missing or unknown, or a value is out of range.
         */
        fun fromJson(text: String): Preprocessing =
            try {
                val json = JSONObject(text)
                val unknown = json.keys().asSequence().firstOrNull { it !in KEYS }
                require(unknown == null) { "unknown key '$unknown'" }
                require(json.getString("channel_order") == "rgb") { "channel_order is not rgb" }
                Preprocessing(
                    size = json.getInt("size"),
                    cropPct = json.getDouble("crop_pct"),
                    mode = enumValueOf<ResizeMode>(json.getString("mode").uppercase()),
                    interpolation =
                        enumValueOf<Interpolation>(json.getString("interpolation").uppercase()),
                    mean = json.getJSONArray("mean").floats(),
                    std = json.getJSONArray("std").floats(),
                )
            } catch (error: JSONException) {
                throw BundleException("preprocess.json: ${error.message}; export again", error)
            } catch (error: IllegalArgumentException) {
                throw BundleException("preprocess.json: ${error.message}; export again", error)
            }
    }
}

private fun JSONArray.floats(): List<Float> = List(length()) { getDouble(it).toFloat() }
