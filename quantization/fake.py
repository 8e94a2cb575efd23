"""Layers to train by: they compute what a static int8 layer computes, and pass gradients on."""

from __future__ import annotations

from copy import deepcopy
from typing import Any

import torch
from torch import Tensor, nn

from tinyvit_edge.precision import Precision
from tinyvit_edge.quantization.calibration import Calibration
from tinyvit_edge.quantization.conditioning import apply_factors
from tinyvit_edge.quantization.ptq import quantize
from tinyvit_edge.quantization.qdq import (
    QuantParams,
    StaticLayer,
    geometry,
    product,
    quantize_with_bias,
    replace_layers,
)
from tinyvit_edge.quantization.tuned import apply_tuned

__all__ = ["FakeStaticLayer", "trainable_form"]


class FakeStaticLayer(nn.Module):
    """What a `StaticLayer` computes, with a float weight and bias to train.

    Gradients go straight through the rounding; where an activation is clipped they are zero.
    Ranges of activations stay; scales of weights follow the weights.
    """

    def __init__(
        self,
        layer: nn.Linear | nn.Conv2d,
        *,
        input_params: QuantParams,
        output_params: QuantParams | None,
    ) -> None:
        super().__init__()
        assert layer.bias is not None
        self.weight = nn.Parameter(layer.weight.detach().clone())
        self.bias = nn.Parameter(layer.bias.detach().clone())
        self.input_params, self.output_params = input_params, output_params
        self.conv = geometry(layer)

    def forward(self, x: Tensor) -> Tensor:
        """Map (..., in) to (..., out), or (B, in, H, W) to (B, out, H', W')."""
        with torch.no_grad():
            integers, scale, bias = quantize_with_bias(
                self.weight, self.bias, self.input_params.scale
            )
            weight = integers * scale.reshape(-1, *[1] * (integers.ndim - 1))
        out = product(
            _rounded(x, self.input_params),
            _straight(self.weight, weight),
            _straight(self.bias, bias),
            self.conv,
        )
        return out if self.output_params is None else _rounded(out, self.output_params)


def trainable_form(form: nn.Module, precision: Precision, calibration: Calibration) -> nn.Module:
    """Copy a float deployment form so that its layers can be trained as `precision` has them.

    Args:
        form: float deployment form; it is not changed.
        precision: a calibrated row.
        calibration: its ranges, with the weights to begin with, if they are not the form's.

    Returns:
        A module whose parameters are weights and biases of all Linear layers and convolutions,
        also of those that stay float, by the names that they have in `form`.
    """
    conditioned = deepcopy(form)
    apply_factors(conditioned, calibration.factors)
    apply_tuned(conditioned, calibration.tuned)

    def make(name: str, layer: nn.Module) -> nn.Module | None:
        if not isinstance(layer, StaticLayer):
            return None
        real: Any = conditioned.get_submodule(name)
        return FakeStaticLayer(
            real, input_params=layer.input_params, output_params=layer.output_params
        )

    static = quantize(form, precision, calibration=calibration)
    return replace_layers(static, make).requires_grad_(True)


def _rounded(x: Tensor, params: QuantParams) -> Tensor:
    out: Tensor = torch.fake_quantize_per_tensor_affine(
        x, params.scale, params.zero_point, -128, 127
    )
    return out


def _straight(real: Tensor, rounded: Tensor) -> Tensor:
    out: Tensor = _StraightThrough.apply(real, rounded)  # type: ignore[no-untyped-call]
    return out


class _StraightThrough(torch.autograd.Function):
    """The rounded value forward, and its gradient to the real one."""

    @staticmethod
    def forward(_: Any, real: Tensor, rounded: Tensor) -> Tensor:
        return rounded.clone()

    @staticmethod
    def backward(_: Any, gradient: Tensor) -> tuple[Tensor, None]:
        return gradient, None
