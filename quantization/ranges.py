"""Which range an int8 tensor should cover: rules that look at a histogram of its values.

Each rule is a row of `METHODS`. A wide range rounds coarsely, a narrow one clips; which error
hurts more differs from tensor to tensor, so `tinyvit_edge.quantization.influence` measures it.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from tinyvit_edge.quantization.qdq import QuantParams

__all__ = ["BINS", "METHODS", "Histogram"]

BINS = 2048
_LEVELS = 256
_SHRINKS = np.geomspace(1.0, 0.05, 64).tolist()  # of a range's ends
_Counts = NDArray[np.float64]


@dataclass(slots=True)
class Histogram:
    """Counts of a tensor's values in `BINS` equal bins from `low` to `high`.

    `low` <= 0 <= `high`: a range always holds zero, because padding is zero.
    """

    low: float
    high: float
    counts: _Counts

    @classmethod
    def over(cls, low: float, high: float) -> Histogram:
        """An empty one over a range, widened to hold zero."""
        return cls(low=min(low, 0.0), high=max(high, 0.0), counts=np.zeros(BINS))

    def see(self, x: Tensor) -> None:
        """Count the values of a tensor of any shape, none of which lies outside the range."""
        if self.high > self.low:
            self.counts += torch.histc(x.float(), BINS, self.low, self.high).double().numpy()

    @property
    def centres(self) -> _Counts:
        """The middle of every bin (BINS,)."""
        return _centres(self.low, self.high)

    @property
    def width(self) -> float:
        """Of a bin."""
        return (self.high - self.low) / BINS


@functools.lru_cache(maxsize=1)  # a rule asks for those of one histogram hundreds of times
def _centres(low: float, high: float) -> _Counts:
    centres = np.linspace(low, high, 2 * BINS + 1, dtype=np.float64)[1::2]
    centres.flags.writeable = False
    return centres


def _min_max(seen: Histogram) -> QuantParams:
    return QuantParams.from_range(seen.low, seen.high)


def _percentile(share: float) -> Callable[[Histogram], QuantParams]:
    """Clip the same share of the values at either end, `1 - share` of them in all."""

    def rule(seen: Histogram) -> QuantParams:
        below = np.cumsum(seen.counts)
        clipped = below[-1] * (1.0 - share) / 2
        first = int(np.searchsorted(below, clipped, side="right"))
        last = int(np.searchsorted(below, below[-1] - clipped, side="left"))
        return QuantParams.from_range(
            seen.low + first * seen.width, seen.low + (last + 1) * seen.width
        )

    return rule


def _mse(seen: Histogram) -> QuantParams:
    """The range with the least mean squared error."""
    return _least(seen, _squared_error)


def _entropy(seen: Histogram) -> QuantParams:
    """The range whose 256 levels say most of the distribution (TensorRT's rule, for two ends)."""
    return _least(seen, _divergence)


def _least(seen: Histogram, loss: Callable[[Histogram, float, float], float]) -> QuantParams:
    """Shrink both ends together, then each alone, to where `loss` is least."""
    if seen.high == seen.low:
        return _min_max(seen)
    low, high = seen.low, seen.high

    def best(ends: Iterable[tuple[float, float]]) -> tuple[float, float]:
        return min(ends, key=lambda pair: loss(seen, *pair))

    found = best((low * by, high * by) for by in _SHRINKS)
    for _ in range(2):
        found = best((low * by, found[1]) for by in _SHRINKS)
        found = best((found[0], high * by) for by in _SHRINKS)
    return QuantParams.from_range(*found)


def _squared_error(seen: Histogram, low: float, high: float) -> float:
    params = QuantParams.from_range(low, high)
    levels = np.rint(seen.centres / params.scale) + params.zero_point
    rounded = (np.clip(levels, -128, 127) - params.zero_point) * params.scale
    return float(seen.counts @ (rounded - seen.centres) ** 2)


def _divergence(seen: Histogram, low: float, high: float) -> float:
    """KL divergence in nats from the clipped histogram to its quantized form."""
    first = int(np.floor((low - seen.low) / seen.width + 1e-6))
    last = max(int(np.ceil((high - seen.low) / seen.width - 1e-6)), first + 1)
    inside = seen.counts[first:last]
    clipped = inside.copy()
    clipped[0] += seen.counts[:first].sum()
    clipped[-1] += seen.counts[last:].sum()
    # every level spreads what it holds evenly over its bins that hold anything
    level = np.arange(len(inside)) * _LEVELS // len(inside)
    filled = np.bincount(level, weights=inside > 0, minlength=_LEVELS)
    held = np.bincount(level, weights=inside, minlength=_LEVELS)
    spread = np.where(inside > 0, (held / np.maximum(filled, 1))[level], 0.0)
    p, q = clipped / clipped.sum(), spread / max(spread.sum(), 1e-30)
    some = p > 0
    return float((p[some] * np.log(p[some] / np.maximum(q[some], 1e-12))).sum())


METHODS: Mapping[str, Callable[[Histogram], QuantParams]] = {
    "min-max": _min_max,
    "percentile-99.99": _percentile(0.9999),
    "percentile-99.999": _percentile(0.99999),
    "mse": _mse,
    "entropy": _entropy,
}
"""Name -> rule; a range of zero comes out as scale 1."""
