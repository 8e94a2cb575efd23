"""Soft targets out of sparse records, and the loss that students are trained with."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor
from torch.nn import functional as F

__all__ = ["dense", "hard", "soft_cross_entropy"]


def dense(
    records: npt.NDArray[np.void], classes: int, columns: Sequence[int] | None = None
) -> Tensor:
    """A distribution over all classes for each record: float32 (n, classes).

    The mass that the stored entries lack is spread evenly over the classes that are not stored.

    Args:
        records: of `store.record_dtype`, (n,).
        classes: how many the teacher has.
        columns: classes that the student has, in its order: the distribution is then the
            teacher's given that the class is one of them, float32 (n, len(columns)).
    """
    index = torch.from_numpy(records["index"].astype(np.int64))  # (n, K)
    probability = torch.from_numpy(records["probability"].astype(np.float32))  # (n, K)
    missing = (1 - probability.sum(1, keepdim=True)).clamp(min=0)  # (n, 1)
    unnamed = classes - index.shape[1]
    targets = (missing / max(unnamed, 1)).repeat(1, classes)  # (n, classes)
    targets.scatter_(1, index, probability)
    if columns is not None:
        # float16 loses what is below 6e-8: a view that is none of the classes becomes uniform
        targets = targets[:, torch.as_tensor(columns)] + 1e-12
    return targets / targets.sum(1, keepdim=True)


def soft_cross_entropy(logits: Tensor, targets: Tensor) -> Tensor:
    """Mean over the batch of -sum(targets * log softmax(logits)); both (B, classes)."""
    return -(targets * F.log_softmax(logits.float(), dim=1)).sum(1).mean()


def hard(labels: Sequence[int], classes: int, smoothing: float) -> Tensor:
    """One-hot targets, smoothed: float32 (n, classes)."""
    targets = torch.full((len(labels), classes), smoothing / classes)
    rows: Any = torch.arange(len(labels))
    targets[rows, torch.as_tensor(labels)] += 1 - smoothing
    return targets
