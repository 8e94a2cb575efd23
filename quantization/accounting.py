"""What a quantized module asks of its artifact, to compare with what the saved file holds."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from tinyvit_edge.quantization.hooks import attached
from tinyvit_edge.quantization.qdq import DynamicLinear, StaticLayer

__all__ = ["Int8Demand", "int8_demand", "layer_macs"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Int8Demand:
    """Work that a program wants done in int8."""

    weight_bytes: int
    """Elements of all int8 weights, a byte each."""
    macs: int
    """Multiply-accumulates of the layers that have them, for one image."""


def int8_demand(module: nn.Module, image: Tensor) -> Int8Demand:
    """Count the int8 weights of a quantized module, and the work they do on one image."""
    layers = {
        name: layer
        for name, layer in module.named_modules()
        if isinstance(layer, (DynamicLinear, StaticLayer))
    }
    return Int8Demand(
        weight_bytes=sum(layer.weight.numel() for layer in layers.values()),
        macs=sum(_macs(module, layers, image).values()),
    )


def layer_macs(module: nn.Module, image: Tensor) -> dict[str, int]:
    """Multiply-accumulates of every Linear and convolution of a float form, by name."""
    layers = {
        name: layer
        for name, layer in module.named_modules()
        if isinstance(layer, (nn.Linear, nn.Conv2d))
    }
    return _macs(module, layers, image)


def _macs(module: nn.Module, layers: Mapping[str, nn.Module], image: Tensor) -> dict[str, int]:
    macs = dict.fromkeys(layers, 0)

    def count(name: str, weight: Tensor) -> Callable[..., None]:
        def hook(_: nn.Module, __: tuple[Tensor, ...], output: Tensor) -> None:
            # each output element is a sum over one output channel's weights
            macs[name] += output.numel() * weight[0].numel()

        return hook

    hooks = [
        layer.register_forward_hook(count(name, layer.weight))  # type: ignore[arg-type]
        for name, layer in layers.items()
    ]
    with attached(hooks), torch.inference_mode():
        module(image)
    return macs
