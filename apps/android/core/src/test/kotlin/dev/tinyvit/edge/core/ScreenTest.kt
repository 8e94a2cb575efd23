package dev.tinyvit.edge.core

import java.io.File
import org.json.JSONObject
import org.junit.Assert.assertEquals
import org.junit.Assert.assertNull
import org.junit.Assert.assertTrue
import org.junit.Test

/** Oracle: figures worked out by hand. */
class ScreenTest {
    private val first = Selection("a", CPU)
    private val second = Selection("b", CPU)

    private fun selected(selection: Selection): ScreenState =
        ScreenState(bundles = listOf("a", "b")).after(Event.Selected(selection, listOf(CPU)))

    private fun classified(selection: Selection, inference: Long) =
        Event.Classified(selection, listOf(Prediction("cat", 1f)), 1_000_000, inference)

    @Test
    fun `the first time stands apart from the median`() {
        val state =
            listOf(90_000_000L, 10_000_000, 30_000_000, 20_000_000).fold(selected(first)) { s, t ->
                s.after(classified(first, t))
            }
        val latency = state.timings.inference.summary()!!
        assertEquals(90.0, latency.firstMs, 0.0)
        assertEquals(20.0, latency.medianMs!!, 0.0)
        assertEquals(28.0, latency.p90Ms!!, 1e-9) // numpy.quantile([10, 20, 30], 0.9)
        assertEquals(4, latency.count)
    }

    @Test
    fun `one time has no median`() {
        assertNull(LatencyLog().plus(5_000_000).summary()!!.medianMs)
        assertNull(LatencyLog().summary())
    }

    @Test
    fun `old times leave the window and the first stays`() {
        val log = (1..LatencyLog.WINDOW + 11L).fold(LatencyLog()) { l, t -> l.plus(t * 1_000_000) }
        val latency = log.summary()!!
        assertEquals(1.0, latency.firstMs, 0.0)
        assertEquals(111.5, latency.medianMs!!, 1e-9) // of 12..211
        assertEquals(LatencyLog.WINDOW + 11, latency.count)
    }

    @Test
    fun `a late result of an earlier selection changes nothing`() {
        val state = selected(first).after(Event.Selected(second, listOf(CPU)))
        val result = ParityResult(emptyList())
        val late =
            listOf(
                Event.Loaded(first, 1),
                classified(first, 1),
                Event.ParityStarted(first),
                Event.ParityChecked(first, result),
                Event.Failed(first, "lost"),
            )
        for (event in late) assertEquals(state, state.after(event))
    }

    @Test
    fun `another selection starts from nothing`() {
        val state = selected(first).after(Event.Loaded(first, 1)).after(classified(first, 1))
        val other = state.after(Event.Selected(second, listOf(CPU)))
        assertEquals(selected(second), other)
    }

    @Test
    fun `a check that broke off is neither passed nor failed`() {
        val state = selected(first).after(Event.ParityStarted(first))
        val broken = state.after(Event.Failed(first, "out of memory"))
        assertEquals(Parity.NotRun, broken.parity)
        assertEquals("out of memory", broken.error)
        assertNull(broken.after(Event.ErrorDismissed).error)
    }

    @Test
    fun `predictions are ordered and sum to one`() {
        val top = topPredictions(floatArrayOf(1000f, 0f, 1000f), listOf("a", "b", "c"), 2)
        assertEquals(listOf(Prediction("a", 0.5f), Prediction("c", 0.5f)), top)
    }

    @Test
    fun `the report says what was measured and whether it was right`() {
        val bundle = bundle()
        val result = checkParity(bundle, Replay(bundle))
        val selection = Selection(bundle.name, CPU)
        val state =
            selected(selection)
                .after(Event.Loaded(selection, 7_000_000))
                .after(classified(selection, 3_000_000))
                .after(Event.ParityChecked(selection, result))
        val device = Device("physical", "Maker", "Phone", "Android 16")
        val app = AppInfo(version = "1.2.3", build = "release")
        val text = latencyReport(bundle, state, device, app)
        // for whoever holds it against the schema of all apps' reports
        System.getProperty("tinyvit.report")?.let { File(it).writeText(text) }
        val report = JSONObject(text)
        assertEquals("release", report.getJSONObject("app").getString("build"))
        assertEquals("physical", report.getJSONObject("device").getString("kind"))
        val about = report.getJSONObject("bundle")
        assertEquals(bundle.manifest.sha256, about.getString("artifact_sha256"))
        val latency = report.getJSONObject("latency_ms")
        assertEquals(7.0, latency.getDouble("load"), 0.0)
        assertEquals(3.0, latency.getJSONObject("inference").getDouble("first"), 0.0)
        assertTrue(latency.getJSONObject("inference").isNull("median"))
        val parity = report.getJSONObject("parity")
        assertTrue(parity.getBoolean("passed"))
        assertTrue(parity.getJSONArray("images").getJSONObject(0).isNull("sqnr_db"))
    }
}
