"""Layers of the reference folded into their neighbours, exactly: steps of the deployment form.

All products of weights are computed in float64 and rounded once.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

if TYPE_CHECKING:
    from tinyvit_edge.deployment import FormOptions

__all__ = [
    "LinearStandardise",
    "Standardise",
    "copy_linear",
    "fold_batch_norm",
    "fold_layer_norm",
    "split_qkv",
]


class _Norm(nn.Module):
    """LayerNorm without scale and shift, but for factors that conditioning may have put there."""

    factor: Tensor | None

    def __init__(self, channels: int, eps: float) -> None:
        super().__init__()
        self.channels, self.eps = channels, eps
        self.register_buffer("factor", None)

    def divide(self, by: Tensor) -> None:
        """Divide the output's channels by (C,) float64; whoever consumes them multiplies."""
        before = torch.ones_like(by) if self.factor is None else self.factor.double()
        self.factor = (before / by).float()


class Standardise(_Norm):
    """As the runtime's own operator."""

    def forward(self, x: Tensor) -> Tensor:
        """Map (..., C) to (..., C): mean 0 and variance 1 over C, then times `factor`."""
        return F.layer_norm(x, (self.channels,), weight=self.factor, eps=self.eps)


class LinearStandardise(_Norm):
    """From operators that XNNPACK delegates."""

    average: Tensor
    bias: Tensor

    def __init__(self, channels: int, eps: float) -> None:
        super().__init__(channels, eps)
        self.register_buffer("average", torch.full((1, channels), 1.0 / channels))
        self.register_buffer("bias", torch.tensor([eps]))  # an addition less

    def forward(self, x: Tensor) -> Tensor:
        """Map (..., C) to (..., C): mean 0 and variance 1 over C, then times `factor`."""
        centred = x - F.linear(x, self.average)  # (..., C) - (..., 1)
        variance = F.linear(centred * centred, self.average, self.bias)  # (..., 1), plus eps
        standard = centred * torch.rsqrt(variance)
        return standard if self.factor is None else standard * self.factor


def fold_layer_norm(
    norm: nn.LayerNorm, consumers: tuple[nn.Linear, ...], options: FormOptions
) -> tuple[nn.Module, tuple[nn.Linear, ...]]:
    """Move a LayerNorm's scale and shift into the Linear layers that consume it.

    W (g * z + b) + c = (W diag(g)) z + (W b + c), computed in float64.
    """
    kind = LinearStandardise if options.layer_norm == "linear" else Standardise
    scale, shift = norm.weight.double(), norm.bias.double()
    folded = []
    for linear in consumers:
        weight = linear.weight.double()  # (out, in)
        bias = weight @ shift + linear.bias.double()  # (out,)
        folded.append(_linear(weight * scale, bias))
    return kind(norm.normalized_shape[-1], norm.eps), tuple(folded)


def fold_batch_norm(conv_norm: Any) -> nn.Conv2d:
    """Fold a BatchNorm's running statistics and affine map into the convolution before it."""
    conv, bn = conv_norm.convolution, conv_norm.batch_norm
    factor = bn.weight.double() / torch.sqrt(bn.running_var.double() + bn.eps)  # (out,)
    folded = nn.Conv2d(
        conv.in_channels,
        conv.out_channels,
        conv.kernel_size,
        stride=conv.stride,
        padding=conv.padding,
        dilation=conv.dilation,
        groups=conv.groups,
    )
    folded.weight.copy_(conv.weight.double() * factor[:, None, None, None])
    assert folded.bias is not None
    folded.bias.copy_(bn.bias.double() - bn.running_mean.double() * factor)
    return folded


def split_qkv(qkv: nn.Linear, heads: int) -> tuple[nn.Linear, nn.Linear, nn.Linear]:
    """Split a fused projection, whose rows are [q | k | v] within each head."""
    weight = qkv.weight.detach()
    weights = weight.reshape(heads, 3, -1, weight.shape[1])  # (h, 3, d, C)
    biases = qkv.bias.detach().reshape(heads, 3, -1)  # (h, 3, d)
    q, k, v = (
        _linear(weights[:, i].reshape(-1, weight.shape[1]), biases[:, i].reshape(-1))
        for i in range(3)
    )
    return q, k, v


def copy_linear(linear: nn.Linear) -> nn.Linear:
    """Copy a Linear layer."""
    return _linear(linear.weight.detach(), linear.bias.detach())


def _linear(weight: Tensor, bias: Tensor) -> nn.Linear:
    linear = nn.Linear(weight.shape[1], weight.shape[0])
    linear.weight.copy_(weight)
    linear.bias.copy_(bias)
    return linear
