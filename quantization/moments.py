"""Moments of every layer's input: which directions of an error in the weights matter."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tinyvit_edge.errors import DataError
from tinyvit_edge.quantization.hooks import attached

__all__ = ["InputMoments", "Moments", "collect_moments", "rows_of", "unrows"]


@dataclass(frozen=True, slots=True, kw_only=True)
class InputMoments:
    """Of one layer's input rows: what one output element is a product with."""

    second: Tensor
    """Mean of x x^T, (in, in) float64."""
    mean: Tensor
    """(in,) float64."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Moments:
    """Of the layers of a deployment form, by name."""

    layers: Mapping[str, InputMoments]
    images: int
    photos_sha256: str | None = None
    """`tinyvit_edge.data.fingerprint` of the photos; None where they did not come from files."""


def collect_moments(
    module: nn.Module, names: Iterable[str], batches: Iterable[Tensor]
) -> dict[str, InputMoments]:
    """Run a float deployment form over images and take the moments of some layers' inputs.

    Args:
        module: float deployment form.
        names: its layers; no grouped convolutions.
        batches: normalised images (B, 3, S, S) float32.

    Raises:
        DataError: no image, or a layer's input is not finite.
    """
    sums = {name: _Sums() for name in names}

    def watch(name: str, layer: nn.Module) -> Callable[..., None]:
        def hook(_: nn.Module, inputs: tuple[Tensor, ...]) -> None:
            sums[name].add(_input_rows(layer, inputs[0]))

        return hook

    layers = {name: module.get_submodule(name) for name in sums}
    hooks = [layer.register_forward_pre_hook(watch(name, layer)) for name, layer in layers.items()]
    with attached(hooks), torch.inference_mode():
        for batch in batches:
            module(batch)
    return {name: total.moments(name) for name, total in sums.items()}


def rows_of(weight: Tensor) -> Tensor:
    """A weight (out, in) or (out, in, kh, kw) as rows (out, kh * kw * in), inputs innermost."""
    return weight.flatten(1) if weight.ndim == 2 else weight.permute(0, 2, 3, 1).flatten(1)


def unrows(rows: Tensor, like: Tensor) -> Tensor:
    """The inverse of `rows_of`, for a weight whose inputs may have shrunk by a whole factor."""
    if like.ndim == 2:
        return rows
    out, _, height, width = like.shape
    return rows.reshape(out, height, width, -1).permute(0, 3, 1, 2).contiguous()


def _input_rows(layer: nn.Module, x: Tensor) -> Tensor:
    """(rows, kh * kw * in), in the order of `rows_of`."""
    if isinstance(layer, nn.Conv2d):
        assert layer.groups == 1
        assert isinstance(layer.padding, tuple)
        taps = layer.kernel_size[0] * layer.kernel_size[1]
        patches = F.unfold(x, layer.kernel_size, layer.dilation, layer.padding, layer.stride)
        batch, _, places = patches.shape
        patches = patches.reshape(batch, -1, taps, places).permute(0, 3, 2, 1)
        return patches.reshape(batch * places, -1)
    return x.reshape(-1, x.shape[-1])


class _Sums:
    def __init__(self) -> None:
        self.second: Tensor | float = 0.0
        self.first: Tensor | float = 0.0
        self.rows = 0

    def add(self, rows: Tensor) -> None:
        self.second = self.second + (rows.T @ rows).double()
        self.first = self.first + rows.sum(0).double()
        self.rows += len(rows)

    def moments(self, name: str) -> InputMoments:
        if not isinstance(self.second, Tensor) or not isinstance(self.first, Tensor):
            raise DataError("no image to take moments of: give a folder of photos with --calib")
        if not bool(self.second.isfinite().all()):
            raise DataError(
                f"layer {name} gets values that are not finite on the photos of --calib: check "
                "the weights"
            )
        return InputMoments(second=self.second / self.rows, mean=self.first / self.rows)
