"""The main job: one checkpoint to verified bundles of several targets and precisions."""

from __future__ import annotations

import datetime as dt
import tempfile
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Literal

from tinyvit_edge._version import __version__
from tinyvit_edge.bench import (
    ROUNDS,
    Entry,
    fp32_of,
    latency_notes,
    measure_latency,
    with_speedups,
)
from tinyvit_edge.build import Cell
from tinyvit_edge.console import QuietDisplay
from tinyvit_edge.deploy_job import LINT, TIMING, DeployRequest, Job, convert_all, prepare
from tinyvit_edge.errors import InputError, TinyVitEdgeError
from tinyvit_edge.exporters import exporter, missing_packages
from tinyvit_edge.files import check_writable
from tinyvit_edge.host import host_info
from tinyvit_edge.lint import Finding, lint_made
from tinyvit_edge.precision import parse_precisions
from tinyvit_edge.quantization.choose import refuse_both
from tinyvit_edge.report import ModelInfo, Report, Row, remove_report
from tinyvit_edge.verify import Verified, disagreements, with_latency

__all__ = ["DeployRequest", "deploy", "plan"]


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
    `tinyvit_edge.report.write_report` writes it. What an earlier run to the same folder left is
    used again where all that it came from is the same (`tinyvit_edge.reuse`); latency is always
    measured.

    Raises:
        InputError: bad weights, data or output folder; no bundle was written then.
    """
    display = display or QuietDisplay()
    cells, refused = plan(request)
    check_writable(request.out)
    with tempfile.TemporaryDirectory(prefix="tinyvit-edge-") as scratch:
        job = prepare(request, cells, Path(scratch), display)
        remove_report(request.out)  # it would describe bundles that are being replaced
        outcomes = convert_all(job)
    verified = [outcome for outcome in outcomes if isinstance(outcome, Verified)]
    failed = [outcome for outcome in outcomes if isinstance(outcome, Row)]
    rows = _time_all(job, [one.row for one in verified])
    if request.lint:
        rows = _lint_all(job, rows)
    job.results.keep_seconds(job.left.seconds)
    order = [(t, p) for t in request.targets for p in request.precisions]
    checkpoint = job.source.checkpoint
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
        reference=job.yardstick.accuracy,
        rows=tuple(
            sorted(
                (*rows, *failed, *refused), key=lambda row: order.index((row.target, row.precision))
            )
        ),
        disagreements=disagreements(verified),
    )


def _time_all(job: Job, rows: Sequence[Row]) -> list[Row]:
    """Time every artifact that ran and whose runtime is the real one here."""
    request, start = job.request, time.perf_counter()
    cells = {(cell.target, cell.precision.name): cell for cell in job.cells}
    image = job.source.goldens[0].tensor[None]
    entries = []
    for row in rows:
        key = row.target, row.precision
        cell = cells[key]
        if cell.exporter.timed and row.artifact is not None:
            entries.append(
                Entry(
                    key=key,
                    target=row.target,
                    artifact=request.out / row.artifact,
                    image=image,
                    options=cell.options,
                )
            )
    failures: dict[tuple[str, str], str] = {}

    def lost(entry: Entry[tuple[str, str]], error: TinyVitEdgeError) -> None:
        failures[entry.key] = f"not timed: {error}"

    with job.display.track(TIMING, ROUNDS) as advance:
        latencies = with_speedups(
            measure_latency(
                entries,
                threads=request.threads,
                runs=request.runs,
                progress=lambda: advance(1),
                lost=lost,
            ),
            fp32_of,
        )
    timed = []
    for row in rows:
        key = (row.target, row.precision)
        latency = latencies.get(key)
        int8 = cells[key].precision.computes_in_integers
        notes = () if latency is None else latency_notes(latency, quantized=int8)
        if key in failures:
            notes = (failures[key],)
        timed.append(with_latency(row, latency, notes))
    job.left.done(TIMING, time.perf_counter() - start)
    return timed


def _lint_all(job: Job, rows: Sequence[Row]) -> list[Row]:
    """Judge every artifact, one target at a time."""
    start = time.perf_counter()
    judged: dict[str, dict[str, tuple[Finding, ...]]] = {}
    with job.display.track(LINT, len(rows)) as advance:
        for target in dict.fromkeys(row.target for row in rows):
            artifacts = {
                row.precision: job.request.out / row.artifact
                for row in rows
                if row.target == target and row.artifact is not None
            }
            judged[target] = lint_made(target, artifacts, job.source.checkpoint)
            advance(len(artifacts))
    job.left.done(LINT, time.perf_counter() - start)
    return [
        replace(row, lint=tuple(one.to_dict() for one in judged[row.target].get(row.precision, ())))
        for row in rows
    ]


def _refusal(
    target: str, precision: str, status: Literal["skipped", "unsupported"], reason: str
) -> Row:
    return Row(target=target, precision=precision, status=status, reason=reason)
