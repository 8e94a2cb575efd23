package dev.tinyvit.edge.core

/**
 * Scales, shifts and moves channels first, with one float32 rounding per operation.
 *
 * @param image S x S pixels, resized and cropped.
 * @return float32 (3, S, S), the input of an artifact that takes a tensor.
 */
fun normalise(image: RgbImage, contract: Preprocessing): FloatArray {
    require(image.width == contract.size && image.height == contract.size) {
        "${image.width} x ${image.height} pixels for a model of ${contract.size}: resize first"
    }
    val plane = image.width * image.height
    val tensor = FloatArray(RgbImage.CHANNELS * plane)
    for (channel in 0 until RgbImage.CHANNELS) {
        // A byte has 256 values: divide 256 times, not once a pixel.
        val values = FloatArray(256) {
            (it / 255f - contract.mean[channel]) / contract.std[channel]
        }
        for (pixel in 0 until plane) {
            val byte = image.pixels[pixel * RgbImage.CHANNELS + channel].toInt() and 0xFF
            tensor[channel * plane + pixel] = values[byte]
        }
    }
    return tensor
}
