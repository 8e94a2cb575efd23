"""The work of `deploy` before the clock: read inputs once, then convert and judge every cell."""

from __future__ import annotations

import os
import re
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

from torch import nn

from tinyvit_edge.build import GOLDENS, Built, Cell, Source, audit_of, build, goldens_of, reopen
from tinyvit_edge.checkpoint import Checkpoint, load_checkpoint
from tinyvit_edge.console import QuietDisplay
from tinyvit_edge.data import SAMPLE_SIZE, ImageDataset, scan_folder
from tinyvit_edge.errors import InputError, TinyVitEdgeError
from tinyvit_edge.evaluate import labels_of, logits_of_pixels, reference_module
from tinyvit_edge.host import host_info
from tinyvit_edge.measure import accuracy
from tinyvit_edge.parallel import run_parallel
from tinyvit_edge.pixels import Pixels, prepare_pixels
from tinyvit_edge.precision import MAX_DROP
from tinyvit_edge.quantization.calibration import Calibration
from tinyvit_edge.quantization.choose import ChooseRequest, calibration_for, moments_for
from tinyvit_edge.report import Row
from tinyvit_edge.reuse import Earlier, Results, calib_digest
from tinyvit_edge.timeleft import TimeLeft
from tinyvit_edge.types import FloatArray
from tinyvit_edge.verify import Comparison, Verified, Yardstick, compare_with, verify
from tinyvit_edge.worker import TargetProcess

__all__ = ["LINT", "TIMING", "DeployRequest", "Job", "convert_all", "prepare"]

TIMING = "time"
"""Name of the step that measures latency."""
LINT = "lint"
"""Name of the step that judges artifacts by what GPUs and NPUs take."""
_CALIBRATION, _REFERENCE = "calibration", "float32 reference"


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
    fresh: bool = False
    """Make everything anew, whatever an earlier run left."""
    lint: bool = False
    """Say of each artifact what speaks against it on GPUs and NPUs."""
    command: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class Job:
    """A deployment whose inputs are read."""

    request: DeployRequest
    cells: tuple[Cell, ...]
    source: Source
    yardstick: Yardstick
    pixels: Pixels | None
    """The images of the yardstick; None where no model has to run on them."""
    results: Results
    earlier: Mapping[str, Earlier]
    """Bundles that need not be made, by the cell's name."""
    verified: Mapping[str, Verified]
    """Those of them that need not be run either."""
    left: TimeLeft
    display: QuietDisplay


def prepare(
    request: DeployRequest, cells: Sequence[Cell], scratch: Path, display: QuietDisplay
) -> Job:
    """Read every input once, so that bad input is met before any bundle is written.

    Args:
        request: what is asked for.
        cells: what of it can be built.
        scratch: a folder for this run alone.
        display: shows progress.

    Raises:
        InputError: bad weights or data.
    """
    checkpoint = load_checkpoint(
        request.weights, image_size=request.image_size, preprocessing=request.preprocessing
    )
    everything = scan_folder(request.data, checkpoint.labels)
    dataset = everything if request.limit is None else everything.subset(request.limit)
    precisions, photos = [cell.precision for cell in cells], _photos(request)
    results = Results(
        request.out,
        checkpoint=checkpoint,
        dataset=dataset,
        parity_images=request.parity_images,
        goldens=everything.subset(GOLDENS),
        calib=calib_digest(photos, precisions),
        fresh=request.fresh,
        display=display,
    )
    left = _time_left(request, cells, results, display)
    images = _Images(dataset, checkpoint, scratch / "pixels.npy", display)
    calibration = _calibration(request, checkpoint, cells, results, left, display)
    logits = _reference(checkpoint, images, results, left)
    found = {cell.name: results.bundle(cell, calibration) for cell in cells}
    earlier = {name: one for name, one in found.items() if one is not None}
    known = {name: results.verified(name, one) for name, one in earlier.items()}
    verified = {name: one for name, one in known.items() if one is not None}
    moments = None
    if any(cell.precision.coded and cell.name not in earlier for cell in cells):
        moments = moments_for(checkpoint, precisions, photos=photos, display=display)
    return Job(
        request=request,
        cells=tuple(cells),
        source=Source(
            checkpoint=checkpoint,
            goldens=goldens_of(checkpoint, everything),
            calibration=calibration,
            moments=moments,
            command=request.command,
            packages=host_info()["packages"],
        ),
        yardstick=Yardstick(
            dataset=dataset,
            logits=logits,
            accuracy=accuracy(logits, labels_of(dataset)),
            parity_images=request.parity_images,
        ),
        pixels=None if len(verified) == len(cells) else images.pixels(),
        results=results,
        earlier=earlier,
        verified=verified,
        left=left,
        display=display,
    )


def convert_all(job: Job) -> list[Verified | Row]:
    """Convert, run and judge every cell, several targets at a time; a row alone is a failure."""
    groups = {cell.target: [c for c in job.cells if c.target == cell.target] for cell in job.cells}

    # images, because those are many; one bar, because a terminal has place for one
    total = len(job.yardstick.dataset) * (len(job.cells) - len(job.verified))
    with job.display.track("convert and evaluate", total) as advance:

        def convert(group: Sequence[Cell], cancelled: Callable[[], bool]) -> list[Verified | Row]:
            return _convert_group(group, job, advance, cancelled)

        # while one target's artifact runs on the photos, the next target is converted
        done = run_parallel(convert, groups.values(), jobs=_jobs(job.request))
    return [outcome for group in done for outcome in group]


@dataclass(frozen=True, slots=True, kw_only=True)
class _Made:
    """A bundle, and what its outputs are compared with."""

    built: Built
    comparison: Comparison
    seconds: float
    """What both took, here and now."""


def _convert_group(
    group: Sequence[Cell],
    job: Job,
    advance: Callable[[int], None],
    cancelled: Callable[[], bool],
) -> list[Verified | Row]:
    """Convert one target's cells in one process, then run each artifact in its own."""
    outcomes: list[Verified | Row] = []
    made = []
    with _Converter(cancelled) as converter:
        for cell in group:
            if cancelled():
                break
            if (known := job.verified.get(cell.name)) is not None:
                outcomes.append(known)
                job.left.done(cell.name, None, outcome="unchanged")
                continue
            try:
                made.append(_make(cell, job, converter))
            except TinyVitEdgeError as error:
                if isinstance(error, InputError) and not error.in_child:
                    raise  # the disk is full, say: no other cell would fare better
                outcomes.append(_failure(cell, error, job))
    # by now the converter, which holds more memory than any runtime, has ended
    for one in made:
        if cancelled():
            break
        outcomes.append(_judge(one, job, advance))
    return outcomes


class _Converter:
    """A target's process, and a fresh one after a crash; ends with the block."""

    def __init__(self, cancelled: Callable[[], bool]) -> None:
        self._cancelled = cancelled
        self._process: TargetProcess | None = None

    def __enter__(self) -> _Converter:
        return self

    def __exit__(self, *_: object) -> None:
        if self._process is not None:
            self._process.close(kill=self._cancelled())

    def process(self, cell: Cell) -> TargetProcess:
        """The process; all cells of a converter have one target and the same options."""
        if self._process is None or not self._process.alive:
            self._process = TargetProcess(cell.target, options=cell.options)
        return self._process


def _make(cell: Cell, job: Job, converter: _Converter) -> _Made:
    """Build a cell's bundle, or take up the unchanged one, and run its reference."""
    start, source = time.perf_counter(), job.source
    earlier = job.earlier.get(cell.name)
    if earlier is None:
        built, program = build(cell, source, job.request.out, converter.process(cell))
        job.results.keep_bundle(cell, source.calibration, built.seconds)
    else:
        audit = audit_of(converter.process(cell), earlier.bundle.artifact)
        built, program = reopen(earlier.bundle, source.checkpoint, audit)
        built = replace(built, seconds=earlier.seconds)
    assert job.pixels is not None, "a cell that is to be run has its photos"
    images = job.pixels.pick(job.yardstick.parity_rows())
    return _Made(
        built=built,
        comparison=compare_with(program, cell.exporter, job.yardstick, images),
        seconds=time.perf_counter() - start,
    )


def _judge(one: _Made, job: Job, advance: Callable[[int], None]) -> Verified | Row:
    """Run a bundle's artifact on every image."""
    start, cell = time.perf_counter(), one.built.cell
    try:
        verified = verify(
            one.built,
            one.comparison,
            job.yardstick,
            job.source.checkpoint.preprocessing,
            out=job.request.out,
            pixels=job.pixels,
            progress=advance,
        )
    except TinyVitEdgeError as error:
        return _failure(cell, error, job)
    job.results.keep_verified(verified)
    job.left.done(cell.name, one.seconds + time.perf_counter() - start)
    return verified


def _failure(cell: Cell, error: TinyVitEdgeError, job: Job) -> Row:
    job.left.done(cell.name, None, outcome="failed")
    # what went wrong went wrong in a temporary folder that is gone
    reason = re.sub(r"\.tmp-\w+", cell.name, str(error))
    return Row(target=cell.target, precision=cell.precision.name, status="failed", reason=reason)


class _Images:
    """The evaluation photos, decoded when they are first asked for."""

    def __init__(
        self, dataset: ImageDataset, checkpoint: Checkpoint, path: Path, display: QuietDisplay
    ) -> None:
        self._dataset, self._contract = dataset, checkpoint.preprocessing
        self._path, self._display = path, display
        self._pixels: Pixels | None = None

    def pixels(self) -> Pixels:
        if self._pixels is None:
            with self._display.track("decode photos", len(self._dataset)) as advance:
                self._pixels = prepare_pixels(
                    self._dataset, self._contract, self._path, progress=advance
                )
        return self._pixels

    def reference(self, module: nn.Module) -> FloatArray:
        """Logits (n, classes) of a PyTorch module."""
        pixels = self.pixels()
        with self._display.track(_REFERENCE, len(pixels)) as advance:
            return logits_of_pixels(module, pixels, progress=advance)


def _reference(
    checkpoint: Checkpoint, images: _Images, results: Results, left: TimeLeft
) -> FloatArray:
    """Logits of the float32 model, from an earlier run where they are known."""
    start = time.perf_counter()
    logits = results.reference()
    if logits is not None:
        left.done(_REFERENCE, None, outcome="unchanged")
        return logits
    logits = images.reference(reference_module(checkpoint.model))
    results.keep_reference(logits)
    left.done(_REFERENCE, time.perf_counter() - start)
    return logits


def _calibration(
    request: DeployRequest,
    checkpoint: Checkpoint,
    cells: Sequence[Cell],
    results: Results,
    left: TimeLeft,
    display: QuietDisplay,
) -> Calibration | None:
    """Ranges, from an earlier run where the same photos were asked in the same way."""
    precisions = [cell.precision for cell in cells]
    if not any(precision.calibrated for precision in precisions):
        return None
    start = time.perf_counter()
    if request.calibration is None and (known := results.calibration()) is not None:
        left.done(_CALIBRATION, None, outcome="unchanged")
        return known
    found = calibration_for(
        checkpoint, precisions, photos=_photos(request), ranges=request.calibration, display=display
    )
    if found is not None and request.calibration is None:
        results.keep_calibration(found)
    left.done(_CALIBRATION, time.perf_counter() - start)
    return found


def _time_left(
    request: DeployRequest, cells: Sequence[Cell], results: Results, display: QuietDisplay
) -> TimeLeft:
    names = [cell.name for cell in cells]
    calibrated = any(cell.precision.calibrated for cell in cells)
    at_a_time = min(_jobs(request), len({cell.target for cell in cells}))
    return TimeLeft(
        [
            _REFERENCE,
            *([_CALIBRATION] if calibrated else []),
            *names,
            TIMING,
            *([LINT] if request.lint else []),
        ],
        earlier=results.seconds(),
        parallel=dict.fromkeys(names, at_a_time),
        say=display.say,
    )


def _jobs(request: DeployRequest) -> int:
    return request.jobs or min(os.cpu_count() or 1, 4)


def _photos(request: DeployRequest) -> ChooseRequest | None:
    if request.calib is None:
        return None
    return ChooseRequest(
        photos=request.calib,
        images=request.calib_images,
        max_drop=request.max_drop,
        targets=tuple(request.targets),
    )
