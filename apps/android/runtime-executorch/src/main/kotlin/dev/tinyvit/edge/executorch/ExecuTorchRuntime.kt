package dev.tinyvit.edge.executorch

import dev.tinyvit.edge.core.Backend
import dev.tinyvit.edge.core.Bundle
import dev.tinyvit.edge.core.ImageClassifier
import dev.tinyvit.edge.core.ModelRuntime
import dev.tinyvit.edge.core.RgbImage
import java.io.File
import org.pytorch.executorch.EValue
import org.pytorch.executorch.Module
import org.pytorch.executorch.Tensor

/** Runs `model.pte`. Its delegate was chosen at export; what is left to choose is the threads. */
class ExecuTorchRuntime : ModelRuntime {
    override val target = "executorch"
    override val backends = THREADS.keys.toList()

    override fun load(model: File, bundle: Bundle, backend: Backend): ImageClassifier {
        val module = Module.load(model.path, Module.LOAD_MODE_MMAP, THREADS.getValue(backend))
        val side = bundle.preprocessing.size.toLong()
        return ExecuTorchClassifier(module, backend, longArrayOf(1, CHANNELS, side, side))
    }

    private companion object {
        const val CHANNELS = RgbImage.CHANNELS.toLong()

        /** 0 leaves the number to ExecuTorch, which counts the fast cores. */
        val THREADS =
            mapOf(
                Backend("xnnpack", "XNNPACK") to 0,
                Backend("xnnpack-1", "XNNPACK, 1 thread") to 1,
            )
    }
}

private class ExecuTorchClassifier(
    private val module: Module,
    override val backend: Backend,
    private val shape: LongArray,
) : ImageClassifier {
    override fun classify(tensor: FloatArray): FloatArray {
        val outputs = module.forward(EValue.from(Tensor.fromBlob(tensor, shape)))
        // A module that was closed answers with no output instead of throwing in some releases.
        check(outputs.isNotEmpty()) { "the module gave no output" }
        return outputs[0].toTensor().dataAsFloatArray
    }

    override fun close() = module.destroy()
}
