package dev.tinyvit.edge.core

import kotlin.math.abs
import kotlin.math.max
import kotlin.math.min

private const val FRACTION_BITS = 22
private const val HALF = 1 shl (FRACTION_BITS - 1)
private const val BICUBIC_A = -0.5

/**
 * Resizes as Pillow does, to the byte, and crops the centre.
 *
 * Only what the crop shows is computed, which changes no byte of it: each output pixel depends on
 * its own taps alone.
 *
 * @return S x S pixels.
 */
fun resizeAndCrop(image: RgbImage, contract: Preprocessing): RgbImage {
    val size = contract.size
    val (width, height) = contract.resizedSize(image.width, image.height)
    val columns = taps(image.width, width, cropOffset(width, size), size, contract.interpolation)
    val rows = taps(image.height, height, cropOffset(height, size), size, contract.interpolation)
    val firstRow = rows.minOf { it.first }
    val endRow = rows.maxOf { it.first + it.weights.size }

    // 8 bits between the passes, as in Pillow: (endRow - firstRow, S, 3)
    val narrow = ByteArray((endRow - firstRow) * size * RgbImage.CHANNELS)
    for (y in firstRow until endRow) {
        val source = y * image.width * RgbImage.CHANNELS
        val target = (y - firstRow) * size * RgbImage.CHANNELS
        columns.forEachIndexed { x, tap ->
            for (channel in 0 until RgbImage.CHANNELS) {
                val from = source + tap.first * RgbImage.CHANNELS + channel
                narrow[target + x * RgbImage.CHANNELS + channel] =
                    tap.sum(image.pixels, from, RgbImage.CHANNELS)
            }
        }
    }
    val stride = size * RgbImage.CHANNELS
    val resized = ByteArray(size * stride)
    rows.forEachIndexed { y, tap ->
        val from = (tap.first - firstRow) * stride
        for (x in 0 until stride) resized[y * stride + x] = tap.sum(narrow, from + x, stride)
    }
    return RgbImage(size, size, resized)
}

/** Python's `round((side - size) / 2)`: a half goes to the even integer. */
private fun cropOffset(side: Int, size: Int): Int = Math.rint((side - size) / 2.0).toInt()

/** The inputs of one output pixel along one axis: the first, and a fixed-point weight of each. */
private class Tap(val first: Int, val weights: IntArray) {
    fun sum(samples: ByteArray, from: Int, step: Int): Byte {
        var sum = HALF
        var at = from
        for (weight in weights) {
            sum += (samples[at].toInt() and 0xFF) * weight
            at += step
        }
        return (sum shr FRACTION_BITS).coerceIn(0, 255).toByte()
    }
}

/** Taps of the output pixels `from until from + count` of an axis resized to `outputs` pixels. */
private fun taps(
    inputs: Int,
    outputs: Int,
    from: Int,
    count: Int,
    interpolation: Interpolation,
): List<Tap> {
    val scale = inputs.toDouble() / outputs
    val stretch = max(scale, 1.0)
    val support = interpolation.radius * stretch
    return List(count) { index ->
        val center = (from + index + 0.5) * scale
        val first = max((center - support + 0.5).toInt(), 0)
        val end = min((center + support + 0.5).toInt(), inputs)
        val weights =
            DoubleArray(end - first) {
                interpolation.weight((it + first - center + 0.5) * (1 / stretch))
            }
        val total = weights.sum()
        Tap(first, IntArray(weights.size) { fixedPoint(weights[it] / total) })
    }
}

/** Half away from zero: the conversion truncates. */
private fun fixedPoint(weight: Double): Int {
    val scaled = weight * (1 shl FRACTION_BITS)
    return (if (scaled < 0) scaled - 0.5 else scaled + 0.5).toInt()
}

private fun Interpolation.weight(distance: Double): Double {
    val x = abs(distance)
    return when (this) {
        Interpolation.BILINEAR -> if (x < 1) 1 - x else 0.0
        Interpolation.BICUBIC ->
            when {
                x < 1 -> ((BICUBIC_A + 2) * x - (BICUBIC_A + 3)) * x * x + 1
                x < 2 -> (((x - 5) * x + 8) * x - 4) * BICUBIC_A
                else -> 0.0
            }
    }
}
