"""What a batch goes through after it was replayed: mirrored and mixed, targets along with it."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from tinyvit_edge.errors import InputError
from tinyvit_edge.training.recipe import Recipe, Stage
from tinyvit_edge.training.variation import vary

BATCH, SIZE = 16, 20


def recipe(**values: Any) -> Recipe:
    """One that varies nothing, a few fields changed."""
    return Recipe(targets="labels", stages=(Stage(size=None, epochs=1),), lr=1e-3, **values)


@pytest.fixture
def images() -> Tensor:
    """uint8 (16, 20, 20, 3); every pixel tells its image, and its column up to a mirror."""
    columns = torch.arange(SIZE).expand(BATCH, SIZE, SIZE)
    numbers = torch.arange(BATCH).view(-1, 1, 1).expand(BATCH, SIZE, SIZE)
    return torch.stack([numbers, columns, columns], dim=3).to(torch.uint8)


def test_nothing_is_the_default(images: Tensor) -> None:
    """The very tensors come back."""
    targets = torch.eye(BATCH)
    assert vary(images, targets, recipe()) == (images, targets)


def test_half_are_mirrored(images: Tensor) -> None:
    """Each image is itself or its mirror, both occur, and targets stay."""
    torch.manual_seed(0)
    before, targets = images.clone(), torch.eye(BATCH)
    varied, same = vary(images, targets, recipe(mirror=True))
    assert same is targets
    assert torch.equal(images, before)
    turned = [torch.equal(new, old.flip(1)) for new, old in zip(varied, images, strict=True)]
    kept = [torch.equal(new, old) for new, old in zip(varied, images, strict=True)]
    assert [one != other for one, other in zip(turned, kept, strict=True)] == [True] * BATCH
    assert 4 <= sum(turned) <= 12


def test_targets_are_mixed_in_the_share_of_the_pixels(images: Tensor) -> None:
    """Oracle: for every image, the share of its pixels that come from each image."""
    torch.manual_seed(0)
    shares = []
    for _ in range(20):
        varied, targets = vary(images, torch.eye(BATCH), recipe(cutmix=1.0))
        counted = torch.stack(
            [torch.bincount(image[..., 0].flatten().long(), minlength=BATCH) for image in varied]
        )
        torch.testing.assert_close(targets, counted / SIZE**2)
        assert torch.equal(varied[..., 1], images[..., 1])  # pasted where it was taken from
        shares.append(float(targets.diagonal().mean()))
    assert min(shares) < 0.4
    assert max(shares) > 0.9


def test_the_share_of_mixed_batches_is_the_recipes(images: Tensor) -> None:
    """Out of 300 batches 30 %, within four standard deviations; mixed ones differ in pixels."""
    torch.manual_seed(0)
    mixed = sum(
        not torch.equal(vary(images, torch.eye(BATCH), recipe(cutmix=0.3))[0], images)
        for _ in range(300)
    )
    assert 90 - 32 <= mixed <= 90 + 32


def test_the_seed_decides(images: Tensor) -> None:
    """As it does for a resumed run."""
    row, targets = recipe(mirror=True, cutmix=1.0), torch.eye(BATCH)
    results = []
    for seed in (3, 3, 4):
        torch.manual_seed(seed)
        results.append(vary(images, targets, row))
    assert torch.equal(results[0][0], results[1][0])
    assert torch.equal(results[0][1], results[1][1])
    assert not torch.equal(results[0][0], results[2][0])


def test_a_share_above_one_is_refused() -> None:
    """The option is named."""
    with pytest.raises(InputError, match="--cutmix"):
        recipe(cutmix=1.5)
