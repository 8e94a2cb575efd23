package dev.tinyvit.edge.app

import android.content.ContentResolver
import android.graphics.Bitmap
import android.graphics.BitmapFactory
import android.net.Uri
import androidx.camera.core.ImageProxy
import androidx.exifinterface.media.ExifInterface
import dev.tinyvit.edge.core.BundleException
import dev.tinyvit.edge.core.RgbImage
import dev.tinyvit.edge.core.upright
import java.io.IOException
import java.io.InputStream
import java.nio.ByteBuffer

private const val RGBA = 4
private const val MAX_PIXELS = 64_000_000L
private const val MAX_SIDE = 65_535 // JPEG's; a PNG may be a line of millions of pixels

/**
 * Decodes a photo at full size and turns it upright.
 *
 * Colour profiles are ignored and alpha is dropped, as the contract says: `copyPixelsToBuffer`
 * gives the stored values, where `getPixels` would convert them to sRGB.
 *
 * @throws BundleException it cannot be read, is no image, or is too large for a phone's memory.
 */
fun ContentResolver.decodePhoto(photo: Uri): RgbImage =
    try {
        val options = BitmapFactory.Options().apply { inJustDecodeBounds = true }
        stream(photo).use { BitmapFactory.decodeStream(it, null, options) }
        val pixels = options.outWidth.toLong() * options.outHeight
        if (pixels > MAX_PIXELS || maxOf(options.outWidth, options.outHeight) > MAX_SIDE) {
            throw IOException("${options.outWidth} x ${options.outHeight} pixels are too many")
        }
        options.inJustDecodeBounds = false
        options.inPreferredConfig = Bitmap.Config.ARGB_8888
        options.inPremultiplied = false
        options.inScaled = false
        val bitmap = stream(photo).use { BitmapFactory.decodeStream(it, null, options) }
            ?: throw IOException("not an image that Android can decode")
        val orientation = stream(photo).use { ExifInterface(it) }
            .getAttributeInt(ExifInterface.TAG_ORIENTATION, ExifInterface.ORIENTATION_NORMAL)
        bitmap.toRgb().upright(orientation)
    } catch (error: IOException) {
        throw BundleException("photo: ${error.message}; choose another", error)
    } catch (error: SecurityException) {
        throw BundleException("photo: no longer shared with this app; choose it again", error)
    } catch (error: OutOfMemoryError) { // of one large array, all of which is free again by now
        throw BundleException("photo: too large for this phone's memory; choose another", error)
    }

/** A camera frame in `OUTPUT_IMAGE_FORMAT_RGBA_8888`, upright. */
fun ImageProxy.toRgb(): RgbImage {
    val plane = planes.single()
    check(plane.pixelStride == RGBA) { "a frame of ${plane.pixelStride} bytes a pixel" }
    val image = packed(plane.buffer, width, height, plane.rowStride)
    val orientation =
        when (imageInfo.rotationDegrees) {
            90 -> ExifInterface.ORIENTATION_ROTATE_90
            180 -> ExifInterface.ORIENTATION_ROTATE_180
            270 -> ExifInterface.ORIENTATION_ROTATE_270
            else -> ExifInterface.ORIENTATION_NORMAL
        }
    return image.upright(orientation)
}

private fun ContentResolver.stream(photo: Uri): InputStream =
    openInputStream(photo) ?: throw IOException("its provider gives nothing")

private fun Bitmap.toRgb(): RgbImage {
    try {
        if (config != Bitmap.Config.ARGB_8888) throw IOException("pixels of format $config")
        val buffer = ByteBuffer.allocate(byteCount)
        copyPixelsToBuffer(buffer)
        buffer.rewind()
        return packed(buffer, width, height, rowBytes)
    } finally {
        recycle() // tens of megabytes, which the collector does not see
    }
}

/** Drops every fourth byte, and what stands behind the pixels of a row. */
private fun packed(rgba: ByteBuffer, width: Int, height: Int, rowStride: Int): RgbImage {
    val row = ByteArray(width * RGBA)
    val rgb = ByteArray(width * height * RgbImage.CHANNELS)
    var to = 0
    for (y in 0 until height) {
        rgba.position(y * rowStride)
        rgba.get(row)
        for (from in row.indices step RGBA) {
            rgb[to++] = row[from]
            rgb[to++] = row[from + 1]
            rgb[to++] = row[from + 2]
        }
    }
    return RgbImage(width, height, rgb)
}
