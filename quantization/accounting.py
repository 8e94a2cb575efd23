"""What a quantized module asks of its artifact, to compare with what the saved file holds."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from tinyvit_edge.quantization.coded import CodedLayer
from tinyvit_edge.quantization.hooks import attached
from tinyvit_edge.quantization.qdq import (
    DynamicLinear,
    Int8AttentionBias,
    StaticLayer,
    WeightOnlyLayer,
)

__all__ = ["IntegerDemand", "integer_demand", "layer_macs"]


@dataclass(frozen=True, slots=True, kw_only=True)
class IntegerDemand:
    """What a program wants stored and computed in integers."""

    weight_bytes: Mapping[str, int]
    """Bytes of all integer weights by type (``int8``, ``uint4``, …)."""
    int8_macs: int
    """Multiply-accumulates of the layers whose inputs are 8-bit, too, for one image."""


def integer_demand(module: nn.Module, image: Tensor) -> IntegerDemand:
    """Count the integer weights of a quantized module, and the work they do on one image."""
    weight_bytes: Counter[str] = Counter()
    integer_inputs = {}
    for name, layer in module.named_modules():
        if isinstance(layer, CodedLayer):
            kind = "int" if layer.table is None else "uint"
            weight_bytes[f"{kind}{layer.bits}"] += math.ceil(layer.codes.numel() * layer.bits / 8)
        elif isinstance(layer, Int8AttentionBias):
            weight_bytes["int8"] += layer.values.numel()
        elif isinstance(layer, (DynamicLinear, StaticLayer, WeightOnlyLayer)):
            weight_bytes["int8"] += layer.weight.numel()
            if not isinstance(layer, WeightOnlyLayer):
                integer_inputs[name] = layer
    return IntegerDemand(
        weight_bytes=dict(sorted(weight_bytes.items())),
        int8_macs=sum(_macs(module, integer_inputs, image).values()),
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
    if not layers:
        return macs

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
