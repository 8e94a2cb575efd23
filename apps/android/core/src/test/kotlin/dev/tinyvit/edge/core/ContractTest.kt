package dev.tinyvit.edge.core

import java.nio.ByteBuffer
import java.nio.ByteOrder
import org.json.JSONArray
import org.json.JSONObject
import org.junit.Assert.assertArrayEquals
import org.junit.Assert.assertEquals
import org.junit.Assert.assertThrows
import org.junit.Assert.assertTrue
import org.junit.Test

/** Oracle: Pillow and NumPy, through the arrays that `apps/goldens.py` wrote. */
class ContractTest {
    private val folder = goldens.resolve("cases")
    private val cases = JSONObject(folder.resolve("cases.json").readText())

    private fun entries(key: String): List<JSONObject> {
        val array: JSONArray = cases.getJSONArray(key)
        return List(array.length()) { array.getJSONObject(it) }
    }

    private fun image(about: JSONObject): RgbImage {
        val shape = about.getJSONArray("shape")
        return RgbImage(
            width = shape.getInt(1),
            height = shape.getInt(0),
            pixels = folder.resolve(about.getString("file")).readBytes(),
        )
    }

    private fun floats(about: JSONObject): FloatArray {
        val bytes = ByteBuffer.wrap(folder.resolve(about.getString("file")).readBytes())
        val buffer = bytes.order(ByteOrder.LITTLE_ENDIAN).asFloatBuffer()
        return FloatArray(buffer.remaining()).also(buffer::get)
    }

    @Test
    fun `resized bytes are Pillow's and the tensor is NumPy's`() {
        val resize = entries("resize")
        assertTrue("all contracts and shapes", resize.size >= 30)
        for (case in resize) {
            val contract = Preprocessing.fromJson(case.getJSONObject("preprocess").toString())
            val decoded = image(case.getJSONObject("decoded"))
            val name = "${decoded.width} x ${decoded.height} by $contract"
            val resized = resizeAndCrop(decoded, contract)
            assertArrayEquals(name, image(case.getJSONObject("resized")).pixels, resized.pixels)
            val tensor = normalise(resized, contract)
            assertArrayEquals(name, floats(case.getJSONObject("tensor")), tensor, 1e-6f)
        }
    }

    @Test
    fun `all eight orientations are Pillow's`() {
        val orient = entries("orient")
        assertEquals((1..8).toList(), orient.map { it.getInt("orientation") })
        for (case in orient) {
            val expected = image(case.getJSONObject("upright"))
            val upright = image(case.getJSONObject("stored")).upright(case.getInt("orientation"))
            val name = "orientation ${case.getInt("orientation")}"
            assertEquals(name, expected.width, upright.width)
            assertArrayEquals(name, expected.pixels, upright.pixels)
        }
    }

    @Test
    fun `an orientation that EXIF does not have changes nothing`() {
        val stored = image(entries("orient").first().getJSONObject("stored"))
        for (value in listOf(-1, 0, 9)) assertEquals(stored, stored.upright(value))
    }

    @Test
    fun `a contract that would make other pixels is refused`() {
        val good = entries("resize").first().getJSONObject("preprocess")
        val damages =
            listOf<Pair<String, Any>>(
                "gamma" to 2.2,
                "crop_pct" to 0.0,
                "mode" to "pad",
                "interpolation" to "lanczos",
                "std" to JSONArray(listOf(1.0, 0.0, 1.0)),
                "mean" to JSONArray(listOf(0.5)),
                "channel_order" to "bgr",
                "size" to 0,
            )
        for ((key, value) in damages) {
            val text = JSONObject(good.toString()).put(key, value).toString()
            val error = assertThrows(key, BundleException::class.java) {
                Preprocessing.fromJson(text)
            }
            assertTrue(error.message, error.message!!.startsWith("preprocess.json: "))
        }
    }
}
