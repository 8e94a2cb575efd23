package dev.tinyvit.edge.core

/**
 * An 8-bit RGB image.
 *
 * @property pixels `height * width * 3` bytes, row by row; read them as unsigned.
 */
class RgbImage(val width: Int, val height: Int, val pixels: ByteArray) {
    init {
        require(width > 0 && height > 0) { "an image of $width x $height pixels" }
        require(pixels.size.toLong() == width.toLong() * height * CHANNELS) {
            "${pixels.size} bytes for $width x $height RGB pixels"
        }
    }

    companion object {
        const val CHANNELS = 3
    }
}

/**
 * Turns an image upright.
 *
 * @param orientation value of the EXIF tag 0x0112; what is not 2..8 changes nothing, as in Pillow.
 */
fun RgbImage.upright(orientation: Int): RgbImage {
    // Where the upright pixel (x, y) lies in the stored image, by the table of the EXIF
    // specification: the tag names the sides at which the stored row 0 and column 0 are seen.
    val right = width - 1
    val bottom = height - 1
    return when (orientation) {
        2 -> remap(swapSides = false) { x, y -> at(right - x, y) }
        3 -> remap(swapSides = false) { x, y -> at(right - x, bottom - y) }
        4 -> remap(swapSides = false) { x, y -> at(x, bottom - y) }
        5 -> remap(swapSides = true) { x, y -> at(y, x) }
        6 -> remap(swapSides = true) { x, y -> at(y, bottom - x) }
        7 -> remap(swapSides = true) { x, y -> at(right - y, bottom - x) }
        8 -> remap(swapSides = true) { x, y -> at(right - y, x) }
        else -> this
    }
}

private fun RgbImage.at(x: Int, y: Int): Int = (y * width + x) * RgbImage.CHANNELS

private inline fun RgbImage.remap(swapSides: Boolean, source: (x: Int, y: Int) -> Int): RgbImage {
    val newWidth = if (swapSides) height else width
    val newHeight = if (swapSides) width else height
    val turned = ByteArray(pixels.size)
    var to = 0
    for (y in 0 until newHeight) {
        for (x in 0 until newWidth) {
            val from = source(x, y)
            turned[to++] = pixels[from]
            turned[to++] = pixels[from + 1]
            turned[to++] = pixels[from + 2]
        }
    }
    return RgbImage(newWidth, newHeight, turned)
}
