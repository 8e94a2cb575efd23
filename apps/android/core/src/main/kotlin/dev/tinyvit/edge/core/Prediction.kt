package dev.tinyvit.edge.core

import kotlin.math.exp

/** A class and its probability. */
data class Prediction(val label: String, val probability: Float)

/** Softmax over all classes; the largest logit is subtracted first, so nothing overflows. */
fun softmax(logits: FloatArray): FloatArray {
    val largest = logits.max()
    val powers = DoubleArray(logits.size) { exp((logits[it] - largest).toDouble()) }
    val total = powers.sum()
    return FloatArray(logits.size) { (powers[it] / total).toFloat() }
}

/**
 * The likeliest classes, best first; of equal ones the lower index comes first.
 *
 * @param labels one a logit.
 */
fun topPredictions(logits: FloatArray, labels: List<String>, count: Int): List<Prediction> {
    require(logits.size == labels.size) { "${logits.size} logits for ${labels.size} labels" }
    val probabilities = softmax(logits)
    return labels.indices
        .sortedByDescending { logits[it] } // stable
        .take(count)
        .map { Prediction(labels[it], probabilities[it]) }
}

/** Index of the largest logit, the lowest of equal ones. */
fun topClass(logits: FloatArray): Int = logits.indices.maxBy { logits[it] }
