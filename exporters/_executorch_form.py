"""What ExecuTorch's delegates want to be different in a program's module before it is exported."""

from __future__ import annotations

import math
from collections.abc import Callable
from copy import deepcopy

import torch
from torch import Tensor, nn
from torch.func import functional_call

from tinyvit_edge.attention import MOST_JOINED, in_batches, strip_columns
from tinyvit_edge.quantization.qdq import Int8AttentionBias
from tinyvit_edge.softmax import BoundedSoftmax, NativeSoftmax

__all__ = ["HalfCompute", "HalfStorage", "integer_movement"]


class HalfCompute(nn.Module):
    """A float32 module computed in float16, with float32 input and output.

    A LayerNorm's squares overflow where an activation is 256 or more away from its token's mean.
    """

    def __init__(self, module: nn.Module) -> None:
        super().__init__()
        module = _replace(deepcopy(module), _half_kernel)
        self.module = module.half()

    def forward(self, image: Tensor) -> Tensor:
        """Map (B, 3, S, S) float32 to (B, classes) float32."""
        out: Tensor = self.module(image.half()).float()
        return out


class HalfStorage(nn.Module):
    """A float32 module whose constants are stored in float16 and widened where they are used."""

    def __init__(self, module: nn.Module) -> None:
        super().__init__()
        self.module = deepcopy(module).half()

    def forward(self, image: Tensor) -> Tensor:
        """Map (B, 3, S, S) float32 to (B, classes) float32."""
        halves = {**dict(self.module.named_parameters()), **dict(self.module.named_buffers())}
        widened = {name: tensor.float() for name, tensor in halves.items()}
        out: Tensor = functional_call(self.module, widened, (image,))
        return out


def integer_movement(module: nn.Module) -> nn.Module:
    """Copy a module, with int8 attention biases that are put together as integers.

    XNNPACK's delegate takes an operator for one on int8 where its input is dequantized and its
    result is quantized, and then moves bytes instead of floats.
    """
    return _replace(deepcopy(module), _integer_strip)


class _IntegerStrip(nn.Module):
    """An `Int8AttentionBias`'s strip, cut and joined between roundings to its own grid."""

    def __init__(self, bias: Int8AttentionBias) -> None:
        super().__init__()
        self.bias = bias
        self.columns = strip_columns(bias.values, bias.parts)

    def forward(self) -> Tensor:
        """Give (heads, N, N) float32."""
        strip = self.bias.dequantized_values()
        parts = [self.bias.rounded(strip[:, :, columns]) for columns in self.columns]
        while len(parts) > 1:
            parts = [self._joined(batch) for batch in in_batches(parts, MOST_JOINED)]
        return parts[0]

    def _joined(self, parts: list[Tensor]) -> Tensor:
        return parts[0] if len(parts) == 1 else self.bias.rounded(torch.cat(parts, 1))


def _integer_strip(layer: nn.Module) -> nn.Module | None:
    if isinstance(layer, Int8AttentionBias) and layer.parts > 1:
        return _IntegerStrip(layer)
    return None


class _TanhGelu(nn.Module):
    """GELU in its tanh form, from operators for which XNNPACK has float16 kernels.

    XNNPACK has none for GELU itself: ExecuTorch leaves it outside the delegate
    (https://github.com/pytorch/executorch/issues/16679), and XNNPACK's generic fallback takes many
    times as long as the Linear before it. The forms differ by 4.7e-4 at most, half of what float16
    resolves at 1. Constants are tensors: a Python scalar comes out as a float32 constant and a cast
    on a portable kernel, outside the delegate.
    """

    half_one: Tensor
    linear: Tensor
    cubic: Tensor

    def __init__(self) -> None:
        super().__init__()
        slope = math.sqrt(2.0 / math.pi)
        constants = {"half_one": 0.5, "linear": slope, "cubic": 0.044715 * slope}
        for name, value in constants.items():
            self.register_buffer(name, torch.tensor([value]))

    def forward(self, x: Tensor) -> Tensor:
        """Map any shape to the same shape."""
        half_x = x * self.half_one
        return half_x + half_x * torch.tanh(x * (self.linear + self.cubic * (x * x)))


def _half_kernel(layer: nn.Module) -> nn.Module | None:
    from transformers.activations import GELUActivation

    if isinstance(layer, BoundedSoftmax):  # float16 overflows at exp(11.1)
        return NativeSoftmax()
    return _TanhGelu() if isinstance(layer, (GELUActivation, nn.GELU)) else None


def _replace(module: nn.Module, make: Callable[[nn.Module], nn.Module | None]) -> nn.Module:
    """Replace, in place and wherever it occurs, each layer for which `make` gives another."""
    # a shared activation has several names, and each has to be set
    for name, layer in list(module.named_modules(remove_duplicate=False)):
        if (made := make(layer)) is not None:
            module.set_submodule(name, made)
    return module
