package dev.tinyvit.edge.core

/**
 * Times of one step, in milliseconds.
 *
 * @property firstMs of the first call, which pays for lazy set-up and cold caches.
 * @property medianMs of the calls after the first; null until there is one.
 * @property p90Ms of the same calls.
 * @property count all calls.
 */
data class Latency(val firstMs: Double, val medianMs: Double?, val p90Ms: Double?, val count: Int)

/** Times of the calls of one step; keeps the first and the last [WINDOW] after it. */
data class LatencyLog(
    private val first: Double? = null,
    private val later: List<Double> = emptyList(),
    private val count: Int = 0,
) {
    /** The log with one more call, of [nanoseconds]. */
    fun plus(nanoseconds: Long): LatencyLog {
        val ms = nanoseconds / 1e6
        return if (first == null) LatencyLog(ms, emptyList(), 1)
        else LatencyLog(first, (later + ms).takeLast(WINDOW), count + 1)
    }

    /** Null where nothing was timed. */
    fun summary(): Latency? =
        first?.let { Latency(it, quantile(0.5), quantile(0.9), count) }

    /** By linear interpolation between the two nearest, as NumPy does. */
    private fun quantile(q: Double): Double? {
        if (later.isEmpty()) return null
        val sorted = later.sorted()
        val at = q * (sorted.size - 1)
        val below = at.toInt()
        val above = minOf(below + 1, sorted.size - 1)
        return sorted[below] + (at - below) * (sorted[above] - sorted[below])
    }

    companion object {
        const val WINDOW = 200
    }
}
