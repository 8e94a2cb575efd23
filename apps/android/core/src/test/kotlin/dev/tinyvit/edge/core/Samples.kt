package dev.tinyvit.edge.core

import java.io.File

/** What `python apps/goldens.py OUT` wrote: the folder OUT, in the system property. */
internal val goldens: File by lazy {
    File(checkNotNull(System.getProperty("tinyvit.goldens")) { "set -Dtinyvit.goldens=OUT" })
}

internal val CPU = Backend("cpu", "CPU")

internal fun filesIn(folder: File) = BundleFiles { path -> folder.resolve(path).readBytes() }

/** The bundle that Python wrote. */
internal fun bundle(files: (BundleFiles) -> BundleFiles = { it }): Bundle {
    val bundles = goldens.resolve("bundles")
    val name = bundleNames(filesIn(bundles)).single()
    return Bundle.read(name, files(filesIn(bundles.resolve(name))))
}

/** Files with one of them changed. */
internal fun BundleFiles.with(path: String, change: (ByteArray) -> ByteArray) =
    BundleFiles { read(it).let { bytes -> if (it == path) change(bytes) else bytes } }

/** Answers a tensor with the logits that the bundle recorded for it: a runtime without an error. */
internal class Replay(
    private val recorded: Bundle,
    override val backend: Backend = CPU,
    private val scale: Float = 1f,
) : ImageClassifier {
    override fun classify(tensor: FloatArray): FloatArray {
        val golden = recorded.goldens().first { it.tensor.contentEquals(tensor) }
        val logits = golden.artifactLogits ?: golden.referenceLogits
        return FloatArray(logits.size) { logits[it] * scale }
    }

    override fun close() = Unit
}
