package dev.tinyvit.edge.onnx

import ai.onnxruntime.OnnxTensor
import ai.onnxruntime.OrtEnvironment
import ai.onnxruntime.OrtSession
import dev.tinyvit.edge.core.Backend
import dev.tinyvit.edge.core.Bundle
import dev.tinyvit.edge.core.ImageClassifier
import dev.tinyvit.edge.core.ModelRuntime
import dev.tinyvit.edge.core.RgbImage
import java.io.File
import java.nio.FloatBuffer

/** Runs `model.onnx`. */
class OnnxRuntime : ModelRuntime {
    override val target = "onnx"
    override val backends = listOf(CPU, XNNPACK)

    override fun load(model: File, bundle: Bundle, backend: Backend): ImageClassifier {
        // One a process, and never closed: ONNX Runtime hands out the same one again.
        val environment = OrtEnvironment.getEnvironment()
        val session =
            OrtSession.SessionOptions().use { options ->
                // XNNPACK has threads of its own, against which ONNX Runtime's would spin.
                if (backend == XNNPACK) {
                    options.setIntraOpNumThreads(1)
                    options.addConfigEntry("session.intra_op.allow_spinning", "0")
                    val threads = Runtime.getRuntime().availableProcessors() / 2
                    options.addXnnpack(mapOf("intra_op_num_threads" to "${maxOf(1, threads)}"))
                }
                environment.createSession(model.path, options)
            }
        return OnnxClassifier(environment, session, backend, bundle)
    }

    private companion object {
        val CPU = Backend("cpu", "CPU")
        val XNNPACK = Backend("xnnpack", "XNNPACK")
    }
}

private class OnnxClassifier(
    private val environment: OrtEnvironment,
    private val session: OrtSession,
    override val backend: Backend,
    bundle: Bundle,
) : ImageClassifier {
    private val input = bundle.manifest.inputName
    private val output = bundle.manifest.outputName
    private val classes = bundle.manifest.classes
    private val side = bundle.preprocessing.size.toLong()
    private val shape = longArrayOf(1, RgbImage.CHANNELS.toLong(), side, side)

    override fun classify(tensor: FloatArray): FloatArray =
        OnnxTensor.createTensor(environment, FloatBuffer.wrap(tensor), shape).use { image ->
            session.run(mapOf(input to image), setOf(output)).use { results ->
                val logits = results.get(0) as OnnxTensor
                FloatArray(classes).also { logits.floatBuffer.get(it) }
            }
        }

    override fun close() = session.close()
}
