package dev.tinyvit.edge.app

import androidx.compose.foundation.layout.Arrangement
import androidx.compose.foundation.layout.Column
import androidx.compose.foundation.layout.FlowRow
import androidx.compose.foundation.layout.Row
import androidx.compose.foundation.layout.fillMaxWidth
import androidx.compose.foundation.layout.padding
import androidx.compose.foundation.rememberScrollState
import androidx.compose.foundation.verticalScroll
import androidx.compose.material3.Button
import androidx.compose.material3.Card
import androidx.compose.material3.CardDefaults
import androidx.compose.material3.FilterChip
import androidx.compose.material3.LinearProgressIndicator
import androidx.compose.material3.MaterialTheme
import androidx.compose.material3.OutlinedButton
import androidx.compose.material3.Scaffold
import androidx.compose.material3.Text
import androidx.compose.material3.TextButton
import androidx.compose.runtime.Composable
import androidx.compose.ui.Modifier
import androidx.compose.ui.res.stringResource
import androidx.compose.ui.text.style.TextAlign
import androidx.compose.ui.unit.dp
import dev.tinyvit.edge.core.Backend
import dev.tinyvit.edge.core.Latency
import dev.tinyvit.edge.core.Parity
import dev.tinyvit.edge.core.Prediction
import dev.tinyvit.edge.core.ScreenState
import dev.tinyvit.edge.core.Timings

/** What the user can do. */
class Actions(
    val selectBundle: (String) -> Unit,
    val selectBackend: (Backend) -> Unit,
    val pickPhoto: () -> Unit,
    val checkParity: () -> Unit,
    val shareReport: () -> Unit,
    val dismissError: () -> Unit,
)

/** The whole screen as a function of its state. */
@Composable
fun ClassifierScreen(state: ScreenState, actions: Actions, camera: @Composable () -> Unit) {
    Scaffold { inset ->
        Column(
            modifier =
                Modifier.padding(inset).padding(16.dp).verticalScroll(rememberScrollState()),
            verticalArrangement = Arrangement.spacedBy(16.dp),
        ) {
            state.error?.let { ErrorCard(it, actions.dismissError) }
            Pickers(state, actions)
            camera()
            OutlinedButton(actions.pickPhoto, enabled = state.ready) {
                Text(stringResource(R.string.pick_photo))
            }
            if (state.selection != null && !state.ready && state.error == null) {
                Text(stringResource(R.string.loading))
            }
            state.predictions.forEach { PredictionBar(it) }
            TimesTable(state.timings)
            ParityCard(state, actions.checkParity)
            OutlinedButton(actions.shareReport, enabled = state.ready) {
                Text(stringResource(R.string.share_report))
            }
        }
    }
}

@Composable
private fun ErrorCard(message: String, dismiss: () -> Unit) {
    val scheme = MaterialTheme.colorScheme
    Card(colors = CardDefaults.cardColors(scheme.errorContainer, scheme.onErrorContainer)) {
        Text(message, Modifier.padding(16.dp))
        TextButton(dismiss) { Text(stringResource(R.string.dismiss)) }
    }
}

@Composable
private fun Pickers(state: ScreenState, actions: Actions) {
    Text(stringResource(R.string.bundle), style = MaterialTheme.typography.titleMedium)
    FlowRow(horizontalArrangement = Arrangement.spacedBy(8.dp)) {
        for (name in state.bundles) {
            FilterChip(
                selected = name == state.selection?.bundle,
                onClick = { actions.selectBundle(name) },
                label = { Text(name) },
            )
        }
    }
    Text(stringResource(R.string.backend), style = MaterialTheme.typography.titleMedium)
    FlowRow(horizontalArrangement = Arrangement.spacedBy(8.dp)) {
        for (backend in state.backends) {
            FilterChip(
                selected = backend == state.selection?.backend,
                onClick = { actions.selectBackend(backend) },
                label = { Text(backend.label) },
            )
        }
    }
}

@Composable
private fun PredictionBar(prediction: Prediction) {
    Column {
        Row {
            Text(prediction.label, Modifier.weight(1f))
            Text("%.1f %%".format(100 * prediction.probability))
        }
        LinearProgressIndicator(
            progress = { prediction.probability },
            modifier = Modifier.fillMaxWidth(),
        )
    }
}

@Composable
private fun TimesTable(timings: Timings) {
    Column {
        TimesRow(
            listOf(
                R.string.times,
                R.string.time_first,
                R.string.time_median,
                R.string.time_p90,
                R.string.time_count,
            ).map { stringResource(it) }
        )
        TimesRow(listOf(stringResource(R.string.time_load), milliseconds(timings.loadMs)))
        LatencyRow(stringResource(R.string.time_preprocess), timings.preprocess.summary())
        LatencyRow(stringResource(R.string.time_inference), timings.inference.summary())
    }
}

@Composable
private fun LatencyRow(name: String, latency: Latency?) {
    val times = listOf(latency?.firstMs, latency?.medianMs, latency?.p90Ms).map(::milliseconds)
    TimesRow(listOf(name) + times + "${latency?.count ?: 0}")
}

@Composable
private fun TimesRow(cells: List<String>) {
    Row(Modifier.fillMaxWidth()) {
        cells.forEachIndexed { column, cell ->
            Text(
                text = cell,
                modifier = Modifier.weight(if (column == 0) 1.5f else 1f),
                textAlign = if (column == 0) TextAlign.Start else TextAlign.End,
            )
        }
        // a short row keeps its cells below those of the others
        repeat(TIMES_COLUMNS - cells.size) { Text("", Modifier.weight(1f)) }
    }
}

private const val TIMES_COLUMNS = 5

private fun milliseconds(value: Double?): String = value?.let { "%.2f".format(it) } ?: "-"

/** Red where a golden photo came out differently, with every difference. */
@Composable
private fun ParityCard(state: ScreenState, check: () -> Unit) {
    val scheme = MaterialTheme.colorScheme
    val parity = state.parity
    Button(check, enabled = state.ready && parity != Parity.Running) {
        Text(stringResource(R.string.parity_check))
    }
    when (parity) {
        Parity.NotRun -> Unit
        Parity.Running -> Text(stringResource(R.string.parity_running))
        is Parity.Passed ->
            Text(stringResource(R.string.parity_passed, parity.result.verdicts.size))
        is Parity.Failed ->
            Card(colors = CardDefaults.cardColors(scheme.error, scheme.onError)) {
                Column(Modifier.padding(16.dp)) {
                    Text(
                        stringResource(R.string.parity_failed),
                        style = MaterialTheme.typography.titleMedium,
                    )
                    for (verdict in parity.result.verdicts) {
                        for (problem in verdict.problems) Text("${verdict.name}: $problem")
                    }
                }
            }
    }
}
