"""From a folder of photos to what precisions need of it: ranges, the layers that ``-mixed`` rows
leave out, and the moments that weights of few bits are rounded by.

The photos that ranges come from are not those that the loss is measured on, though both come from
the same folder: neither may be what the artifact is reported on.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from tinyvit_edge.data import (
    SAMPLE_SIZE,
    ImageDataset,
    at_a_time,
    fingerprint,
    load_batches,
    scan_folder,
)
from tinyvit_edge.deployment import FormOptions, deployment_form
from tinyvit_edge.errors import DataError, InputError
from tinyvit_edge.exporters import TARGETS, exporter
from tinyvit_edge.precision import MAX_DROP, Precision
from tinyvit_edge.quantization.calibration import (
    Calibration,
    CalibrationOptions,
    calibrate,
    evenly,
    quantizable,
)
from tinyvit_edge.quantization.moments import Moments, collect_moments
from tinyvit_edge.quantization.ptq import quantize
from tinyvit_edge.quantization.sensitivity import (
    LayerSensitivity,
    measure_layers,
    ranked,
    smallest_set,
)

if TYPE_CHECKING:
    from tinyvit_edge.checkpoint import Checkpoint
    from tinyvit_edge.console import QuietDisplay

__all__ = [
    "ChooseRequest",
    "calibration_for",
    "choose",
    "moments_for",
    "refuse_both",
    "sensitivities",
]

_FEW = 32
_PROBES = 16
_HELD_OUT = 512


@dataclass(frozen=True, slots=True, kw_only=True)
class ChooseRequest:
    """What `choose` is asked for."""

    photos: Path
    images: int = SAMPLE_SIZE
    """Evenly spaced images of `photos` that ranges come from."""
    options: CalibrationOptions = field(default_factory=CalibrationOptions)
    mixed: Precision | None = None
    """A ``-mixed`` row, where layers to leave in float32 are wanted."""
    max_drop: float = MAX_DROP
    """Its budget: loss of top-1 on images that ranges do not come from, in 0..1."""
    targets: tuple[str, ...] = tuple(TARGETS)
    """Where it will run: what a layer in float32 costs differs."""

    def __post_init__(self) -> None:
        if not 0 <= self.max_drop <= 1:
            raise InputError(f"--max-drop {100 * self.max_drop:g}: give points, from 0 to 100")


def choose(checkpoint: Checkpoint, request: ChooseRequest, display: QuietDisplay) -> Calibration:
    """Calibrate a checkpoint's deployment form on photos.

    Raises:
        DataError: an image cannot be read, or the model gives values that are not finite.
        InputError: a mixed row is asked for, and no photo is left to measure the loss on.
    """
    everything = _scan(request.photos, checkpoint.labels, display)
    photos = everything.subset(request.images)
    held_out = _rest(everything, photos, request, display) if request.mixed else None
    form = deployment_form(checkpoint.model, image_size=checkpoint.preprocessing.size)
    batches = list(_batches(checkpoint, photos))
    found = _ranges(form, photos, batches, request, display)
    if request.mixed is None or held_out is None:
        return found
    layers = _measure(form, request.mixed, found, batches, display)
    drop = _drop(form, request.mixed, found, _others(checkpoint, form, held_out), display)
    wanted = {target: _costs(exporter(target).form) for target in request.targets}
    chosen = {
        costs: _leave_float(layers, costs, drop, request.max_drop)
        for costs in dict.fromkeys(wanted.values())
    }
    usual = chosen.get(FormOptions(), next(iter(chosen.values())))
    by_target = {target: chosen[costs] for target, costs in wanted.items()}
    return replace(
        found,
        left_float=usual,
        left_float_on={target: names for target, names in by_target.items() if names != usual},
    )


def sensitivities(
    checkpoint: Checkpoint, request: ChooseRequest, precision: Precision, display: QuietDisplay
) -> tuple[LayerSensitivity, ...]:
    """Calibrate, and measure what quantizing each layer costs, in the form's order.

    The photos are those that the search for a mixed row measures on.

    Raises:
        DataError: an image cannot be read, or the model gives values that are not finite.
    """
    photos = scan_folder(request.photos).subset(request.images)
    form = deployment_form(checkpoint.model, image_size=checkpoint.preprocessing.size)
    batches = list(_batches(checkpoint, photos))
    found = _ranges(form, photos, batches, request, display)
    return _measure(form, precision, found, batches, display)


def calibration_for(
    checkpoint: Checkpoint,
    precisions: Collection[Precision],
    *,
    photos: ChooseRequest | None,
    ranges: Path | None,
    display: QuietDisplay,
) -> Calibration | None:
    """What some precisions need: from a file of ranges, or chosen on photos; None for none.

    Raises:
        DataError: see `choose`.
        InputError: see `choose`; or the file's ranges are not of this checkpoint, or do not do
            for one of the precisions.
    """
    wanted = [precision for precision in precisions if precision.calibrated]
    if not wanted:
        return None
    if ranges is None:
        assert photos is not None  # the callers refuse a request with neither, before any work
        mixed = next((precision for precision in wanted if precision.mixed), None)
        return choose(checkpoint, replace(photos, mixed=mixed), display)
    found = Calibration.read(
        ranges, weights_sha256=checkpoint.sha256, preprocessing=checkpoint.preprocessing
    )
    form = deployment_form(checkpoint.model, image_size=checkpoint.preprocessing.size)
    for precision in dict.fromkeys(wanted):
        quantize(form, precision, calibration=found)  # refuses ranges that do not fit, now
    return found


def moments_for(
    checkpoint: Checkpoint,
    precisions: Collection[Precision],
    *,
    photos: ChooseRequest | None,
    display: QuietDisplay,
) -> Moments | None:
    """What precisions with weights of few bits need of photos; None where there is none such.

    Raises:
        DataError: an image cannot be read, or the model gives values that are not finite.
    """
    wanted = [precision for precision in precisions if precision.coded]
    if not wanted:
        return None
    assert photos is not None  # the callers refuse a request without, before any work
    dataset = scan_folder(photos.photos).subset(photos.images)
    _warn_of_few(dataset, display)
    form = deployment_form(checkpoint.model, image_size=checkpoint.preprocessing.size)
    names = {name for precision in wanted for name in quantizable(form, precision)}
    with display.track("moments of layers' inputs", len(dataset)) as advance:
        layers = collect_moments(form, sorted(names), _batches(checkpoint, dataset, advance))
    return Moments(layers=layers, images=len(dataset), photos_sha256=fingerprint(dataset))


def refuse_both(photos: Path | None, ranges: Path | None) -> None:
    """Refuse photos and ranges together.

    Raises:
        InputError: both are given.
    """
    if photos is not None and ranges is not None:
        raise InputError(
            f"--calib {photos} and --calibration {ranges}: give photos or ranges, not both"
        )


def _ranges(
    form: nn.Module,
    photos: ImageDataset,
    batches: Sequence[Tensor],
    request: ChooseRequest,
    display: QuietDisplay,
) -> Calibration:
    _warn_of_few(photos, display)
    with display.track("calibrate", request.options.work(len(photos))) as advance:
        found = calibrate(form, batches, request.options, progress=advance)
    return replace(found, photos_sha256=fingerprint(photos))


def _warn_of_few(photos: ImageDataset, display: QuietDisplay) -> None:
    if len(photos) < _FEW:
        display.say(
            f"warning: {photos.root} has {len(photos)} photos to calibrate on; "
            f"{_FEW} or more are better"
        )


def _scan(photos: Path, labels: Sequence[str], display: QuietDisplay) -> ImageDataset:
    """With labels where the folders have the classes' names; ranges need none."""
    try:
        return scan_folder(photos, labels)
    except DataError as error:
        found = scan_folder(photos)
        display.say(f"note: {error}; these photos are used without labels")
        return found


def _batches(
    checkpoint: Checkpoint,
    photos: ImageDataset,
    progress: Callable[[int], None] = lambda _: None,
) -> Iterator[Tensor]:
    contract = checkpoint.preprocessing
    for images, _ in load_batches(photos, contract, at_a_time(contract.size)):
        yield torch.from_numpy(images)
        progress(len(images))


def _rest(
    everything: ImageDataset, used: ImageDataset, request: ChooseRequest, display: QuietDisplay
) -> ImageDataset:
    """Photos that give no ranges, to measure the loss on."""
    taken = set(used.samples)
    samples = tuple(sample for sample in everything.samples if sample not in taken)
    if not samples:
        raise InputError(
            f"{everything.root}: all {len(used)} photos give ranges, and none is left to measure"
            " the loss on: give more, or a smaller --calib-images"
        )
    rest = replace(everything, samples=samples).subset(_HELD_OUT)
    if len(rest) * request.max_drop < 1:
        display.say(
            f"warning: {everything.root} leaves {len(rest)} photos to measure the loss on, and one"
            f" of them is more than the budget of {100 * request.max_drop:g} points"
        )
    return rest


def _measure(
    form: nn.Module,
    precision: Precision,
    calibration: Calibration,
    batches: Sequence[Tensor],
    display: QuietDisplay,
) -> tuple[LayerSensitivity, ...]:
    probes = evenly(batches, _PROBES)
    runs = 2 * len(quantizable(form, precision)) + 2
    with display.track("sensitivity of layers", runs) as advance:
        return measure_layers(form, precision, calibration, probes, progress=advance)


def _costs(form: FormOptions) -> FormOptions:
    """What of a target's form decides which layers to leave; the same for targets that agree."""
    return FormOptions(linear_outputs=form.linear_outputs, float_conv_cost=form.float_conv_cost)


@dataclass(frozen=True, slots=True)
class _Others:
    """Photos that the loss is measured on, and what float32 makes of them."""

    batches: list[Tensor]
    exact: NDArray[np.int64]
    """Classes that float32 chooses."""
    wanted: NDArray[np.int64]
    """Classes that are right; those of float32 where there are no labels."""


def _others(checkpoint: Checkpoint, form: nn.Module, photos: ImageDataset) -> _Others:
    batches = list(_batches(checkpoint, photos))
    exact = _classes(form, batches)
    labels = [sample.label for sample in photos.samples]
    return _Others(batches, exact, np.array(labels) if photos.labelled else exact)


def _drop(
    form: nn.Module,
    precision: Precision,
    calibration: Calibration,
    others: _Others,
    display: QuietDisplay,
) -> Callable[[frozenset[str], FormOptions], float]:
    """A function that measures the loss of top-1 with some layers left out, in 0..1."""

    def drop(names: frozenset[str], costs: FormOptions) -> float:
        left = replace(calibration, left_float=dict.fromkeys(names, ""))
        module = quantize(form, precision, calibration=left, linear_outputs=costs.linear_outputs)
        found = _classes(module, others.batches)
        lost = float((others.exact == others.wanted).mean() - (found == others.wanted).mean())
        display.say(f"{len(names)} layers in float32: top-1 drop {100 * lost:.2f} points")
        return lost

    return drop


def _leave_float(
    layers: Sequence[LayerSensitivity],
    costs: FormOptions,
    drop: Callable[[frozenset[str], FormOptions], float],
    max_drop: float,
) -> dict[str, str]:
    """The layers to leave, with reasons, where layers in float32 cost so much."""
    order = [layer.name for layer in ranked(layers, conv_cost=costs.float_conv_cost)]
    names = smallest_set(order, lambda some: drop(some, costs), max_drop)
    total = sum(layer.macs for layer in layers)
    return {
        layer.name: (
            f"{100 * layer.gain:.0f} % of the quantization noise at"
            f" {100 * layer.macs / total:.1f} % of the multiply-accumulates"
        )
        for layer in layers
        if layer.name in names
    }


def _classes(module: nn.Module, batches: Sequence[Tensor]) -> NDArray[np.int64]:
    with torch.inference_mode():
        return np.concatenate([module(batch).argmax(1).numpy() for batch in batches])
