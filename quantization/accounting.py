"""What a quantized module asks of its artifact, to compare with what the saved file holds."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from tinyvit_edge.attention import Attention
from tinyvit_edge.quantization.coded import CodedLayer
from tinyvit_edge.quantization.hooks import attached
from tinyvit_edge.quantization.qdq import (
    DynamicLinear,
    Int8AttentionBias,
    StaticLayer,
    WeightOnlyLayer,
)

__all__ = ["IntegerDemand", "integer_demand", "layer_macs"]

_LAYERS = (nn.Linear, nn.Conv2d, CodedLayer, DynamicLinear, StaticLayer, WeightOnlyLayer)
_WIDENED = 2


@dataclass(frozen=True, slots=True, kw_only=True)
class IntegerDemand:
    """What a program wants stored and computed in integers."""

    weight_bytes: Mapping[str, int]
    """Bytes of all integer weights by type (``int8``, ``uint4``, …)."""
    int8_macs: int
    """Multiply-accumulates of the layers whose inputs are 8-bit, too, for one image."""
    float_macs: int = 0
    """Those of all other layers and of the products of two activations."""
    quantize: int = 0
    """Most quantize operators that a file needs: one an int8 layer, for its input. Layers of one
    input may share it, and a layer right behind another needs none. Where attention works on its
    heads in groups, one a group."""
    dequantize: int = 0
    """Most dequantize operators that a file needs: two a layer with int8 result, for the residual
    add and for what else reads it may each widen their own; and one a group of heads, of each of
    q, k and v."""


def integer_demand(module: nn.Module, image: Tensor) -> IntegerDemand:
    """Count the integer weights of a quantized module, and the work it does on one image."""
    weight_bytes: Counter[str] = Counter()
    layers = {name: one for name, one in module.named_modules() if isinstance(one, _LAYERS)}
    for layer in layers.values():
        if isinstance(layer, CodedLayer):
            kind = "int" if layer.table is None else "uint"
            weight_bytes[f"{kind}{layer.bits}"] += math.ceil(layer.codes.numel() * layer.bits / 8)
        elif isinstance(layer, (DynamicLinear, StaticLayer, WeightOnlyLayer)):
            weight_bytes["int8"] += layer.weight.numel()
    for bias in module.modules():
        if isinstance(bias, Int8AttentionBias):
            weight_bytes["int8"] += bias.values.numel()
    integer = {n for n, one in layers.items() if isinstance(one, (DynamicLinear, StaticLayer))}
    rounded = sum(
        isinstance(one, StaticLayer) and one.output_params is not None for one in layers.values()
    )
    groups = sum(len(one.groups) - 1 for one in module.modules() if isinstance(one, Attention))
    with _Products() as products:
        macs = _macs(module, layers, image)
    int8_macs = sum(macs[name] for name in integer)
    return IntegerDemand(
        weight_bytes=dict(sorted(weight_bytes.items())),
        int8_macs=int8_macs,
        float_macs=sum(macs.values()) - int8_macs + products.macs,
        quantize=len(integer) + groups,
        dequantize=_WIDENED * rounded + len("qkv") * groups,
    )


class _Products(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Adds up the multiply-accumulates of batched products, which are attention's."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.macs = 0

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        result = func(*args, **(kwargs or {}))
        if func is torch.ops.aten.bmm.default:
            self.macs += result.numel() * args[0].shape[-1]
        return result


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
        layer.register_forward_hook(count(name, _weight(layer))) for name, layer in layers.items()
    ]
    with attached(hooks), torch.inference_mode():
        module(image)
    return macs


def _weight(layer: nn.Module) -> Tensor:
    weight = layer.codes if isinstance(layer, CodedLayer) else layer.weight
    assert isinstance(weight, Tensor)
    return weight
