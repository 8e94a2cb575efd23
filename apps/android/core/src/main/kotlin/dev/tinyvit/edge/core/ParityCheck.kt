package dev.tinyvit.edge.core

import kotlin.math.abs
import kotlin.math.log10
import kotlin.math.max

/** Rounding of float32 at values of normalised pixels; a wrong mean or order is off by > 1e-2. */
private const val TENSOR_TOLERANCE = 1e-6f

/**
 * What the logits of an artifact may lose against the ones recorded in its bundle.
 *
 * @property sqnrDb least signal to noise ratio, in dB.
 * @property sameTop1 whether the first class has to be the recorded one.
 */
enum class LogitsGate(val sqnrDb: Double, val sameTop1: Boolean) {
    /** Other kernels of the same arithmetic: only the order of sums differs. */
    FLOAT32(90.0, false),

    /** Half precision, in the file or in the arithmetic of the backend. */
    FLOAT16(35.0, false),

    /** int8 kernels of another CPU family round at other places. */
    QUANTIZED(15.0, true);

    companion object {
        fun of(precision: String, backend: Backend): LogitsGate =
            when (precision) {
                "fp32" -> if (backend.half) FLOAT16 else FLOAT32
                "fp16" -> FLOAT16
                else -> QUANTIZED
            }
    }
}

/**
 * How one golden photo came through the app.
 *
 * @property differentBytes bytes of the resized photo that are not the recorded ones.
 * @property tensorError largest difference of a value of the tensor.
 * @property sqnrDb of the logits, in dB; positive infinity where they are the same.
 * @property sameTop1 whether the first class is the recorded one.
 */
data class GoldenVerdict(
    val name: String,
    val differentBytes: Int,
    val tensorError: Float,
    val sqnrDb: Double,
    val sameTop1: Boolean,
    val gate: LogitsGate,
) {
    /** What is wrong, a line each; empty where nothing is. */
    val problems: List<String> = buildList {
        if (differentBytes > 0) add("$differentBytes bytes of the resized photo differ")
        // `!(a <= b)`, so that what is not a number fails, too
        if (!(tensorError <= TENSOR_TOLERANCE)) add("the input tensor differs by $tensorError")
        if (!(sqnrDb >= gate.sqnrDb)) {
            add("logits at %.1f dB, below %.0f".format(sqnrDb, gate.sqnrDb))
        }
        if (gate.sameTop1 && !sameTop1) add("another first class")
    }
}

/** The verdicts on all golden photos of a bundle. */
data class ParityResult(val verdicts: List<GoldenVerdict>) {
    val passed: Boolean = verdicts.isNotEmpty() && verdicts.all { it.problems.isEmpty() }
}

/**
 * Takes the golden photos through the app's own preprocessing and the artifact.
 *
 * Where the bundle has no logits of its artifact, those of the float32 model stand in, by the
 * bound of quantized ones.
 *
 * @throws BundleException the golden vectors are missing or damaged.
 */
fun checkParity(bundle: Bundle, classifier: ImageClassifier): ParityResult =
    ParityResult(bundle.goldens().map { golden(it, bundle, classifier) }.toList())

private fun golden(golden: Golden, bundle: Bundle, classifier: ImageClassifier): GoldenVerdict {
    val resized = resizeAndCrop(golden.decoded, bundle.preprocessing)
    val tensor = normalise(resized, bundle.preprocessing)
    // The recorded tensor, so that a difference in the logits is the runtime's alone.
    val logits = classifier.classify(golden.tensor)
    val expected = golden.artifactLogits ?: golden.referenceLogits
    return GoldenVerdict(
        name = golden.name,
        differentBytes = resized.pixels.indices.count {
            resized.pixels[it] != golden.resized.pixels[it]
        },
        tensorError = largestDifference(tensor, golden.tensor),
        sqnrDb = sqnrDb(expected, logits),
        sameTop1 = topClass(logits) == topClass(expected),
        gate =
            if (golden.artifactLogits == null) LogitsGate.QUANTIZED
            else LogitsGate.of(bundle.manifest.precision, classifier.backend),
    )
}

private fun largestDifference(a: FloatArray, b: FloatArray): Float =
    a.indices.fold(0f) { largest, i -> max(largest, abs(a[i] - b[i])) } // NaN stays

/**
 * Signal to noise ratio in dB: `10 log10(sum r^2 / sum (r - m)^2)`, in double precision.
 *
 * Equal inputs give infinity; a reference of zeros against anything else, minus infinity.
 */
fun sqnrDb(reference: FloatArray, measured: FloatArray): Double {
    require(reference.size == measured.size) { "${measured.size} logits, not ${reference.size}" }
    val signal = reference.sumOf { it.toDouble() * it }
    val noise = reference.indices.sumOf { i ->
        (reference[i].toDouble() - measured[i]).let { it * it }
    }
    return if (noise == 0.0) Double.POSITIVE_INFINITY else 10 * log10(signal / noise)
}
