"""What a quantized module asks of its artifact, to compare with what the saved file holds."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from tinyvit_edge.quantization.qdq import DynamicLinear, StaticLayer

__all__ = ["Int8Demand", "int8_demand"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Int8Demand:
    """Work that a program wants done in int8."""

    weight_bytes: int
    """Elements of all int8 weights, a byte each."""
    macs: int
    """Multiply-accumulates of the layers that have them, for one image."""


def int8_demand(module: nn.Module, image: Tensor) -> Int8Demand:
    """Count the int8 weights of a quantized module, and the work they do on one image."""
    macs = []

    def count(weight: Tensor) -> Callable[..., None]:
        def hook(_: nn.Module, __: tuple[Tensor, ...], output: Tensor) -> None:
            # each output element is a sum over one output channel's weights
            macs.append(output.numel() * weight[0].numel())

        return hook

    layers = [m for m in module.modules() if isinstance(m, (DynamicLinear, StaticLayer))]
    hooks = [layer.register_forward_hook(count(layer.weight)) for layer in layers]
    try:
        with torch.inference_mode():
            module(image)
    finally:
        for hook in hooks:
            hook.remove()
    return Int8Demand(weight_bytes=sum(layer.weight.numel() for layer in layers), macs=sum(macs))
