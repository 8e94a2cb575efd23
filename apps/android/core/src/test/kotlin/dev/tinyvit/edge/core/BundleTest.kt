package dev.tinyvit.edge.core

import java.io.FileNotFoundException
import org.json.JSONObject
import org.junit.Assert.assertEquals
import org.junit.Assert.assertThrows
import org.junit.Assert.assertTrue
import org.junit.Test

/** Oracle: the values that Python wrote, and one line for each thing that can be wrong. */
class BundleTest {
    private fun refused(path: String, change: (ByteArray) -> ByteArray): String {
        val error = assertThrows(BundleException::class.java) { bundle { it.with(path, change) } }
        assertTrue(error.message, '\n' !in error.message!! && "onnx-fp32" in error.message!!)
        return error.message!!
    }

    private fun ByteArray.edited(change: JSONObject.() -> Unit): ByteArray =
        JSONObject(decodeToString()).apply(change).toString().encodeToByteArray()

    @Test
    fun `a bundle is read as it was written`() {
        val bundle = bundle()
        assertEquals("onnx", bundle.manifest.target)
        assertEquals("fp32", bundle.manifest.precision)
        assertEquals(10, bundle.manifest.classes)
        assertEquals((0..9).map { "$it" }, bundle.labels)
        val artifact = bundle.files.read(bundle.manifest.artifact)
        assertEquals(bundle.manifest.sizeBytes, artifact.size.toLong())
    }

    @Test
    fun `labels for another number of classes are refused`() {
        val message = refused("labels.txt") { it + "ten\n".encodeToByteArray() }
        assertTrue(message, "11 labels for 10 classes" in message)
    }

    @Test
    fun `an artifact that takes an image is refused`() {
        val message = refused("manifest.json") {
            it.edited { getJSONObject("input").put("kind", "image") }
        }
        assertTrue(message, "takes an image" in message)
    }

    @Test
    fun `a later schema is refused`() {
        refused("manifest.json") { it.edited { put("schema_version", 2) } }
    }

    @Test
    fun `a contract of another size than the artifact's is refused`() {
        refused("preprocess.json") { it.edited { put("size", 32) } }
    }

    @Test
    fun `what is not JSON is refused`() {
        refused("manifest.json") { it.copyOf(it.size / 2) }
    }

    @Test
    fun `a missing file is named`() {
        val message = refused("preprocess.json") { throw FileNotFoundException("preprocess.json") }
        assertTrue(message, "preprocess.json" in message)
    }

    @Test
    fun `an app without bundles says so`() {
        val nothing = BundleFiles { "{\"bundles\": []}".encodeToByteArray() }
        val error = assertThrows(BundleException::class.java) { bundleNames(nothing) }
        assertTrue(error.message, "tinyvit-edge bundle" in error.message!!)
    }
}
