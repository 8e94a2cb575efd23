"""The main job: one checkpoint to verified bundles of several targets and precisions."""

from __future__ import annotations

import datetime as dt
import os
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from tinyvit_edge._version import __version__
from tinyvit_edge.bench import ROUNDS, Entry, latency_notes, measure_latency, with_speedups
from tinyvit_edge.build import Built, Cell, Source, build, goldens_of
from tinyvit_edge.checkpoint import load_checkpoint
from tinyvit_edge.console import QuietDisplay
from tinyvit_edge.data import SAMPLE_SIZE, scan_folder
from tinyvit_edge.errors import InputError, TinyVitEdgeError
from tinyvit_edge.evaluate import labels_of, reference_logits, reference_module, sample_images
from tinyvit_edge.exporters import exporter, missing_packages
from tinyvit_edge.files import check_writable
from tinyvit_edge.host import host_info
from tinyvit_edge.measure import accuracy
from tinyvit_edge.parallel import run_parallel
from tinyvit_edge.precision import MAX_DROP, parse_precisions
from tinyvit_edge.quantization.choose import (
    ChooseRequest,
    calibration_for,
    moments_for,
    refuse_both,
)
from tinyvit_edge.report import ModelInfo, Report, Row, remove_report
from tinyvit_edge.types import FloatArray
from tinyvit_edge.verify import (
    Comparison,
    Verified,
    Yardstick,
    compare_with,
    disagreements,
    verify,
    with_latency,
)
from tinyvit_edge.worker import TargetProcess

__all__ = ["DeployRequest", "deploy", "plan"]


@dataclass(frozen=True, slots=True, kw_only=True)
class DeployRequest:
    """What `deploy` is asked for."""

    weights: str
    data: Path
    """ImageFolder, or a flat folder of images (no accuracy then)."""
    calib: Path | None = None
    """Images to calibrate on, where a precision needs photos."""
    calibration: Path | None = None
    """Ranges that `tinyvit_edge.quantization.ptq.run` wrote, in place of `calib`."""
    targets: Sequence[str]
    precisions: Sequence[str]
    out: Path
    threads: int = 1
    runs: int = 50
    limit: int | None = None
    """Evaluate on this many evenly spaced images of `data`; on all when None."""
    parity_images: int = SAMPLE_SIZE
    """Evenly spaced images of `data` that conversion loss is measured on."""
    calib_images: int = SAMPLE_SIZE
    """Evenly spaced images of `calib`."""
    max_drop: float = MAX_DROP
    """Budget of ``-mixed`` rows: loss of top-1 on other images of `calib`, in 0..1."""
    image_size: int | None = None
    preprocessing: Literal["microsoft", "timm"] | None = None
    jobs: int | None = None
    """Targets that are converted, and artifacts that are evaluated, at the same time."""
    command: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class _Made:
    """A bundle and what its outputs are compared with."""

    built: Built
    comparison: Comparison


def plan(request: DeployRequest) -> tuple[tuple[Cell, ...], tuple[Row, ...]]:
    """Decide what will be built, before any work.

    Returns:
        Cells to build, and a row for each that is not: refused by its target, or skipped because
        packages are missing.

    Raises:
        InputError: unknown target or precision, nothing asked for, or nothing to calibrate on.
    """
    precisions = parse_precisions(request.precisions)
    targets = [exporter(name) for name in dict.fromkeys(request.targets)]
    if not targets or not precisions:
        raise InputError("nothing to deploy: give --targets and --precisions")
    cells, refused = [], []
    for target in targets:
        missing = missing_packages(target)
        for precision in precisions:
            if reason := target.unsupported.get(precision.name):
                refused.append(_refusal(target.name, precision.name, "unsupported", reason))
            elif missing:
                reason = f"needs {', '.join(missing)}: pip install 'tinyvit-edge[{target.name}]'"
                refused.append(_refusal(target.name, precision.name, "skipped", reason))
            else:
                cells.append(Cell(target=target.name, precision=precision))
    _require_photos(request, cells)
    return tuple(cells), tuple(refused)


def _require_photos(request: DeployRequest, cells: Sequence[Cell]) -> None:
    if not any(cell.precision.coded for cell in cells):  # which need photos beside ranges
        refuse_both(request.calib, request.calibration)
    if request.calib is None:
        for cell in cells:
            if cell.precision.coded or (cell.precision.calibrated and not request.calibration):
                raise InputError(
                    f"{cell.name} needs photos to calibrate on: give --calib DIR, other photos"
                    " than --data"
                )


def deploy(request: DeployRequest, *, display: QuietDisplay | None = None) -> Report:
    """Convert, verify and time everything that was asked for.

    Bundles are written to ``request.out/<target>-<precision>``; the report is returned, and
    `tinyvit_edge.report.write_report` writes it.

    Raises:
        InputError: bad weights, data or output folder; nothing was written then.
    """
    display = display or QuietDisplay()
    cells, refused = plan(request)
    check_writable(request.out)
    source, yardstick = _prepare(request, cells, display)
    remove_report(request.out)  # it would describe bundles that are being replaced
    jobs = request.jobs or min(os.cpu_count() or 1, 4)
    made, failed = _build_all(request.out, cells, source, yardstick, jobs, display)
    checked = _verify_all(request.out, made, source, yardstick, jobs, display)
    verified = [outcome for outcome in checked if isinstance(outcome, Verified)]
    failed += [outcome for outcome in checked if isinstance(outcome, Row)]
    rows = _time_all(request, made, [one.row for one in verified], source, display)
    order = [(t, p) for t in request.targets for p in request.precisions]
    checkpoint = source.checkpoint
    return Report(
        created=dt.datetime.now(dt.timezone.utc).isoformat(timespec="seconds"),
        command=request.command,
        tool_version=__version__,
        host=host_info(),
        model=ModelInfo(
            variant=checkpoint.variant,
            params=sum(p.numel() for p in checkpoint.model.parameters()),
            weights_sha256=checkpoint.sha256,
            num_classes=len(checkpoint.labels),
        ),
        reference=yardstick.accuracy,
        rows=tuple(
            sorted(
                (*rows, *failed, *refused), key=lambda row: order.index((row.target, row.precision))
            )
        ),
        disagreements=disagreements(verified),
    )


def _prepare(
    request: DeployRequest, cells: Sequence[Cell], display: QuietDisplay
) -> tuple[Source, Yardstick]:
    """Read every input once, so that bad input is met before anything is written."""
    checkpoint = load_checkpoint(
        request.weights, image_size=request.image_size, preprocessing=request.preprocessing
    )
    dataset = scan_folder(request.data, checkpoint.labels)
    if request.limit is not None:
        dataset = dataset.subset(request.limit)
    precisions, photos = [cell.precision for cell in cells], _photos(request)
    calibration = calibration_for(
        checkpoint, precisions, photos=photos, ranges=request.calibration, display=display
    )
    moments = moments_for(checkpoint, precisions, photos=photos, display=display)
    module = reference_module(checkpoint.model)
    with display.track("float32 reference", len(dataset)) as advance:
        logits = reference_logits(module, dataset, checkpoint.preprocessing, progress=advance)
    source = Source(
        checkpoint=checkpoint,
        goldens=goldens_of(checkpoint, dataset),
        calibration=calibration,
        moments=moments,
        command=request.command,
        packages=host_info()["packages"],
    )
    return source, Yardstick(
        dataset=dataset,
        logits=logits,
        accuracy=accuracy(logits, labels_of(dataset)),
        parity_images=request.parity_images,
    )


def _photos(request: DeployRequest) -> ChooseRequest | None:
    if request.calib is None:
        return None
    return ChooseRequest(
        photos=request.calib,
        images=request.calib_images,
        max_drop=request.max_drop,
        targets=tuple(request.targets),
    )


def _build_all(
    out: Path,
    cells: Sequence[Cell],
    source: Source,
    yardstick: Yardstick,
    jobs: int,
    display: QuietDisplay,
) -> tuple[list[_Made], list[Row]]:
    """Convert target by target, several targets at a time."""
    contract = source.checkpoint.preprocessing
    images = sample_images(yardstick.dataset, contract, yardstick.parity_images)
    groups = {cell.target: [c for c in cells if c.target == cell.target] for cell in cells}
    with display.track("export", len(cells)) as advance:

        def convert(group: Sequence[Cell], cancelled: Callable[[], bool]) -> list[_Made | Row]:
            return _convert_group(group, out, source, yardstick, images, advance, cancelled)

        converted = run_parallel(convert, groups.values(), jobs=jobs)
    outcomes = [outcome for group in converted for outcome in group]
    made = [outcome for outcome in outcomes if isinstance(outcome, _Made)]
    return made, [outcome for outcome in outcomes if isinstance(outcome, Row)]


def _convert_group(
    group: Sequence[Cell],
    out: Path,
    source: Source,
    yardstick: Yardstick,
    images: FloatArray,
    advance: Callable[[int], None],
    cancelled: Callable[[], bool],
) -> list[_Made | Row]:
    """Convert one target's cells in one process, or in a fresh one after a crash."""
    outcomes: list[_Made | Row] = []
    process: TargetProcess | None = None
    try:
        for cell in group:
            if cancelled():
                break
            try:
                if process is None or not process.alive:
                    process = TargetProcess(cell.target, options=cell.options)
                built, program = build(cell, source, out, process)
                comparison = compare_with(program, cell.exporter, yardstick, images)
                outcomes.append(_Made(built=built, comparison=comparison))
            except TinyVitEdgeError as error:
                if isinstance(error, InputError) and not error.in_child:
                    raise  # the disk is full, say: no other cell would fare better
                outcomes.append(_failure(cell, error))
            advance(1)
    finally:
        if process is not None:
            process.close(kill=cancelled())
    return outcomes


def _verify_all(
    out: Path,
    made: Sequence[_Made],
    source: Source,
    yardstick: Yardstick,
    jobs: int,
    display: QuietDisplay,
) -> list[Verified | Row]:
    """Run every artifact on every image, several artifacts at a time."""
    contract = source.checkpoint.preprocessing
    with display.track("evaluate", len(made) * len(yardstick.dataset)) as advance:

        def check(one: _Made, _: Callable[[], bool]) -> Verified | Row:
            try:
                return verify(
                    one.built, one.comparison, yardstick, contract, out=out, progress=advance
                )
            except TinyVitEdgeError as error:
                return _failure(one.built.cell, error)

        return run_parallel(check, made, jobs=jobs)


def _time_all(
    request: DeployRequest,
    made: Sequence[_Made],
    rows: Sequence[Row],
    source: Source,
    display: QuietDisplay,
) -> list[Row]:
    """Time every artifact that ran and whose runtime is the real one here."""
    ran = {(row.target, row.precision) for row in rows}
    cells = [one.built for one in made if one.built.cell.exporter.timed]
    entries = [
        Entry(
            target=built.cell.target,
            precision=built.cell.precision.name,
            artifact=built.artifact,
            options=built.cell.options,
        )
        for built in cells
        if (built.cell.target, built.cell.precision.name) in ran
    ]
    image = source.goldens[0].tensor[None]
    failures: dict[tuple[str, str], str] = {}

    def lost(entry: Entry, error: TinyVitEdgeError) -> None:
        failures[entry.target, entry.precision] = f"not timed: {error}"

    with display.track("time", ROUNDS) as advance:
        latencies = with_speedups(
            measure_latency(
                entries,
                image,
                threads=request.threads,
                runs=request.runs,
                progress=lambda: advance(1),
                lost=lost,
            )
        )
    in_integers = {
        one.built.cell.name: one.built.cell.precision.computes_in_integers for one in made
    }
    timed = []
    for row in rows:
        key = (row.target, row.precision)
        latency = latencies.get(key)
        int8 = in_integers[f"{row.target}-{row.precision}"]
        notes = () if latency is None else latency_notes(latency, quantized=int8)
        if key in failures:
            notes = (failures[key],)
        timed.append(with_latency(row, latency, notes))
    return timed


def _failure(cell: Cell, error: TinyVitEdgeError) -> Row:
    # what went wrong went wrong in a temporary folder that is gone
    reason = re.sub(r"\.tmp-\w+", cell.name, str(error))
    return _refusal(cell.target, cell.precision.name, "failed", reason)


def _refusal(
    target: str, precision: str, status: Literal["failed", "skipped", "unsupported"], reason: str
) -> Row:
    return Row(target=target, precision=precision, status=status, reason=reason)
