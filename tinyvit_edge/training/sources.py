"""Where a student's views and targets come from: a teacher's store, or the folders' names."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Protocol

import numpy as np
import torch
from torch import Tensor

from tinyvit_edge.data import ImageDataset
from tinyvit_edge.distill.augment import Policy
from tinyvit_edge.distill.store import Store
from tinyvit_edge.distill.targets import dense, hard
from tinyvit_edge.distill.views import ViewDataset, epoch_seeds, partners

__all__ = ["LabelSource", "Source", "StoreSource"]


class Source(Protocol):
    """Views of an epoch, and the targets that belong to them."""

    def views(self, epoch: int, size: int) -> ViewDataset:
        """The views of every image in an epoch, `size` pixels a side."""
        ...

    def targets(self, epoch: int, indices: Sequence[int]) -> Tensor:
        """Distributions float32 (n, classes) for some images of an epoch."""
        ...


class StoreSource:
    """What a teacher saw and said, replayed.

    Args:
        store: checked against the images by the caller.
        paths: the images, in the store's order.
        columns: the teacher's classes that the student has, None for all.
    """

    def __init__(self, store: Store, paths: Sequence[Path], columns: Sequence[int] | None) -> None:
        self._store, self._paths, self._columns = store, paths, columns

    def views(self, epoch: int, size: int) -> ViewDataset:
        """The teacher's views; at the store's own size, its very pixels."""
        manifest = self._store.manifest
        mixes = manifest.policy.mixes
        stored = epoch % manifest.epochs
        return ViewDataset(
            self._paths,
            policy=manifest.policy,
            seeds=self._store.seeds(epoch),
            pairing=partners(manifest.samples, manifest.seed, stored) if mixes else None,
            size=size,
        )

    def targets(self, epoch: int, indices: Sequence[int]) -> Tensor:
        """The teacher's distributions over the student's classes."""
        records = self._store.records(epoch, indices)
        return dense(records, len(self._store.manifest.labels), self._columns)


class LabelSource:
    """Views drawn anew every epoch, with one-hot targets, mixed as the views are.

    Args:
        dataset: labelled in the student's classes.
        policy: how views are drawn.
        seed: of the run.
        classes: of the student.
        smoothing: of the labels.
    """

    def __init__(
        self, dataset: ImageDataset, *, policy: Policy, seed: int, classes: int, smoothing: float
    ) -> None:
        self._paths = [sample.path for sample in dataset.samples]
        labels = [-1 if sample.label is None else sample.label for sample in dataset.samples]
        self._labels = np.array(labels)
        self._policy, self._seed = policy, seed
        self._classes, self._smoothing = classes, smoothing

    def views(self, epoch: int, size: int) -> ViewDataset:
        """New views of every image."""
        count = len(self._paths)
        return ViewDataset(
            self._paths,
            policy=self._policy,
            seeds=epoch_seeds(count, self._seed, epoch),
            pairing=partners(count, self._seed, epoch) if self._policy.mixes else None,
            size=size,
        )

    def targets(self, epoch: int, indices: Sequence[int]) -> Tensor:
        """The labels, each mixed with its partner's in the share of the pixels."""
        targets = self._hard(indices)
        if not self._policy.mixes:
            return targets
        views = self.views(epoch, 1)
        mixed = [views.partner(index) for index in indices]
        others = self._hard(
            [index if m is None else m[0] for index, m in zip(indices, mixed, strict=True)]
        )
        keep = torch.tensor([256 if m is None else m[1].keep for m in mixed]).view(-1, 1) / 256
        return targets * keep + others * (1 - keep)

    def _hard(self, indices: Sequence[int]) -> Tensor:
        return hard(self._labels[list(indices)].tolist(), self._classes, self._smoothing)
