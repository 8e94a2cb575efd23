"""Which layers an int8 model loses its accuracy in, and the smallest set to leave in float32.

Every layer is measured from both sides: the logits when it alone is quantized, and when it alone
is not. The second is what leaving it out of int8 would give, and decides the order in which
`smallest_set` tries.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from tinyvit_edge.metrics import sqnr_db
from tinyvit_edge.precision import PRECISIONS, Precision
from tinyvit_edge.quantization.accounting import layer_macs
from tinyvit_edge.quantization.calibration import Calibration, quantizable
from tinyvit_edge.quantization.conditioning import apply_factors
from tinyvit_edge.quantization.ptq import quantize
from tinyvit_edge.report_table import SQNR_LIMIT_DB

__all__ = ["LayerSensitivity", "measure_layers", "ranked", "smallest_set"]


@dataclass(frozen=True, slots=True, kw_only=True)
class LayerSensitivity:
    """What quantizing one layer costs.

    Attributes:
        name: in the deployment form.
        kind: "linear" or "conv".
        macs: multiply-accumulates of the layer for one image.
        alone_db: SQNR of the logits against float32 when only this layer is quantized.
        rest_db: the same when every layer but this one is.
        whole_db: the same when all are.
    """

    name: str
    kind: str
    macs: int
    alone_db: float
    rest_db: float
    whole_db: float

    @property
    def gain(self) -> float:
        """Part of the quantization noise that goes when the layer stays in float32, <= 1."""
        if math.isinf(self.whole_db):
            return 0.0  # there is no noise
        return 1.0 - 10 ** ((self.whole_db - self.rest_db) / 10)

    def to_dict(self) -> dict[str, Any]:
        """As JSON values; no noise at all is `SQNR_LIMIT_DB`, for JSON has no infinity."""
        decibels = {
            name: min(getattr(self, name), SQNR_LIMIT_DB)
            for name in ("alone_db", "rest_db", "whole_db")
        }
        head = {"name": self.name, "kind": self.kind, "macs": self.macs}
        return head | decibels | {"gain": self.gain}


def measure_layers(
    form: nn.Module,
    precision: Precision,
    calibration: Calibration,
    images: Sequence[Tensor],
    *,
    progress: Callable[[int], None] | None = None,
) -> tuple[LayerSensitivity, ...]:
    """Measure every layer that a precision quantizes, in the form's order.

    Args:
        form: float deployment form.
        precision: a calibrated row.
        calibration: its ranges.
        images: normalised images (B, 3, S, S) float32; 16 in all tell the order.
        progress: called with 1 after each of the 2 n + 2 runs over the images.
    """
    exact_form = quantize(form, PRECISIONS["fp32"])
    apply_factors(exact_form, calibration.factors)
    coarse_form = quantize(form, precision, calibration=replace(calibration, left_float={}))

    def run(module: nn.Module) -> NDArray[np.float32]:
        with torch.inference_mode():
            logits = np.concatenate([module(batch).numpy() for batch in images])
        if progress:
            progress(1)
        return logits

    def swapped(base: nn.Module, other: nn.Module, name: str) -> NDArray[np.float32]:
        own = base.get_submodule(name)
        base.set_submodule(name, other.get_submodule(name))
        try:
            return run(base)
        finally:
            base.set_submodule(name, own)

    exact = run(exact_form)
    whole = sqnr_db(exact, run(coarse_form))
    macs = layer_macs(exact_form, images[0][:1])
    return tuple(
        LayerSensitivity(
            name=name,
            kind="conv" if isinstance(layer, nn.Conv2d) else "linear",
            macs=macs[name],
            alone_db=sqnr_db(exact, swapped(exact_form, coarse_form, name)),
            rest_db=sqnr_db(exact, swapped(coarse_form, exact_form, name)),
            whole_db=whole,
        )
        for name, layer in quantizable(form, precision).items()
    )


def ranked(
    layers: Iterable[LayerSensitivity], *, conv_cost: float = 1.0
) -> tuple[LayerSensitivity, ...]:
    """By noise that goes for the time that a layer loses in float32, the best bargain first.

    Args:
        layers: to be sorted.
        conv_cost: `tinyvit_edge.deployment.FormOptions.float_conv_cost`.
    """

    def order(layer: LayerSensitivity) -> tuple[float, float, str]:
        cost = layer.macs * (conv_cost if layer.kind == "conv" else 1.0)
        bargain = layer.gain / cost if cost else math.copysign(math.inf, layer.gain)
        return (-bargain, -layer.gain, layer.name)

    return tuple(sorted(layers, key=order))


def smallest_set(
    order: Sequence[str], drop: Callable[[frozenset[str]], float], max_drop: float
) -> tuple[str, ...]:
    """Find few layers to leave in float32 so that a drop stays within a budget.

    Args:
        order: layers in the order in which they are worth leaving out.
        drop: measures the loss of accuracy with a set left out, in 0..1.
        max_drop: the budget, in 0..1.

    Returns:
        The shortest sufficient beginning of `order` that bisection finds, without those of it
        that turn out to be needless. All of `order` are taken to suffice: nothing is int8 then.
    """

    def enough(names: Iterable[str]) -> bool:
        return drop(frozenset(names)) <= max_drop + 1e-9

    if enough(()):
        return ()
    few, many = 0, len(order)  # `few` is not enough, `many` is
    step = 1
    while few + step < many:  # most often a few suffice: begin there
        if enough(order[: few + step]):
            many = few + step
            break
        few, step = few + step, 2 * step
    while many - few > 1:
        middle = (few + many) // 2
        few, many = (few, middle) if enough(order[:middle]) else (middle, many)
    kept = list(order[:many])
    for name in order[: many - 1]:
        fewer = [other for other in kept if other != name]
        if enough(fewer):
            kept = fewer
    return tuple(kept)
