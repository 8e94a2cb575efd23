"""Calibration: the range of every quantized layer's input and output, seen on real images.

The ranges, and the factors that even out channels first, are what `Calibration` holds and its file
keeps; `calibrate` finds them.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from copy import deepcopy
from dataclasses import dataclass, field, fields, replace
from pathlib import Path
from typing import Any, Protocol, get_args

import torch
from torch import Tensor, nn

from tinyvit_edge.errors import DataError, InputError
from tinyvit_edge.files import write_json
from tinyvit_edge.precision import PRECISIONS, LayerKind, Precision
from tinyvit_edge.preprocessing import Preprocessing
from tinyvit_edge.quantization.conditioning import apply_factors, factors_of
from tinyvit_edge.quantization.hooks import attached
from tinyvit_edge.quantization.influence import Place, logit_errors
from tinyvit_edge.quantization.qdq import QuantParams
from tinyvit_edge.quantization.ranges import METHODS, Histogram
from tinyvit_edge.quantization.tuned import Tuned, read_tuned, write_tuned

__all__ = [
    "AUTO",
    "Calibration",
    "CalibrationOptions",
    "LayerRanges",
    "calibrate",
    "evenly",
    "quantizable",
]

AUTO = "auto"

_SCHEMA_VERSION = 2
_JUDGED = 32  # images on which "auto" compares the rules: a backward pass each, and dear
_LEAST_CODED = 2048  # weights of a layer; coremltools' own tools start here, too
_DAMAGE = (OSError, AttributeError, LookupError, TypeError, ValueError, InputError)


@dataclass(frozen=True, slots=True, kw_only=True)
class LayerRanges:
    """Int8 parameters of one layer's input and output."""

    input: QuantParams
    output: QuantParams
    rules: tuple[str, str] = ("min-max", "min-max")
    """Which of `tinyvit_edge.quantization.ranges.METHODS` chose them."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Calibration:
    """Ranges of every layer that `w8a8` quantizes, by its name in the deployment form."""

    layers: Mapping[str, LayerRanges]
    images: int
    method: str = "min-max"
    """What was asked for: one rule for all tensors, or "auto"."""
    factors: Mapping[str, tuple[float, ...]] = field(default_factory=dict)
    """What the channels of a norm are divided by before they are quantized."""
    left_float: Mapping[str, str] | None = None
    """Layers that ``-mixed`` rows leave in float32, and why; None where nobody has chosen."""
    left_float_on: Mapping[str, Mapping[str, str]] = field(default_factory=dict)
    """The same for targets on which other layers are the cheapest to leave."""
    tuned: Tuned = field(default_factory=dict, compare=False, repr=False)
    """Weights that were trained for these ranges; a file of their own."""
    photos_sha256: str | None = None
    """`tinyvit_edge.data.fingerprint` of the photos; None where they did not come from files."""

    def on(self, target: str) -> Calibration:
        """The same with one target's choice of layers alone."""
        chosen = self.left_float_on.get(target, self.left_float)
        return replace(self, left_float=chosen, left_float_on={})

    def to_dict(self) -> dict[str, Any]:
        """As JSON values, for the manifest; without `tuned`."""
        return {
            "method": self.method,
            "images": self.images,
            "photos_sha256": self.photos_sha256,
            "layers": {
                name: {
                    "input": [ranges.input.scale, ranges.input.zero_point],
                    "output": [ranges.output.scale, ranges.output.zero_point],
                    "rules": list(ranges.rules),
                }
                for name, ranges in self.layers.items()
            },
            "factors": {name: list(values) for name, values in self.factors.items()},
            "left_float": None if self.left_float is None else dict(self.left_float),
            "left_float_on": {name: dict(layers) for name, layers in self.left_float_on.items()},
        }

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Calibration:
        """The inverse of `to_dict`; keys that older bundles lack take their defaults.

        Raises:
            AttributeError, LookupError, TypeError, ValueError: not what `to_dict` gives.
        """
        layers = {
            name: LayerRanges(
                input=QuantParams(scale=ends["input"][0], zero_point=ends["input"][1]),
                output=QuantParams(scale=ends["output"][0], zero_point=ends["output"][1]),
                rules=tuple(ends.get("rules", ("min-max", "min-max"))),
            )
            for name, ends in values["layers"].items()
        }
        left_float = values.get("left_float")
        return cls(
            layers=layers,
            images=values["images"],
            photos_sha256=values["photos_sha256"],
            method=values["method"],
            factors={name: tuple(map(float, f)) for name, f in values.get("factors", {}).items()},
            left_float=None if left_float is None else dict(left_float),
            left_float_on={
                name: dict(layers) for name, layers in values.get("left_float_on", {}).items()
            },
        )

    def write(self, path: Path, *, weights_sha256: str, preprocessing: Preprocessing) -> None:
        """Write a JSON file that `read` takes, with what the ranges are for.

        Trained weights go beside it, as ``<name>.tuned.safetensors``.
        """
        head = {
            "schema_version": _SCHEMA_VERSION,
            "weights_sha256": weights_sha256,
            "preprocessing": preprocessing.to_dict(),
        }
        values = head | self.to_dict()
        if self.tuned:
            beside = path.with_name(f"{path.stem}.tuned.safetensors")
            values["tuned"] = write_tuned(beside, self.tuned)
        write_json(path, values)

    @classmethod
    def read(cls, path: Path, *, weights_sha256: str, preprocessing: Preprocessing) -> Calibration:
        """Read a file of ranges.

        Args:
            path: the file.
            weights_sha256: of the weights that the ranges will be used for.
            preprocessing: the contract that they will be used with.

        Raises:
            InputError: missing, damaged, of another version, or calibrated for other weights or
                with another contract; or its trained weights are.
        """
        try:
            values = json.loads(path.read_text(encoding="utf-8"))
            version = values["schema_version"]
            if version != _SCHEMA_VERSION:
                raise InputError(f"schema version {version}, not {_SCHEMA_VERSION}")
            calibration = cls.from_dict(values)
            made_for = values["weights_sha256"]
            contract = Preprocessing.from_dict(values["preprocessing"])
        except _DAMAGE as error:
            raise InputError(
                f"{path}: not a file of ranges ({error}); write one with quantize ptq"
            ) from error
        if made_for != weights_sha256:
            raise InputError(f"{path}: calibrated for other weights; run quantize ptq on these")
        for name in (item.name for item in fields(Preprocessing)):
            then, now = getattr(contract, name), getattr(preprocessing, name)
            if then != now:
                raise InputError(
                    f"{path}: calibrated with preprocessing {name} {then}, and the weights are "
                    f"used with {now}; give quantize ptq the same --image-size and --preprocessing"
                )
        about = values.get("tuned")
        return (
            calibration
            if about is None
            else replace(calibration, tuned=read_tuned(path.parent, about))
        )


def quantizable(
    module: nn.Module, precision: Precision | None = None
) -> dict[str, nn.Linear | nn.Conv2d]:
    """Layers of a deployment form that can be quantized, by name; those of one precision."""
    kinds = get_args(LayerKind) if precision is None else precision.layers
    layers = {
        name: layer
        for name, layer in module.named_modules()
        if isinstance(layer, (nn.Linear, nn.Conv2d)) and _kind(name, layer) in kinds
    }
    if precision is None or not precision.coded:
        return layers
    return {name: layer for name, layer in layers.items() if _codable(layer, precision)}


def _kind(name: str, layer: nn.Linear | nn.Conv2d) -> LayerKind:
    if isinstance(layer, nn.Linear):
        return "linear"
    return "local-conv" if name.endswith(".local_conv") else "conv"


def _codable(layer: nn.Linear | nn.Conv2d, precision: Precision) -> bool:
    """Whether few bits pay: depthwise and other small layers hold hardly any of the weights."""
    weight = layer.weight
    depthwise = isinstance(layer, nn.Conv2d) and layer.groups > 1
    divides = weight.shape[1] % (precision.block or 1) == 0
    return not depthwise and divides and weight.numel() >= _LEAST_CODED


@dataclass(frozen=True, slots=True, kw_only=True)
class CalibrationOptions:
    """How ranges are chosen.

    Attributes:
        method: a rule of `tinyvit_edge.quantization.ranges.METHODS` for all tensors, or "auto":
            for each tensor the rule whose range harms the logits least.
        strength: of `tinyvit_edge.quantization.conditioning`, 0..1; None leaves it out.
    """

    method: str = AUTO
    strength: float | None = None

    def __post_init__(self) -> None:
        if self.method not in (*METHODS, AUTO):
            raise InputError(
                f"unknown calibration method {self.method!r}: choose from "
                f"{', '.join((*METHODS, AUTO))}"
            )
        if self.strength is not None and not 0 <= self.strength <= 1:
            raise InputError(f"--conditioning {self.strength}: give a number from 0 to 1")

    def work(self, images: int) -> int:
        """How many images `calibrate` goes through in all its passes over `images`."""
        whole = 1 + (self.strength is not None) + (self.method != "min-max")
        return whole * images + (min(images, _JUDGED) if self.method == AUTO else 0)


def calibrate(
    module: nn.Module,
    batches: Sequence[Tensor],
    options: CalibrationOptions | None = None,
    *,
    precision: Precision = PRECISIONS["w8a8"],
    progress: Callable[[int], None] | None = None,
) -> Calibration:
    """Run a float deployment form over images and choose the range of each layer.

    Args:
        module: float deployment form.
        batches: normalised images (B, 3, S, S) float32.
        options: how; the default ones when left out.
        precision: the row whose layers get ranges.
        progress: called with the number of images in each batch done; `options.work` in all.

    Raises:
        DataError: no image, or a layer gives a value that is not finite.
    """
    options = options or CalibrationOptions()
    method = options.method
    if not batches:
        raise DataError("calibration got no image: give a folder of photos with --calib")
    factors: Mapping[str, tuple[float, ...]] = {}
    if options.strength is not None:
        factors = factors_of(module, _told(batches, progress), options.strength)
        module = deepcopy(module)
        apply_factors(module, factors)
    names = list(quantizable(module, precision))
    places: list[Place] = [(name, side) for name in names for side in ("input", "output")]
    extremes = {place: _MinMax() for place in places}
    _observe(module, _told(batches, progress), extremes)
    histograms = {place: Histogram.over(*seen.range(place)) for place, seen in extremes.items()}
    if method != "min-max":
        _observe(module, _told(batches, progress), histograms)
    if method == AUTO:
        chosen = _least_harmful(module, batches, histograms, progress)
    else:
        chosen = {place: (method, METHODS[method](seen)) for place, seen in histograms.items()}
    return Calibration(
        layers={
            name: LayerRanges(
                input=chosen[name, "input"][1],
                output=chosen[name, "output"][1],
                rules=(chosen[name, "input"][0], chosen[name, "output"][0]),
            )
            for name in names
        },
        images=sum(map(len, batches)),
        method=method,
        factors=factors,
    )


def _least_harmful(
    module: nn.Module,
    batches: Sequence[Tensor],
    histograms: Mapping[Place, Histogram],
    progress: Callable[[int], None] | None,
) -> dict[Place, tuple[str, QuantParams]]:
    tried = {
        place: {name: rule(seen) for name, rule in METHODS.items()}
        for place, seen in histograms.items()
    }
    errors = logit_errors(
        module,
        evenly(batches, _JUDGED),
        {place: list(by.values()) for place, by in tried.items()},
        progress=progress,
    )
    # Layers that read one tensor have the same candidates. They choose together, so that a runtime
    # quantizes it once: attention's q, k and v would each round their own copy.
    together: dict[tuple[str, tuple[QuantParams, ...]], list[float]] = {}
    for place, by_name in tried.items():
        shared = together.setdefault((place[1], tuple(by_name.values())), [0.0] * len(by_name))
        shared[:] = map(sum, zip(shared, errors[place], strict=True))
    chosen = {}
    for place, by_name in tried.items():
        shared = together[place[1], tuple(by_name.values())]
        chosen[place] = list(by_name.items())[min(range(len(shared)), key=shared.__getitem__)]
    return chosen


def evenly(batches: Sequence[Tensor], count: int) -> list[Tensor]:
    """At most `count` images of batches (B, ...), evenly spaced: photos come class by class."""
    images = torch.cat(list(batches))
    if len(images) <= count:
        return list(batches)
    return [torch.stack([images[i * len(images) // count] for i in range(count)])]


def _told(batches: Sequence[Tensor], progress: Callable[[int], None] | None) -> Iterator[Tensor]:
    for batch in batches:
        yield batch
        if progress:
            progress(len(batch))


class _Observer(Protocol):
    def see(self, x: Tensor, /) -> None: ...


def _observe(
    module: nn.Module, batches: Iterable[Tensor], observers: Mapping[Place, _Observer]
) -> None:
    """Show every layer's input and output to its observers."""

    def watch(name: str) -> Callable[..., None]:
        def hook(_: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> None:
            observers[name, "input"].see(inputs[0])
            observers[name, "output"].see(output)

        return hook

    names = dict.fromkeys(name for name, _ in observers)
    handles = [module.get_submodule(name).register_forward_hook(watch(name)) for name in names]
    with attached(handles), torch.inference_mode():
        for batch in batches:
            module(batch)


class _MinMax:
    """Running minimum and maximum of one tensor."""

    def __init__(self) -> None:
        self.low, self.high = math.inf, -math.inf
        self.finite = True

    def see(self, x: Tensor) -> None:
        low, high = (float(end) for end in torch.aminmax(x))
        # Python's min and max pass over a NaN that comes second
        self.finite = self.finite and math.isfinite(low) and math.isfinite(high)
        self.low, self.high = min(self.low, low), max(self.high, high)

    def range(self, place: Place) -> tuple[float, float]:
        if not self.finite:
            raise DataError(f"layer {place[0]} gives values that are not finite on these images")
        return self.low, self.high
