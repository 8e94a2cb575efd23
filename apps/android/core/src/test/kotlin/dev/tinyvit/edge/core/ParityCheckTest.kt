package dev.tinyvit.edge.core

import org.junit.Assert.assertEquals
import org.junit.Assert.assertFalse
import org.junit.Assert.assertThrows
import org.junit.Assert.assertTrue
import org.junit.Test

/** Oracle: a bundle that Python wrote; the check has to pass on it and on nothing else. */
class ParityCheckTest {
    private val selection = Selection("bundle", CPU)

    private fun spoilt(path: String, change: (ByteArray) -> ByteArray): ParityResult {
        val result = checkParity(bundle { it.with(path, change) }, Replay(bundle()))
        assertFalse("$path was changed unnoticed", result.passed)
        return result
    }

    private fun ByteArray.flipped(at: Int): ByteArray =
        clone().also { it[at] = (it[at].toInt() xor 0x40).toByte() }

    @Test
    fun `the bundle as it was written passes`() {
        val result = checkParity(bundle(), Replay(bundle()))
        assertEquals(emptyList<String>(), result.verdicts.flatMap { it.problems })
        assertTrue(result.passed)
        assertEquals(3, result.verdicts.size)
        assertTrue(result.verdicts.all { it.gate == LogitsGate.FLOAT32 })
    }

    @Test
    fun `one wrong byte of a resized photo is found`() {
        val result = spoilt("golden/1.resized.bin") { it.flipped(100) }
        assertEquals(listOf(0, 1, 0), result.verdicts.map { it.differentBytes })
    }

    @Test
    fun `another photo is found`() {
        val result = spoilt("golden/0.decoded.bin") { ByteArray(it.size) }
        val problems = result.verdicts.first().problems
        assertTrue("$problems", problems.any { "resized" in it } && problems.any { "tensor" in it })
    }

    @Test
    fun `wrong logits are found and the screen turns red`() {
        val result = checkParity(bundle(), Replay(bundle(), scale = 1.001f)) // 60 dB
        assertFalse(result.passed)
        val checking = ScreenState(selection = selection).after(Event.ParityStarted(selection))
        val state = checking.after(Event.ParityChecked(selection, result))
        assertEquals(Parity.Failed(result), state.parity)
    }

    @Test
    fun `recorded logits of another runtime are found`() {
        val result = spoilt("golden/2.artifact_logits.bin") { it.reversedArray() }
        assertTrue(result.verdicts.take(2).all { it.problems.isEmpty() })
    }

    @Test
    fun `a backend of half precision is judged as half`() {
        val half = Backend("gpu", "GPU", half = true)
        val result = checkParity(bundle(), Replay(bundle(), half, scale = 1.001f))
        assertTrue(result.passed)
        assertTrue(result.verdicts.all { it.gate == LogitsGate.FLOAT16 })
    }

    @Test
    fun `logits that are not numbers fail`() {
        val result = checkParity(bundle(), Replay(bundle(), scale = Float.NaN))
        assertTrue(result.verdicts.all { it.problems.size == 1 })
    }

    @Test
    fun `an array of the wrong length is refused with the bundle's name`() {
        val damaged = bundle { it.with("golden/0.tensor.bin") { bytes -> bytes.copyOf(8) } }
        val error = assertThrows(BundleException::class.java) {
            checkParity(damaged, Replay(bundle()))
        }
        assertTrue(error.message, error.message!!.startsWith("${damaged.name}: "))
    }

    @Test
    fun `no verdict is no pass`() {
        assertFalse(ParityResult(emptyList()).passed)
    }

    @Test
    fun `decibels by hand`() {
        assertEquals(20.0, sqnrDb(floatArrayOf(3f, 4f), floatArrayOf(3f, 4.5f)), 1e-9)
        assertEquals(Double.POSITIVE_INFINITY, sqnrDb(floatArrayOf(1f), floatArrayOf(1f)), 0.0)
        assertEquals(Double.NEGATIVE_INFINITY, sqnrDb(floatArrayOf(0f), floatArrayOf(1f)), 0.0)
    }
}
