package dev.tinyvit.edge.litert

import com.google.ai.edge.litert.Accelerator
import com.google.ai.edge.litert.CompiledModel
import com.google.ai.edge.litert.TensorBuffer
import dev.tinyvit.edge.core.Backend
import dev.tinyvit.edge.core.Bundle
import dev.tinyvit.edge.core.ImageClassifier
import dev.tinyvit.edge.core.ModelRuntime
import java.io.File

/** Runs `model.tflite`. */
class LiteRtRuntime : ModelRuntime {
    override val target = "tflite"
    override val backends = ACCELERATORS.keys.toList()

    override fun load(model: File, bundle: Bundle, backend: Backend): ImageClassifier {
        // One accelerator and no fallback: figures of "GPU" are not to be of the CPU in part.
        val options = CompiledModel.Options(ACCELERATORS.getValue(backend))
        val compiled = CompiledModel.create(model.path, options)
        return try {
            LiteRtClassifier(compiled, backend)
        } catch (error: Exception) {
            compiled.close()
            throw error
        }
    }

    private companion object {
        val ACCELERATORS =
            mapOf(
                Backend("cpu", "CPU") to Accelerator.CPU,
                // Its GPU kernels compute in half precision, whatever the file stores.
                Backend("gpu", "GPU", half = true) to Accelerator.GPU,
            )
    }
}

private class LiteRtClassifier(
    private val model: CompiledModel,
    override val backend: Backend,
) : ImageClassifier {
    private val inputs: List<TensorBuffer> = model.createInputBuffers()
    private val outputs: List<TensorBuffer> =
        try {
            model.createOutputBuffers()
        } catch (error: Exception) {
            inputs.forEach { it.close() }
            throw error
        }

    override fun classify(tensor: FloatArray): FloatArray {
        inputs.single().writeFloat(tensor)
        model.run(inputs, outputs)
        return outputs.single().readFloat()
    }

    override fun close() {
        inputs.forEach { it.close() }
        outputs.forEach { it.close() }
        model.close()
    }
}
