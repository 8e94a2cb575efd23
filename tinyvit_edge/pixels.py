"""A data set's images, decoded and resized once for everyone who runs a model on them.

One file holds them as uint8, a quarter of what the normalised tensors take, and every process maps
it into memory, so they are there once however many processes read them.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from tinyvit_edge.data import ImageDataset
from tinyvit_edge.errors import DataError, InputError
from tinyvit_edge.preprocessing import Preprocessing, decode, normalise, resize

if TYPE_CHECKING:
    from tinyvit_edge.types import FloatArray

__all__ = ["Pixels", "prepare_pixels"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Pixels:
    """Images after resize and crop, in a file; it can be sent to another process."""

    path: Path
    """An array uint8 (n, S, S, 3) in NumPy's format."""
    preprocessing: Preprocessing
    """The contract that they were resized by and are normalised by."""

    def tensors(self, start: int, stop: int) -> FloatArray:
        """Images from `start` to before `stop`, normalised: float32 (stop - start, 3, S, S)."""
        return self.pick(range(*slice(start, stop).indices(len(self))))

    def pick(self, rows: range | npt.NDArray[np.intp]) -> FloatArray:
        """The images of some rows, normalised: float32 (rows, 3, S, S)."""
        images = self._mapped()
        return np.stack([normalise(images[row], self.preprocessing) for row in rows])

    def batches(self, size: int) -> Iterator[FloatArray]:
        """All images in order, `size` at a time, normalised; the last batch may be smaller."""
        for start in range(0, len(self), size):
            yield self.tensors(start, start + size)

    def __len__(self) -> int:
        return len(self._mapped())

    def _mapped(self) -> npt.NDArray[np.uint8]:
        mapped: npt.NDArray[np.uint8] = np.load(self.path, mmap_mode="r")
        return mapped


def prepare_pixels(
    dataset: ImageDataset,
    preprocessing: Preprocessing,
    path: Path,
    *,
    progress: Callable[[int], None] = lambda _: None,
) -> Pixels:
    """Decode and resize every image of a data set into a new file, on all cores.

    Args:
        dataset: the images.
        preprocessing: the contract.
        path: the file; its name ends in ``.npy``.
        progress: called with the number of images done.

    Raises:
        DataError: an image cannot be read.
        InputError: the file cannot be written, or its disk is full.
    """
    side = preprocessing.size
    head = {"descr": "|u1", "fortran_order": False, "shape": (len(dataset), side, side, 3)}
    # Pillow decodes and resizes outside Python's lock, so threads do
    with _explained(path), path.open("wb") as file, ThreadPoolExecutor(os.cpu_count()) as pool:
        np.lib.format.write_array_header_1_0(file, head)
        for image in pool.map(lambda one: _resized(one.path, preprocessing), dataset.samples):
            file.write(image.tobytes())
            progress(1)
    return Pixels(path=path, preprocessing=preprocessing)


@contextmanager
def _explained(path: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise InputError(
            f"{path.parent}: no place for the resized photos ({error.strerror or error}); "
            "free some space, or set TMPDIR to another folder"
        ) from error


def _resized(path: Path, preprocessing: Preprocessing) -> npt.NDArray[np.uint8]:
    image = decode(path)
    try:
        return resize(image, preprocessing)
    except DataError as error:
        raise DataError(f"{path}: {error}") from error
