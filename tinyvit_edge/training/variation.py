"""What a student's batch goes through after it was replayed, so that few views last for long."""

from __future__ import annotations

import torch
from torch import Tensor

from tinyvit_edge.training.recipe import Recipe

__all__ = ["vary"]


def vary(images: Tensor, targets: Tensor, recipe: Recipe) -> tuple[Tensor, Tensor]:
    """Mirror and mix a batch as the recipe says, with draws of PyTorch's default generator.

    A teacher's answer hardly depends on a mirror, and CutMix (arXiv 1905.04899) takes any
    distribution for a target: a store of a few views a sample then stands for many more.

    Args:
        images: uint8 (B, S, S, 3); not changed.
        targets: distributions float32 (B, classes); not changed.
        recipe: its `mirror` and `cutmix` count.
    """
    if recipe.mirror:
        mirrored = torch.rand(len(images)) < 0.5
        images = torch.where(mirrored.view(-1, 1, 1, 1), images.flip(2), images)
    if recipe.cutmix and torch.rand(()) < recipe.cutmix:
        size = images.shape[1]
        side = int(size * torch.rand(()).sqrt())  # its area is uniform in [0, 1]
        top, left = (int(start) for start in torch.randint(0, size - side + 1, (2,)))
        order, kept = torch.randperm(len(images)), 1 - (side / size) ** 2
        box = (slice(None), slice(top, top + side), slice(left, left + side))
        images = images.clone()
        images[box] = images[order][box]
        targets = kept * targets + (1 - kept) * targets[order]
    return images, targets
