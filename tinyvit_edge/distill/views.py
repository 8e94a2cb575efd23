"""Views of a folder's images as PyTorch data sets: drawn from a seed each, at any size."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from tinyvit_edge.distill import augment
from tinyvit_edge.distill.augment import Policy
from tinyvit_edge.distill.draws import permutation, sample_seed
from tinyvit_edge.errors import DataError
from tinyvit_edge.preprocessing import decode

__all__ = ["ViewDataset", "epoch_seeds", "loader", "partners"]


def epoch_seeds(count: int, seed: int, epoch: int) -> npt.NDArray[np.int32]:
    """The augmentation seed of every sample in an epoch: int32 (count,)."""
    return np.array([sample_seed(seed, epoch, index) for index in range(count)], np.int32)


def partners(count: int, seed: int, epoch: int) -> npt.NDArray[np.int64]:
    """Whom each sample is mixed with in an epoch: a random pairing, int64 (count,).

    Where the count is odd, one sample is its own partner.
    """
    order = permutation(count, seed, epoch, 1)
    pairing = np.arange(count)
    left, right = order[0 : count - 1 : 2], order[1:count:2]
    pairing[left], pairing[right] = right, left
    return pairing


class ViewDataset(Dataset[tuple[Tensor, int]]):
    """One view of each image: (uint8 (size, size, 3), the image's index).

    Args:
        paths: the images, in record order.
        policy: how views are drawn.
        seeds: each sample's augmentation seed, int32 (n,).
        pairing: whom each is mixed with, int64 (n,), where the policy mixes.
        size: side in pixels.
    """

    def __init__(
        self,
        paths: Sequence[Path],
        *,
        policy: Policy,
        seeds: npt.NDArray[np.int32],
        pairing: npt.NDArray[np.int64] | None,
        size: int,
    ) -> None:
        self.paths, self.policy, self.size = paths, policy, size
        self.seeds, self.pairing = seeds, pairing

    def __len__(self) -> int:
        return len(self.paths)

    def partner(self, index: int) -> tuple[int, augment.Mix] | None:
        """Which image a sample is mixed with and how; None where it is not mixed."""
        if self.pairing is None:
            return None
        other = int(self.pairing[index])
        how = augment.draw_mix(self.policy, int(self.seeds[index]), int(self.seeds[other]))
        return None if how is None else (other, how)

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        pixels = self._render(index)
        mixed = self.partner(index)
        if mixed is not None:
            pixels = augment.mix(pixels, self._render(mixed[0]), mixed[1])
        return torch.from_numpy(pixels), index

    def _render(self, index: int) -> augment.Pixels:
        image = decode(self.paths[index])
        view = augment.draw(self.policy, int(self.seeds[index]), image.width, image.height)
        return augment.render(image, view, self.size)


def loader(
    dataset: Dataset[tuple[Tensor, int]], batches: Sequence[Sequence[int]], workers: int
) -> Iterator[list[Tensor]]:
    """Read the given batches in order, in `workers` processes (0: in this one).

    Yields:
        Views uint8 (B, size, size, 3), and their indices int64 (B,).

    Raises:
        DataError: an image cannot be read.
    """
    loaded: DataLoader[tuple[Tensor, int]] = DataLoader(
        dataset,
        batch_sampler=[list(batch) for batch in batches],
        num_workers=workers,
        prefetch_factor=4 if workers else None,
        pin_memory=torch.cuda.is_available(),
        worker_init_fn=_one_thread,
    )
    try:
        yield from loaded
    except DataError as error:
        # from a worker it comes with the whole traceback, whose last line is the message
        message = str(error).strip().splitlines()[-1]
        raise DataError(message.removeprefix(f"{DataError.__module__}.DataError: ")) from None


def _one_thread(_: int) -> None:
    torch.set_num_threads(1)
