"""How far two sets of logits are apart, and how often they are right.

Every function takes logits (n, classes), n >= 1, and computes in float64.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
from numpy.typing import ArrayLike, NDArray

__all__ = [
    "cosine",
    "is_finite",
    "kl_divergence",
    "max_abs",
    "sqnr_db",
    "top1_agreement",
    "top_k_accuracy",
]


def sqnr_db(reference: ArrayLike, measured: ArrayLike) -> float:
    """Signal to quantization noise ratio over all values, in dB: 10 log10(sum r^2 / sum (r-m)^2).

    Equal inputs give infinity; a reference of zeros against anything else, minus infinity.
    """
    r, m = _pair(reference, measured)
    noise = float(np.square(r - m).sum())
    signal = float(np.square(r).sum())
    if noise == 0.0:
        return math.inf
    return 10.0 * math.log10(signal / noise) if signal else -math.inf


def max_abs(reference: ArrayLike, measured: ArrayLike) -> float:
    """Largest absolute difference of one logit."""
    r, m = _pair(reference, measured)
    return float(np.abs(r - m).max())


def cosine(reference: ArrayLike, measured: ArrayLike) -> float:
    """Mean over images of the cosine between the two logit vectors, in -1..1.

    Two zero vectors count as 1, one zero vector as 0.
    """
    r, m = _pair(reference, measured)
    dots = (r * m).sum(1)
    norms = np.linalg.norm(r, axis=1) * np.linalg.norm(m, axis=1)
    both_zero = ~r.any(1) & ~m.any(1)
    ratios = np.where(norms > 0, dots / np.where(norms > 0, norms, 1.0), both_zero)
    return float(ratios.mean())


def kl_divergence(reference: ArrayLike, measured: ArrayLike) -> float:
    """Mean over images of KL(softmax(reference) || softmax(measured)), in nats; >= 0."""
    r, m = (_log_softmax(x) for x in _pair(reference, measured))
    return max(0.0, float((np.exp(r) * (r - m)).sum(1).mean()))


def top1_agreement(reference: ArrayLike, measured: ArrayLike) -> float:
    """Fraction of images whose largest logit is of the same class, in 0..1."""
    r, m = _pair(reference, measured)
    return float((r.argmax(1) == m.argmax(1)).mean())


def top_k_accuracy(logits: ArrayLike, labels: Sequence[int], k: int) -> float:
    """Fraction of images whose label is among the k largest logits, in 0..1."""
    values = np.asarray(logits, np.float64)
    best = np.argsort(-values, axis=1, kind="stable")[:, :k]  # (n, k)
    return float((best == np.asarray(labels)[:, None]).any(1).mean())


def is_finite(logits: ArrayLike) -> bool:
    """Whether no value is infinite or not a number."""
    return bool(np.isfinite(logits).all())


def _pair(reference: ArrayLike, measured: ArrayLike) -> tuple[NDArray[np.float64], ...]:
    r, m = np.asarray(reference, np.float64), np.asarray(measured, np.float64)
    if r.shape != m.shape or r.ndim != 2 or not r.size:
        raise ValueError(f"logits must have one shape (n, classes), got {r.shape} and {m.shape}")
    return r, m


def _log_softmax(x: NDArray[np.float64]) -> NDArray[np.float64]:
    shifted: NDArray[np.float64] = x - x.max(1, keepdims=True)
    out: NDArray[np.float64] = shifted - np.log(np.exp(shifted).sum(1, keepdims=True))
    return out
