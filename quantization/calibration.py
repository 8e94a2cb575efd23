"""Calibration: the range of every quantized layer's input and output, seen on real images."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, fields
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from tinyvit_edge.errors import DataError, InputError
from tinyvit_edge.files import write_json
from tinyvit_edge.preprocessing import Preprocessing
from tinyvit_edge.quantization.qdq import QuantParams

if TYPE_CHECKING:
    from tinyvit_edge.precision import Precision

__all__ = ["Calibration", "LayerRanges", "calibrate", "quantizable"]

_SCHEMA_VERSION = 1
_DAMAGE = (OSError, AttributeError, LookupError, TypeError, ValueError, InputError)


@dataclass(frozen=True, slots=True, kw_only=True)
class LayerRanges:
    """Int8 parameters of one layer's input and output."""

    input: QuantParams
    output: QuantParams


@dataclass(frozen=True, slots=True, kw_only=True)
class Calibration:
    """Ranges of every quantizable layer, by its name in the deployment form."""

    layers: Mapping[str, LayerRanges]
    images: int
    photos_sha256: str | None = None
    """`tinyvit_edge.data.fingerprint` of the photos; None where they did not come from files."""

    def to_dict(self) -> dict[str, Any]:
        """As JSON values, for the manifest."""
        return {
            "method": "min-max",
            "images": self.images,
            "photos_sha256": self.photos_sha256,
            "layers": {
                name: {
                    "input": [ranges.input.scale, ranges.input.zero_point],
                    "output": [ranges.output.scale, ranges.output.zero_point],
                }
                for name, ranges in self.layers.items()
            },
        }

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Calibration:
        """The inverse of `to_dict`.

        Raises:
            AttributeError, LookupError, TypeError, ValueError: not what `to_dict` gives.
        """
        layers = {
            name: LayerRanges(
                input=QuantParams(scale=ends["input"][0], zero_point=ends["input"][1]),
                output=QuantParams(scale=ends["output"][0], zero_point=ends["output"][1]),
            )
            for name, ends in values["layers"].items()
        }
        return cls(layers=layers, images=values["images"], photos_sha256=values["photos_sha256"])

    def write(self, path: Path, *, weights_sha256: str, preprocessing: Preprocessing) -> None:
        """Write a JSON file that `read` takes, with what the ranges are for."""
        head = {
            "schema_version": _SCHEMA_VERSION,
            "weights_sha256": weights_sha256,
            "preprocessing": preprocessing.to_dict(),
        }
        write_json(path, head | self.to_dict())

    @classmethod
    def read(cls, path: Path, *, weights_sha256: str, preprocessing: Preprocessing) -> Calibration:
        """Read a file of ranges.

        Args:
            path: the file.
            weights_sha256: of the weights that the ranges will be used for.
            preprocessing: the contract that they will be used with.

        Raises:
            InputError: missing, damaged, of another version, or calibrated for other weights or
                with another contract.
        """
        try:
            values = json.loads(path.read_text(encoding="utf-8"))
            calibration = cls.from_dict(values)
            version, made_for = values["schema_version"], values["weights_sha256"]
            contract = Preprocessing.from_dict(values["preprocessing"])
        except _DAMAGE as error:
            raise InputError(
                f"{path}: not a file of ranges ({error}); write one with quantize ptq"
            ) from error
        if version != _SCHEMA_VERSION:
            raise InputError(f"{path}: schema version {version} is not {_SCHEMA_VERSION}")
        if made_for != weights_sha256:
            raise InputError(f"{path}: calibrated for other weights; run quantize ptq on these")
        for name in (field.name for field in fields(Preprocessing)):
            then, now = getattr(contract, name), getattr(preprocessing, name)
            if then != now:
                raise InputError(
                    f"{path}: calibrated with preprocessing {name} {then}, and the weights are "
                    f"used with {now}; give quantize ptq the same --image-size and --preprocessing"
                )
        return calibration


def quantizable(
    module: nn.Module, precision: Precision | None = None
) -> dict[str, nn.Linear | nn.Conv2d]:
    """Layers of a deployment form that can be quantized, by name; those of one precision."""
    kinds = ("linear", "conv") if precision is None else precision.layers
    return {
        name: layer
        for name, layer in module.named_modules()
        if (isinstance(layer, nn.Linear) and "linear" in kinds)
        or (isinstance(layer, nn.Conv2d) and "conv" in kinds)
    }


def calibrate(
    module: nn.Module,
    batches: Iterable[Tensor],
    *,
    progress: Callable[[int], None] | None = None,
) -> Calibration:
    """Run a float deployment form over images and take the min-max range of each layer.

    Args:
        module: float deployment form.
        batches: normalised images (B, 3, S, S) float32.
        progress: called with the number of images in each batch done.

    Raises:
        DataError: no image, or a layer gives a value that is not finite.
    """
    observers = {name: (_MinMax(), _MinMax()) for name in quantizable(module)}
    hooks = [
        module.get_submodule(name).register_forward_hook(_observe(*pair))
        for name, pair in observers.items()
    ]
    images = 0
    try:
        with torch.inference_mode():
            for batch in batches:
                module(batch)
                images += len(batch)
                if progress:
                    progress(len(batch))
    finally:
        for hook in hooks:
            hook.remove()
    if not images:
        raise DataError("calibration got no image: give a folder of photos with --calib")
    layers = {
        name: LayerRanges(input=before.params(name), output=after.params(name))
        for name, (before, after) in observers.items()
    }
    return Calibration(layers=layers, images=images)


def _observe(before: _MinMax, after: _MinMax) -> Callable[..., None]:
    def hook(_: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> None:
        before.see(inputs[0])
        after.see(output)

    return hook


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

    def params(self, name: str) -> QuantParams:
        if not self.finite:
            raise DataError(f"layer {name} gives values that are not finite on these images")
        return QuantParams.from_range(self.low, self.high)
