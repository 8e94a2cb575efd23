"""Quantized layers: what a Linear or convolution becomes, in PT2E's quantize/dequantize form.

A quantized deployment module is an ordinary module whose Linear and convolution layers have been
replaced by the ones below. `torch.export` of it gives the graph that PT2E's `convert` would
give (the ``quantized_decomposed`` operators), which ExecuTorch, ONNX (QDQ), LiteRT and Core ML
each know how to lower; run eagerly, it is the same-precision reference of all four. So one set of
scales and zero points, chosen once, is what every artifact carries.

Weights are symmetric per output channel in -127..127; activations are affine per tensor in
-128..127; biases beside int8 activations are whole multiples of input scale times weight scale;
attention biases are symmetric per table.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

import torch
import torch.ao.quantization.fx._decomposed
import torch.nn.functional as F
from torch import Tensor, nn

from tinyvit_edge.attention import AttentionBias, expand_biases

__all__ = [
    "DynamicLinear",
    "Int8AttentionBias",
    "QuantParams",
    "StaticLayer",
    "WeightOnlyLayer",
    "dequantized",
    "geometry",
    "product",
    "quantize_weight",
    "quantize_with_bias",
]

_ops = torch.ops.quantized_decomposed
_ACT_MIN, _ACT_MAX, _WEIGHT_MAX = -128, 127, 127
_BIAS_MAX = 2**30


@dataclass(frozen=True, slots=True, kw_only=True)
class QuantParams:
    """Affine int8 parameters of one tensor: real = scale * (q - zero_point)."""

    scale: float
    zero_point: int

    def __post_init__(self) -> None:
        if not self.scale > 0.0:
            raise ValueError(f"scale must be positive, got {self.scale}")
        if not _ACT_MIN <= self.zero_point <= _ACT_MAX:
            raise ValueError(f"zero point must be in -128..127, got {self.zero_point}")

    @classmethod
    def from_range(cls, low: float, high: float) -> QuantParams:
        """Parameters that cover [low, high], widened to hold zero exactly.

        A range of zero, or too narrow for a normal float32 scale, gets scale 1.
        """
        low, high = min(low, 0.0), max(high, 0.0)
        # a float32 scale, because that is what every artifact stores
        scale = float(torch.tensor((high - low) / (_ACT_MAX - _ACT_MIN), dtype=torch.float32))
        if scale < torch.finfo(torch.float32).tiny:  # its inverse would overflow
            return cls(scale=1.0, zero_point=0)
        zero_point = round(_ACT_MIN - low / scale)
        return cls(scale=scale, zero_point=min(max(zero_point, _ACT_MIN), _ACT_MAX))

    def quantize(self, x: Tensor) -> Tensor:
        """Float tensor to int8, any shape."""
        out: Tensor = _ops.quantize_per_tensor.default(
            x, self.scale, self.zero_point, _ACT_MIN, _ACT_MAX, torch.int8
        )
        return out

    def dequantize(self, x: Tensor) -> Tensor:
        """Int8 tensor to float32, any shape."""
        out: Tensor = _ops.dequantize_per_tensor.default(
            x, self.scale, self.zero_point, _ACT_MIN, _ACT_MAX, torch.int8
        )
        return out


def quantize_weight(weight: Tensor, *, least_scale: Tensor | None = None) -> tuple[Tensor, Tensor]:
    """Quantize a weight (out, ...) to int8 with one symmetric scale an output channel.

    Args:
        weight: float32 (out, ...).
        least_scale: (out,), a lower bound of each scale.

    Returns:
        The int8 weight (out, ...) and its scales (out,) float32. A channel of zeros has scale 1.
    """
    peak = weight.abs().amax(tuple(range(1, weight.ndim)))  # (out,)
    scale = torch.where(peak > 0, peak / _WEIGHT_MAX, torch.ones_like(peak))
    if least_scale is not None:
        scale = torch.maximum(scale, least_scale)
    quantized = torch.round(weight / _per_channel(scale, weight.ndim))
    return quantized.clamp(-_WEIGHT_MAX, _WEIGHT_MAX).to(torch.int8), scale


def quantize_with_bias(
    weight: Tensor, bias: Tensor, input_scale: float
) -> tuple[Tensor, Tensor, Tensor]:
    """Quantize a weight (out, ...) and round its bias (out,) for an int8 input of that scale.

    Runtimes with int8 inputs hold the bias in int32, in units of input scale times weight scale.
    Rounding it here makes them exact; a lower bound on the scale keeps the bias of a channel with
    hardly any weight from overflowing.

    Returns:
        The int8 weight, its scales (out,) float32, and the bias float32.
    """
    least = bias.abs() / (input_scale * _BIAS_MAX)
    quantized, scale = quantize_weight(weight, least_scale=least)
    unit = input_scale * scale
    return quantized, scale, torch.round(bias / unit) * unit


def geometry(layer: nn.Linear | nn.Conv2d) -> tuple[Any, ...] | None:
    """Stride, padding, dilation and groups of a convolution; None for a Linear."""
    if isinstance(layer, nn.Linear):
        return None
    return (layer.stride, layer.padding, layer.dilation, layer.groups)


def product(x: Tensor, weight: Tensor, bias: Tensor, conv: tuple[Any, ...] | None) -> Tensor:
    """A Linear layer, or a convolution of that `geometry`."""
    if conv is None:
        return F.linear(x, weight, bias)
    return F.conv2d(x, weight, bias, *conv)


class _Int8Weight(nn.Module):
    """A layer's int8 weight, its scales and its float bias."""

    weight: Tensor
    weight_scale: Tensor
    weight_zero_point: Tensor
    bias: Tensor

    def __init__(
        self, layer: nn.Linear | nn.Conv2d, *, requantize: bool, input_scale: float | None = None
    ) -> None:
        super().__init__()
        if layer.bias is None:
            raise ValueError("layers of the deployment form have a bias")
        bias = layer.bias.detach().clone()
        if input_scale is None:
            weight, scale = quantize_weight(layer.weight.detach())
        else:
            weight, scale, bias = quantize_with_bias(layer.weight.detach(), bias, input_scale)
        if requantize:
            # LiteRT's converter folds quantize(float constant) into an int8 constant, and takes
            # no int8 constant directly; these values lie on the grid, so nothing changes
            weight = weight.float() * _per_channel(scale, weight.ndim)
        self.register_buffer("weight", weight)
        self.register_buffer("weight_scale", scale)
        self.register_buffer("weight_zero_point", torch.zeros(len(scale), dtype=torch.int64))
        self.register_buffer("bias", bias)

    def dequantized_weight(self) -> Tensor:
        weight = self.weight
        parameters = (self.weight_scale, self.weight_zero_point, 0, -_WEIGHT_MAX, _WEIGHT_MAX)
        if weight.is_floating_point():
            weight = _ops.quantize_per_channel.default(weight, *parameters, torch.int8)
        out: Tensor = _ops.dequantize_per_channel.default(weight, *parameters, torch.int8)
        return out


class StaticLayer(_Int8Weight):
    """A Linear or convolution with int8 weights, int8 input and, unless None, int8 output."""

    def __init__(
        self,
        layer: nn.Linear | nn.Conv2d,
        *,
        input_params: QuantParams,
        output_params: QuantParams | None,
        requantize: bool = False,
    ) -> None:
        super().__init__(layer, requantize=requantize, input_scale=input_params.scale)
        self.input_params, self.output_params = input_params, output_params
        self.conv = geometry(layer)

    def forward(self, x: Tensor) -> Tensor:
        """Map (..., in) to (..., out), or (B, in, H, W) to (B, out, H', W')."""
        x = self.input_params.dequantize(self.input_params.quantize(x))
        x = product(x, self.dequantized_weight(), self.bias, self.conv)
        given = self.output_params
        return x if given is None else given.dequantize(given.quantize(x))


class WeightOnlyLayer(_Int8Weight):
    """A Linear or convolution with int8 weights, computed in floating point."""

    def __init__(self, layer: nn.Linear | nn.Conv2d) -> None:
        super().__init__(layer, requantize=False)
        self.conv = geometry(layer)

    def forward(self, x: Tensor) -> Tensor:
        """Map (..., in) to (..., out), or (B, in, H, W) to (B, out, H', W')."""
        return product(x, self.dequantized_weight(), self.bias, self.conv)


class DynamicLinear(_Int8Weight):
    """A Linear with int8 weights whose input is quantized at run time."""

    def __init__(self, layer: nn.Linear, *, granularity: Literal["token", "tensor"]) -> None:
        super().__init__(layer, requantize=False)
        self.granularity = granularity

    def forward(self, x: Tensor) -> Tensor:
        """Map (..., in) to (..., out)."""
        if self.granularity == "token":
            scale, zero = _ops.choose_qparams_per_token_asymmetric.default(x, torch.int8)
            arguments = (scale, zero, _ACT_MIN, _ACT_MAX, torch.int8)
            quantized = _ops.quantize_per_token.default(x, *arguments)
            x = _ops.dequantize_per_token.default(quantized, *arguments, torch.float32)
        else:
            eps = torch.finfo(torch.float32).eps
            scale, zero = _ops.choose_qparams.tensor(x, _ACT_MIN, _ACT_MAX, eps, torch.int8)
            arguments = (scale, zero, _ACT_MIN, _ACT_MAX, torch.int8)
            quantized = _ops.quantize_per_tensor.tensor(x, *arguments)
            x = _ops.dequantize_per_tensor.tensor(quantized, *arguments)
        return F.linear(x, self.dequantized_weight(), self.bias)


class Int8AttentionBias(nn.Module):
    """Attention biases in int8, with one symmetric scale for the table.

    Expanded to windows of 14 and in float they would be nearly half of an int8 file, and nothing
    bears int8 better: see the ablation in docs/quantization.md. Where they are not gathered they
    are a strip, which takes a quarter again: to move integers costs next to nothing.
    """

    values: Tensor
    """int8, of the shapes of `AttentionBias`'s values."""
    index: Tensor | None

    def __init__(self, bias: AttentionBias, *, strip: bool = True) -> None:
        super().__init__()
        bias = bias.stripped() if strip else bias
        values, self.parts = bias.values, bias.parts
        quantized, scale = quantize_weight(values.reshape(1, -1))
        self.register_buffer("values", quantized.reshape(values.shape))
        self.register_buffer("index", bias.index)
        self.scale = float(scale)

    def dequantized_values(self) -> Tensor:
        """Float32 values on the int8 grid, in the shape of the integers."""
        # per tensor, because ExecuTorch has no kernel for constants per channel
        out: Tensor = _ops.dequantize_per_tensor.default(self.values, *self._grid)
        return out

    def rounded(self, x: Tensor) -> Tensor:
        """Round float32 values of any shape to the grid, by a quantize and a dequantize."""
        out: Tensor = _ops.dequantize_per_tensor.default(
            _ops.quantize_per_tensor.default(x, *self._grid), *self._grid
        )
        return out

    @property
    def _grid(self) -> tuple[Any, ...]:
        return self.scale, 0, -_WEIGHT_MAX, _WEIGHT_MAX, torch.int8

    def forward(self) -> Tensor:
        """Give (heads, N, N) float32."""
        return expand_biases(self.dequantized_values(), self.index, self.parts)


def dequantized(module: nn.Module) -> nn.Module:
    """Copy a module, with float values on the int8 grid where inputs are not statically int8.

    Each `DynamicLinear`, `WeightOnlyLayer` and `Int8AttentionBias` becomes a float module, for
    targets whose converter has to see one; the integers are put in its place in the converted
    file.
    """
    from copy import deepcopy

    return replace_layers(deepcopy(module), _dequantize_layer)


def _dequantize_layer(_: str, layer: nn.Module) -> nn.Module | None:
    if isinstance(layer, Int8AttentionBias):
        return AttentionBias(layer())
    if not isinstance(layer, (DynamicLinear, WeightOnlyLayer)):
        return None
    weight = layer.dequantized_weight()
    made: nn.Linear | nn.Conv2d
    if isinstance(layer, WeightOnlyLayer) and layer.conv is not None:
        stride, padding, dilation, groups = layer.conv
        out, inputs, height, width = weight.shape
        kernel = (height, width)
        made = nn.Conv2d(inputs * groups, out, kernel, stride, padding, dilation, groups)
    else:
        made = nn.Linear(weight.shape[1], weight.shape[0])
    made.weight.data.copy_(weight)
    assert made.bias is not None
    made.bias.data.copy_(layer.bias)
    return made.requires_grad_(False)


def replace_layers(module: nn.Module, make: Any) -> nn.Module:
    """Replace, in place, each sub-module for which ``make(name, sub_module)`` is not None."""
    for name, child in list(module.named_modules()):
        made = make(name, child)
        if made is not None:
            module.set_submodule(name, made)
    return module


def _per_channel(scale: Tensor, ndim: int) -> Tensor:
    return scale.reshape(-1, *[1] * (ndim - 1))
