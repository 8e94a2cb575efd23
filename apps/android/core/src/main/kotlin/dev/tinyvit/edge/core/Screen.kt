package dev.tinyvit.edge.core

/** What is loaded, or is to be. */
data class Selection(val bundle: String, val backend: Backend)

/** Times of the current selection. */
data class Timings(
    val loadMs: Double? = null,
    val preprocess: LatencyLog = LatencyLog(),
    val inference: LatencyLog = LatencyLog(),
)

/** State of the check against the golden vectors. */
sealed interface Parity {
    data object NotRun : Parity

    data object Running : Parity

    data class Passed(val result: ParityResult) : Parity

    /** Shown in red. */
    data class Failed(val result: ParityResult) : Parity
}

/** All that the screen shows. */
data class ScreenState(
    val bundles: List<String> = emptyList(),
    val backends: List<Backend> = emptyList(),
    val selection: Selection? = null,
    val ready: Boolean = false,
    val predictions: List<Prediction> = emptyList(),
    val timings: Timings = Timings(),
    val parity: Parity = Parity.NotRun,
    val error: String? = null,
)

/** What happens to the screen. */
sealed interface Event {
    data class BundlesFound(val names: List<String>) : Event

    /** The user chose, and loading begins. */
    data class Selected(val selection: Selection, val backends: List<Backend>) : Event

    data class Loaded(val selection: Selection, val nanoseconds: Long) : Event

    data class Classified(
        val selection: Selection,
        val predictions: List<Prediction>,
        val preprocessNanoseconds: Long,
        val inferenceNanoseconds: Long,
    ) : Event

    data class ParityStarted(val selection: Selection) : Event

    data class ParityChecked(val selection: Selection, val result: ParityResult) : Event

    /** Something failed; of an earlier selection where [selection] is not the current one. */
    data class Failed(val selection: Selection?, val message: String) : Event

    data object ErrorDismissed : Event
}

/**
 * The state after an event.
 *
 * Work runs in the background, so that a result may come after the user has chosen something else.
 * Such a late result changes nothing: figures are always of the selection that they stand below.
 */
fun ScreenState.after(event: Event): ScreenState =
    when (event) {
        is Event.BundlesFound -> copy(bundles = event.names)
        is Event.Selected ->
            ScreenState(
                bundles = bundles,
                backends = event.backends,
                selection = event.selection,
            )
        is Event.Loaded ->
            ifCurrent(event.selection) {
                copy(ready = true, timings = Timings(loadMs = event.nanoseconds / 1e6))
            }
        is Event.Classified -> ifCurrent(event.selection) { classified(event) }
        is Event.ParityStarted -> ifCurrent(event.selection) { copy(parity = Parity.Running) }
        is Event.ParityChecked ->
            ifCurrent(event.selection) {
                copy(
                    parity =
                        if (event.result.passed) Parity.Passed(event.result)
                        else Parity.Failed(event.result)
                )
            }
        is Event.Failed ->
            ifCurrent(event.selection) {
                // A check that could not be finished has shown nothing.
                copy(
                    error = event.message,
                    parity = if (parity == Parity.Running) Parity.NotRun else parity,
                )
            }
        Event.ErrorDismissed -> copy(error = null)
    }

private fun ScreenState.classified(event: Event.Classified): ScreenState =
    copy(
        predictions = event.predictions,
        timings =
            timings.copy(
                preprocess = timings.preprocess.plus(event.preprocessNanoseconds),
                inference = timings.inference.plus(event.inferenceNanoseconds),
            ),
    )

private inline fun ScreenState.ifCurrent(
    of: Selection?,
    change: ScreenState.() -> ScreenState,
): ScreenState = if (of == selection) change() else this
