package dev.tinyvit.edge.app

import android.Manifest.permission.CAMERA
import android.content.Context
import android.content.pm.PackageManager.PERMISSION_GRANTED
import androidx.activity.compose.rememberLauncherForActivityResult
import androidx.activity.result.contract.ActivityResultContracts.RequestPermission
import androidx.camera.compose.CameraXViewfinder
import androidx.camera.core.CameraSelector
import androidx.camera.core.ImageAnalysis
import androidx.camera.core.Preview
import androidx.camera.core.SurfaceRequest
import androidx.camera.lifecycle.ProcessCameraProvider
import androidx.camera.lifecycle.awaitInstance
import androidx.compose.foundation.layout.Column
import androidx.compose.foundation.layout.aspectRatio
import androidx.compose.foundation.layout.fillMaxWidth
import androidx.compose.material3.Button
import androidx.compose.material3.Text
import androidx.compose.runtime.Composable
import androidx.compose.runtime.LaunchedEffect
import androidx.compose.runtime.getValue
import androidx.compose.runtime.mutableStateOf
import androidx.compose.runtime.remember
import androidx.compose.runtime.saveable.rememberSaveable
import androidx.compose.runtime.setValue
import androidx.compose.ui.Modifier
import androidx.compose.ui.platform.LocalContext
import androidx.compose.ui.res.stringResource
import androidx.core.content.ContextCompat
import androidx.lifecycle.LifecycleOwner
import androidx.lifecycle.compose.LocalLifecycleOwner
import java.util.concurrent.Executor
import kotlinx.coroutines.CancellationException
import kotlinx.coroutines.awaitCancellation

/** The live preview, off until the user wants it: with the permission, and how to get it. */
@Composable
fun CameraPane(
    analyzer: ImageAnalysis.Analyzer,
    executor: Executor,
    onError: (String) -> Unit,
) {
    val context = LocalContext.current
    var wanted by rememberSaveable { mutableStateOf(false) }
    var refused by rememberSaveable { mutableStateOf(false) }
    val request = rememberLauncherForActivityResult(RequestPermission()) { granted ->
        wanted = granted
        refused = !granted
    }
    Column {
        if (wanted) Viewfinder(analyzer, executor, onError = { wanted = false; onError(it) })
        Button(
            onClick = {
                when {
                    wanted -> wanted = false
                    context.mayUseCamera() -> wanted = true
                    else -> request.launch(CAMERA)
                }
            }
        ) {
            Text(stringResource(if (wanted) R.string.camera_stop else R.string.camera_start))
        }
        if (refused) Text(stringResource(R.string.camera_reason))
    }
}

@Composable
private fun Viewfinder(
    analyzer: ImageAnalysis.Analyzer,
    executor: Executor,
    onError: (String) -> Unit,
) {
    val context = LocalContext.current
    val owner = LocalLifecycleOwner.current
    var surface by remember { mutableStateOf<SurfaceRequest?>(null) }
    LaunchedEffect(owner) {
        try {
            runCamera(context, owner, analyzer, executor) { surface = it }
        } catch (error: CancellationException) {
            throw error
        } catch (error: Exception) { // no camera, or one that another app holds
            onError("camera: ${error.message}; choose a photo instead")
        }
    }
    surface?.let { CameraXViewfinder(it, Modifier.fillMaxWidth().aspectRatio(1f)) }
}

/** Runs the back camera until it is cancelled. */
private suspend fun runCamera(
    context: Context,
    owner: LifecycleOwner,
    analyzer: ImageAnalysis.Analyzer,
    executor: Executor,
    onSurface: (SurfaceRequest) -> Unit,
) {
    val preview = Preview.Builder().build().apply { setSurfaceProvider(onSurface) }
    val analysis =
        ImageAnalysis.Builder()
            .setOutputImageFormat(ImageAnalysis.OUTPUT_IMAGE_FORMAT_RGBA_8888)
            .setBackpressureStrategy(ImageAnalysis.STRATEGY_KEEP_ONLY_LATEST)
            .build()
            .apply { setAnalyzer(executor, analyzer) }
    val provider = ProcessCameraProvider.awaitInstance(context)
    try {
        provider.bindToLifecycle(owner, CameraSelector.DEFAULT_BACK_CAMERA, preview, analysis)
        awaitCancellation()
    } finally {
        analysis.clearAnalyzer()
        provider.unbind(preview, analysis)
    }
}

private fun Context.mayUseCamera(): Boolean =
    ContextCompat.checkSelfPermission(this, CAMERA) == PERMISSION_GRANTED
