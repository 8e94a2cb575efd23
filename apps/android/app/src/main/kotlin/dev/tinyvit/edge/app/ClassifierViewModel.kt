package dev.tinyvit.edge.app

import android.app.Application
import android.net.Uri
import android.os.SystemClock
import androidx.camera.core.ImageAnalysis
import androidx.lifecycle.AndroidViewModel
import androidx.lifecycle.viewModelScope
import dev.tinyvit.edge.core.AppInfo
import dev.tinyvit.edge.core.Backend
import dev.tinyvit.edge.core.Bundle
import dev.tinyvit.edge.core.BundleException
import dev.tinyvit.edge.core.Event
import dev.tinyvit.edge.core.ImageClassifier
import dev.tinyvit.edge.core.RgbImage
import dev.tinyvit.edge.core.ScreenState
import dev.tinyvit.edge.core.Selection
import dev.tinyvit.edge.core.after
import dev.tinyvit.edge.core.checkParity
import dev.tinyvit.edge.core.latencyReport
import dev.tinyvit.edge.core.normalise
import dev.tinyvit.edge.core.resizeAndCrop
import dev.tinyvit.edge.core.topPredictions
import dev.tinyvit.edge.executorch.ExecuTorchRuntime
import dev.tinyvit.edge.litert.LiteRtRuntime
import dev.tinyvit.edge.onnx.OnnxRuntime
import java.io.File
import java.util.concurrent.Executor
import java.util.concurrent.Executors
import kotlinx.coroutines.CancellationException
import kotlinx.coroutines.asCoroutineDispatcher
import kotlinx.coroutines.flow.MutableStateFlow
import kotlinx.coroutines.flow.StateFlow
import kotlinx.coroutines.flow.asStateFlow
import kotlinx.coroutines.flow.update
import kotlinx.coroutines.launch
import kotlinx.coroutines.withContext

private const val TOP = 5

/**
 * Owns the loaded model.
 *
 * Everything that touches it runs on one thread: runtimes are not thread-safe, and what is timed
 * has no rival. The camera delivers its frames on the same thread, so that it drops those that come
 * while one is being classified.
 */
class ClassifierViewModel(application: Application) : AndroidViewModel(application) {
    private class Loaded(
        val selection: Selection,
        val bundle: Bundle,
        val classifier: ImageClassifier,
    )

    private val bundles =
        AssetBundles(application.assets, application.cacheDir.resolve("artifacts"))
    private val runtimes =
        listOf(ExecuTorchRuntime(), LiteRtRuntime(), OnnxRuntime()).associateBy { it.target }
    private val thread = Executors.newSingleThreadExecutor { Thread(it, "classifier") }
    private val worker = thread.asCoroutineDispatcher()
    private var loaded: Loaded? = null // on the worker's thread only
    private val mutableState = MutableStateFlow(ScreenState())

    val state: StateFlow<ScreenState> = mutableState.asStateFlow()

    /** Classifies camera frames; to be run on [frameExecutor]. */
    val frameAnalyzer =
        ImageAnalysis.Analyzer { frame -> frame.use { attempt { classify(it.toRgb()) } } }
    val frameExecutor: Executor = thread

    init {
        onWorker {
            val names = bundles.names()
            tell(Event.BundlesFound(names))
            select(names.first())
        }
    }

    fun selectBundle(name: String) = onWorker { select(name) }

    fun selectBackend(backend: Backend) = onWorker {
        state.value.selection?.let { load(it.copy(backend = backend)) }
    }

    fun classifyPhoto(photo: Uri) = onWorker {
        classify(getApplication<Application>().contentResolver.decodePhoto(photo))
    }

    fun checkParity() = onWorker {
        val current = loaded ?: return@onWorker
        tell(Event.ParityStarted(current.selection))
        val result = checkParity(current.bundle, current.classifier)
        tell(Event.ParityChecked(current.selection, result))
    }

    fun dismissError() = tell(Event.ErrorDismissed)

    fun fail(message: String) = tell(Event.Failed(state.value.selection, message))

    /** Writes the report; null where no model is loaded or it cannot be written. */
    suspend fun writeReport(): File? =
        withContext(worker) {
            var report: File? = null
            attempt {
                val current = loaded ?: return@attempt
                val folder = getApplication<Application>().cacheDir.resolve("reports")
                folder.mkdirs()
                val backend = current.selection.backend.id
                val file = folder.resolve("${current.bundle.name}-$backend.json")
                val app = AppInfo(BuildConfig.VERSION_NAME, BuildConfig.BUILD_TYPE)
                file.writeText(latencyReport(current.bundle, state.value, thisDevice(), app))
                report = file
            }
            report
        }

    override fun onCleared() {
        // Behind what is still running; the thread ends after that.
        thread.execute { unload() }
        thread.shutdown()
    }

    private fun select(name: String) {
        val target = bundles.open(name).manifest.target
        val runtime = runtimes[target] ?: throw BundleException("$name: no runtime for '$target'")
        load(Selection(name, runtime.backends.first()))
    }

    private fun load(selection: Selection) {
        unload()
        val bundle = bundles.open(selection.bundle)
        val runtime = runtimes.getValue(bundle.manifest.target)
        tell(Event.Selected(selection, runtime.backends))
        val artifact = bundles.artifact(bundle) // copying it is not part of the time
        val start = SystemClock.elapsedRealtimeNanos()
        val classifier = runtime.load(artifact, bundle, selection.backend)
        val nanoseconds = SystemClock.elapsedRealtimeNanos() - start
        loaded = Loaded(selection, bundle, classifier)
        tell(Event.Loaded(selection, nanoseconds))
    }

    private fun unload() {
        loaded?.classifier?.close()
        loaded = null
    }

    private fun classify(image: RgbImage) {
        val current = loaded ?: return
        val contract = current.bundle.preprocessing
        val start = SystemClock.elapsedRealtimeNanos()
        val tensor = normalise(resizeAndCrop(image, contract), contract)
        val ready = SystemClock.elapsedRealtimeNanos()
        val logits = current.classifier.classify(tensor)
        val end = SystemClock.elapsedRealtimeNanos()
        val predictions = topPredictions(logits, current.bundle.labels, TOP)
        tell(Event.Classified(current.selection, predictions, ready - start, end - ready))
    }

    private fun onWorker(work: () -> Unit) {
        viewModelScope.launch(worker) { attempt(work) }
    }

    /** Runtimes throw what they like; all of it is for the user to read. */
    private fun attempt(work: () -> Unit) {
        try {
            work()
        } catch (error: CancellationException) {
            throw error
        } catch (error: Exception) {
            fail(error.message ?: error.toString())
        }
    }

    private fun tell(event: Event) = mutableState.update { it.after(event) }
}
