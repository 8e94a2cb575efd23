"""Layers whose weights have fewer than 8 bits: codes, and what turns them into weights.

Like the layers of `tinyvit_edge.quantization.qdq` they are modules that `torch.export` turns into a
graph with one operator for the weight. PT2E has none for these forms, so the two operators here
are this package's own, and exporters translate them.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from tinyvit_edge.quantization.qdq import geometry, product

__all__ = ["Coded", "CodedLayer", "coded_tensors", "coded_weights"]


@torch.library.custom_op("tinyvit_edge::table_weight", mutates_args=())
def table_weight(codes: Tensor, table: Tensor) -> Tensor:
    """Look codes (out, ...) uint8 up in a table (entries,) float32."""
    return table[codes.long()]


@torch.library.custom_op("tinyvit_edge::block_weight", mutates_args=())
def block_weight(codes: Tensor, scale: Tensor) -> Tensor:
    """Multiply codes (out, in, ...) int8 by scales (out, in / block, ...) float32."""
    return codes * scale.repeat_interleave(codes.shape[1] // scale.shape[1], 1)


@table_weight.register_fake
def _(codes: Tensor, table: Tensor) -> Tensor:
    return torch.empty_like(codes, dtype=table.dtype)


@block_weight.register_fake
def _(codes: Tensor, scale: Tensor) -> Tensor:
    return torch.empty_like(codes, dtype=scale.dtype)


@dataclass(frozen=True, slots=True, kw_only=True)
class Coded:
    """A layer's weight in few bits, and the bias that goes with it."""

    codes: Tensor
    """Of the weight's shape: uint8 indices into `table`, or int8 multiples of `scale`."""
    bias: Tensor
    """(out,) float32."""
    table: Tensor | None = None
    """(2 ** bits,) float32, of values that float16 holds exactly."""
    scale: Tensor | None = None
    """(out, in / block, ...) float32, of values that float16 holds exactly."""

    def fits(self, weight: Tensor, *, block: int | None, bits: int) -> bool:
        """Whether it can stand for a weight (out, in, ...) at such a precision."""
        sound = self.codes.shape == weight.shape and self.bias.shape == weight.shape[:1]
        if block is None:
            table = self.table
            return sound and table is not None and len(table) == 2**bits > int(self.codes.max())
        scale = (weight.shape[0], weight.shape[1] // block, *weight.shape[2:])
        return sound and self.scale is not None and self.scale.shape == scale

    def weight(self) -> Tensor:
        """The weight, float32."""
        if self.table is not None:
            looked_up: Tensor = torch.ops.tinyvit_edge.table_weight(self.codes, self.table)
            return looked_up
        scaled: Tensor = torch.ops.tinyvit_edge.block_weight(self.codes, self.scale)
        return scaled


class CodedLayer(nn.Module):
    """A Linear or convolution with a `Coded` weight, computed in floating point."""

    codes: Tensor
    bias: Tensor
    table: Tensor | None
    scale: Tensor | None

    def __init__(self, layer: nn.Linear | nn.Conv2d, coded: Coded, *, bits: int) -> None:
        super().__init__()
        self.bits = bits
        for name in ("codes", "bias", "table", "scale"):
            self.register_buffer(name, getattr(coded, name))
        self.conv = geometry(layer)

    @property
    def coded(self) -> Coded:
        """What the layer holds."""
        return Coded(codes=self.codes, bias=self.bias, table=self.table, scale=self.scale)

    def forward(self, x: Tensor) -> Tensor:
        """Map (..., in) to (..., out), or (B, in, H, W) to (B, out, H', W')."""
        return product(x, self.coded.weight(), self.bias, self.conv)


def coded_tensors(module: nn.Module) -> dict[str, Tensor]:
    """All tensors of a module's coded layers, as ``<layer>.<field>``; `coded_weights` undoes it."""
    return {
        f"{name}.{key}": tensor.contiguous()
        for name, layer in module.named_modules()
        if isinstance(layer, CodedLayer)
        for key, tensor in layer.named_buffers()
    }


def coded_weights(tensors: Mapping[str, Tensor]) -> dict[str, Coded]:
    """What `coded_tensors` came from, by layer.

    Raises:
        TypeError: a field is missing or unknown.
    """
    by_layer: dict[str, dict[str, Tensor]] = {}
    for name, tensor in tensors.items():
        layer, _, key = name.rpartition(".")
        by_layer.setdefault(layer, {})[key] = tensor
    return {layer: Coded(**found) for layer, found in by_layer.items()}
