package dev.tinyvit.edge.app

import android.content.ClipData
import android.content.Context
import android.content.Intent
import android.os.Bundle
import androidx.activity.ComponentActivity
import androidx.activity.compose.rememberLauncherForActivityResult
import androidx.activity.compose.setContent
import androidx.activity.enableEdgeToEdge
import androidx.activity.result.PickVisualMediaRequest
import androidx.activity.result.contract.ActivityResultContracts.PickVisualMedia
import androidx.compose.foundation.isSystemInDarkTheme
import androidx.compose.material3.MaterialTheme
import androidx.compose.material3.darkColorScheme
import androidx.compose.material3.lightColorScheme
import androidx.compose.runtime.Composable
import androidx.compose.runtime.getValue
import androidx.compose.runtime.rememberCoroutineScope
import androidx.compose.ui.platform.LocalContext
import androidx.core.content.FileProvider
import androidx.lifecycle.compose.collectAsStateWithLifecycle
import androidx.lifecycle.viewmodel.compose.viewModel
import java.io.File
import kotlinx.coroutines.launch

/** The only screen. */
class MainActivity : ComponentActivity() {
    override fun onCreate(savedInstanceState: Bundle?) {
        super.onCreate(savedInstanceState)
        enableEdgeToEdge()
        setContent {
            val colors = if (isSystemInDarkTheme()) darkColorScheme() else lightColorScheme()
            MaterialTheme(colors) { App() }
        }
    }
}

@Composable
private fun App(model: ClassifierViewModel = viewModel()) {
    val state by model.state.collectAsStateWithLifecycle()
    val context = LocalContext.current
    val scope = rememberCoroutineScope()
    // The system's picker: it hands over one photo, without a permission to read the others.
    val picker = rememberLauncherForActivityResult(PickVisualMedia()) { photo ->
        photo?.let(model::classifyPhoto)
    }
    ClassifierScreen(
        state = state,
        actions =
            Actions(
                selectBundle = model::selectBundle,
                selectBackend = model::selectBackend,
                pickPhoto = { picker.launch(PickVisualMediaRequest(PickVisualMedia.ImageOnly)) },
                checkParity = model::checkParity,
                shareReport = { scope.launch { model.writeReport()?.let(context::share) } },
                dismissError = model::dismissError,
            ),
        camera = {
            CameraPane(model.frameAnalyzer, model.frameExecutor, onError = model::fail)
        },
    )
}

private fun Context.share(report: File) {
    val uri = FileProvider.getUriForFile(this, "$packageName.reports", report)
    val send =
        Intent(Intent.ACTION_SEND).apply {
            type = "application/json"
            putExtra(Intent.EXTRA_STREAM, uri)
            clipData = ClipData.newRawUri(report.name, uri) // carries the grant through the chooser
            addFlags(Intent.FLAG_GRANT_READ_URI_PERMISSION)
        }
    startActivity(Intent.createChooser(send, null))
}
