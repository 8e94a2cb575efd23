package dev.tinyvit.edge.core

import java.io.File

/**
 * A way to run an artifact.
 *
 * @property id unique within a runtime; stands in reports.
 * @property half whether it computes in half precision whatever the artifact stores.
 */
data class Backend(val id: String, val label: String, val half: Boolean = false)

/** A loaded artifact. Not thread-safe: one call at a time. Close it, for it holds native memory. */
interface ImageClassifier : AutoCloseable {
    val backend: Backend

    /**
     * Runs the model once.
     *
     * @param tensor float32 (3, S, S), normalised.
     * @return float32 (classes,), a copy that the caller may keep.
     */
    fun classify(tensor: FloatArray): FloatArray
}

/** One runtime: how artifacts of one target are loaded. */
interface ModelRuntime {
    /** The manifest's `target`. */
    val target: String

    /** At least one; the first is the default. */
    val backends: List<Backend>

    /**
     * Loads an artifact.
     *
     * @param model the artifact, on disk.
     * @throws Exception whatever the runtime throws: a damaged file, an accelerator that the
     *     device does not have.
     */
    fun load(model: File, bundle: Bundle, backend: Backend): ImageClassifier
}
