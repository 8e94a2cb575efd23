"""Which images a step takes: every epoch's order, and each process's part of it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from tinyvit_edge.distill.draws import permutation
from tinyvit_edge.errors import InputError
from tinyvit_edge.training.recipe import Recipe

__all__ = ["Epoch", "Plan", "held_out"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Epoch:
    """One epoch: its number, its resolution, and the steps before it."""

    number: int
    size: int
    first_step: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """The steps of a run; a function of the recipe, the images and the seed alone.

    Attributes:
        recipe: as asked for.
        own_size: the model's resolution, for stages that name none.
        images: indices that are trained on.
        seed: of the orders.
    """

    recipe: Recipe
    own_size: int
    images: tuple[int, ...]
    seed: int

    @property
    def batch(self) -> int:
        """Images a step; fewer than the recipe's where there are not as many."""
        parts = self.recipe.accumulate
        return min(self.recipe.batch, len(self.images) // parts * parts)

    @property
    def steps_per_epoch(self) -> int:
        """Whole batches; the images left over come first in no epoch in particular."""
        return len(self.images) // self.batch

    @property
    def steps(self) -> int:
        """Steps of the run."""
        return self.steps_per_epoch * self.recipe.epochs

    @property
    def warmup_steps(self) -> int:
        """Steps of warm-up, at most a third of the run."""
        return min(round(self.recipe.warmup * self.steps_per_epoch), self.steps // 3)

    def epochs(self) -> list[Epoch]:
        """All epochs in order."""
        sizes = [
            stage.size or self.own_size for stage in self.recipe.stages for _ in range(stage.epochs)
        ]
        return [
            Epoch(number=number, size=size, first_step=number * self.steps_per_epoch)
            for number, size in enumerate(sizes)
        ]

    def pace(self, step: int) -> float:
        """Where the schedule of the learning rate is at a step, in steps of equal pace."""
        if self.recipe.pace == "steps":
            return step
        pixels = [epoch.size**2 for epoch in self.epochs()]
        epoch, inside = divmod(step, self.steps_per_epoch)
        done = float(sum(pixels[:epoch]))
        if inside:
            done += pixels[epoch] * inside / self.steps_per_epoch
        return self.steps * done / sum(pixels)

    def batches(self, epoch: int, rank: int = 0, world: int = 1) -> list[list[int]]:
        """What one process reads in an epoch: its part of each part of each batch.

        Raises:
            InputError: the processes cannot share a batch evenly.
        """
        parts = self.recipe.accumulate
        if self.batch == 0 or self.batch % (parts * world):
            raise InputError(
                f"training: a batch of {self.batch} images cannot be shared by {world} processes"
                f" in {parts} parts; choose another --batch"
            )
        order = np.array(self.images)[permutation(len(self.images), self.seed, epoch, 2)]
        used = order[: self.steps_per_epoch * self.batch]
        micro = self.batch // (parts * world)
        # one process on a batch and two on its halves see the same images in the same step
        grid = used.reshape(self.steps_per_epoch, world, parts, micro)
        return [part.tolist() for step in grid for part in step[rank]]


def held_out(count: int, every: int) -> tuple[Sequence[int], Sequence[int]]:
    """Indices to train on, and every n-th to measure on (none where `every` is 0)."""
    kept = [i for i in range(count) if every and i % every == every - 1]
    return [i for i in range(count) if not every or i % every != every - 1], kept
