"""Folders of images: finding them, matching their classes to a model's, and reading batches.

Two layouts are understood: an ImageFolder (one sub-folder a class) and a flat folder of unlabelled
images. Hidden files (a name that begins with a dot) and the litter of Windows (``Thumbs.db``,
``desktop.ini``) are ignored; any other file that is not an image is an error, because a data set
that is not what its owner thinks it is makes figures that look right.

A class folder finds its class by the first of these rules that answers:

1. its name is a label of the model, or one of a label's names where that has several ("tench,
   Tinca tinca"); case does not matter, and an underscore counts as a space;
2. its name is an ImageNet-1k WordNet id ("n01440764"): the class of the model whose label shares a
   name with it, or, in a model of 1000 classes, its place in the ImageNet list;
3. the model's labels are all placeholders ("class 0", "LABEL_0"), no folder was matched, and there
   are as many folders as classes: sorted order, ImageFolder's convention.

Folders that none of the rules fits are an error; nothing is guessed.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from tinyvit_edge.errors import DataError, InputError
from tinyvit_edge.imagenet import imagenet_wnids, synonyms_of_wnid
from tinyvit_edge.preprocessing import Preprocessing, decode, preprocess

__all__ = [
    "BATCH_SIZE",
    "IMAGE_EXTENSIONS",
    "SAMPLE_SIZE",
    "ImageDataset",
    "ImageSample",
    "at_a_time",
    "fingerprint",
    "load_batches",
    "scan_folder",
]

BATCH_SIZE = 16
"""Images of 224 pixels that PyTorch runs at a time; `at_a_time` of other sizes."""
SAMPLE_SIZE = 128
"""Evenly spaced photos that calibration and parity take unless told otherwise."""

IMAGE_EXTENSIONS = (
    ".bmp", ".gif", ".jpeg", ".jpg", ".pgm", ".png", ".ppm", ".tif", ".tiff", ".webp",
)  # fmt: skip

_LITTER = ("thumbs.db", "desktop.ini")
_PLACEHOLDER = re.compile(r"(class|label)[ _-]?\d+", re.IGNORECASE)


@dataclass(frozen=True, slots=True, kw_only=True)
class ImageSample:
    """One image file, and its class index in the model or None."""

    path: Path
    label: int | None


@dataclass(frozen=True, slots=True, kw_only=True)
class ImageDataset:
    """A folder of images, in a fixed order; all of the samples have a label or none has.

    Attributes:
        root: the folder that was scanned.
        samples: sorted by class folder, then by file name.
    """

    root: Path
    samples: tuple[ImageSample, ...]

    def __len__(self) -> int:
        return len(self.samples)

    @property
    def labelled(self) -> bool:
        """Whether accuracy can be measured on it."""
        return all(sample.label is not None for sample in self.samples)

    def subset(self, n: int) -> ImageDataset:
        """Return `n` samples evenly spaced over the order, so that classes stay balanced.

        The same folder and `n` always give the same samples; `n` at or above the length gives
        the whole set.

        Raises:
            InputError: `n` is below 1.
        """
        if n < 1:
            raise InputError(
                f"{self.root}: a subset of {n} images was asked for; ask for 1 or more"
            )
        if n >= len(self):
            return self
        picked = tuple(self.samples[i * len(self) // n] for i in range(n))
        return replace(self, samples=picked)


def scan_folder(root: str | Path, labels: Sequence[str] | None = None) -> ImageDataset:
    """Find the images of an ImageFolder, or of a flat folder, and their classes.

    Args:
        root: the folder.
        labels: the model's labels in class order; None leaves every sample unlabelled.

    Raises:
        DataError: the folder is missing or holds no image, a file in it is not an image, folders
            are nested deeper than one level or mixed with images, or a class folder's name fits
            no label.
    """
    root = Path(root)
    if not root.is_dir():
        problem = "is a file" if root.exists() else "does not exist"
        raise DataError(f"{root}: {problem}; give a folder of images")
    entries = _entries(root)
    folders = [entry for entry in entries if entry.is_dir()]
    if not folders:
        samples = tuple(ImageSample(path=path, label=None) for path in _images(root))
    else:
        loose = [entry.name for entry in entries if not entry.is_dir()]
        if loose:
            raise DataError(
                f"{root / loose[0]}: a file beside class folders; remove it or move it into one"
            )
        images = {folder.name: _images(folder) for folder in folders}
        classes = _match_folders(root, list(images), labels) if labels is not None else {}
        samples = tuple(
            ImageSample(path=path, label=classes.get(name))
            for name, paths in images.items()
            for path in paths
        )
    if not samples:
        raise DataError(
            f"{root}: no image in it; give a folder of images or of class folders "
            f"({', '.join(IMAGE_EXTENSIONS)})"
        )
    return ImageDataset(root=root, samples=samples)


def at_a_time(side: int, most: int = BATCH_SIZE) -> int:
    """How many images of a side in pixels PyTorch runs in the memory of `most` images of 224.

    Activations grow with an image's area, those of whole-image windows with its square.
    """
    return max(1, min(most, most * 224**2 // side**2))


def load_batches(
    dataset: ImageDataset, preprocessing: Preprocessing, batch_size: int
) -> Iterator[tuple[npt.NDArray[np.float32], npt.NDArray[np.int64] | None]]:
    """Read and preprocess the samples in order; the last batch may be smaller.

    Yields:
        float32 (B, 3, S, S), and int64 (B,) class indices or None for an unlabelled set.

    Raises:
        InputError: `batch_size` is below 1.
        DataError: a file cannot be read as an image.
    """
    if batch_size < 1:
        raise InputError(f"{dataset.root}: a batch of {batch_size} images; ask for 1 or more")
    for start in range(0, len(dataset), batch_size):
        batch = dataset.samples[start : start + batch_size]
        pixels = np.stack([_load(sample.path, preprocessing) for sample in batch])  # (B, 3, S, S)
        labels = [sample.label for sample in batch if sample.label is not None]
        yield pixels, np.array(labels, np.int64) if dataset.labelled else None


def fingerprint(dataset: ImageDataset) -> str:
    """Return a SHA-256 over the samples' relative paths, sizes and content, in hexadecimal.

    Where the folder lies and which labels were matched does not change it.

    Raises:
        DataError: a file has become unreadable.
    """
    digest = hashlib.sha256()
    for sample in dataset.samples:
        try:
            content = sample.path.read_bytes()
        except OSError as error:
            raise DataError(
                f"{sample.path}: cannot be read ({error.strerror or error}); check the path"
            ) from error
        relative = sample.path.relative_to(dataset.root).as_posix()
        digest.update(f"{relative}\0{len(content)}\0".encode())
        digest.update(content)
    return digest.hexdigest()


def _load(path: Path, preprocessing: Preprocessing) -> npt.NDArray[np.float32]:
    image = decode(path)
    try:
        return preprocess(image, preprocessing)
    except DataError as error:
        raise DataError(f"{path}: {error}") from error


def _entries(folder: Path) -> list[Path]:
    """Return what is in the folder, sorted by name, without hidden files and litter."""
    try:
        entries = sorted(folder.iterdir(), key=lambda entry: entry.name)
    except OSError as error:
        raise DataError(
            f"{folder}: cannot be listed ({error.strerror or error}); check its permissions"
        ) from error
    return [e for e in entries if not e.name.startswith(".") and e.name.lower() not in _LITTER]


def _images(folder: Path) -> list[Path]:
    paths = _entries(folder)
    for path in paths:
        if path.is_dir():
            raise DataError(
                f"{path}: a folder inside a class folder; give the folder that holds the class "
                "folders, or move its images up"
            )
        if path.suffix.lower() not in IMAGE_EXTENSIONS:
            raise DataError(
                f"{path}: not an image by its extension; remove it or convert it to "
                f"{', '.join(IMAGE_EXTENSIONS)}"
            )
    return paths


def _match_folders(root: Path, folders: Sequence[str], labels: Sequence[str]) -> dict[str, int]:
    """Map each folder name to a class index by the rules of the module docstring."""
    index = _NameIndex(labels)
    matched = {name: index.find(name) for name in folders}
    found = {name: number for name, number in matched.items() if number is not None}
    if len(found) == len(folders):
        return found
    placeholders = all(_PLACEHOLDER.fullmatch(label.strip()) for label in labels)
    if not found and placeholders and len(folders) == len(labels):
        return {name: number for number, name in enumerate(folders)}
    stray = next(name for name in folders if name not in found)
    raise DataError(
        f"{root}: {len(folders)} class folders and a model of {len(labels)} classes, and "
        f"{stray!r} fits no single label ({len(folders) - len(found)} such); name the folders by "
        "the model's labels or by WordNet ids, or give a flat folder of photos (no accuracy then)"
    )


class _NameIndex:
    """Finds the class that a folder name means (rules 1 and 2)."""

    def __init__(self, labels: Sequence[str]) -> None:
        self.class_count = len(labels)
        # Exact case comes first: ImageNet has a Cardigan (a dog) and a cardigan (a garment).
        self.exact = _Table.of(labels)
        self.folded = _Table.of([label.casefold() for label in labels])

    def find(self, folder: str) -> int | None:
        name = _plain(folder)
        for key, table in ((name, self.exact), (name.casefold(), self.folded)):
            for numbers in (table.by_label.get(key), table.by_name.get(key)):
                if numbers:
                    return numbers[0] if len(numbers) == 1 else None
        return self._find_wnid(folder) if folder in imagenet_wnids() else None

    def _find_wnid(self, wnid: str) -> int | None:
        names = [_plain(name).casefold() for name in synonyms_of_wnid(wnid)]
        numbers = sorted({number for name in names for number in self.folded.by_name.get(name, [])})
        place = imagenet_wnids().index(wnid)
        if self.class_count == len(imagenet_wnids()) and (place in numbers or not numbers):
            return place
        return numbers[0] if len(numbers) == 1 else None


class _Table(NamedTuple):
    """Which classes have a label, and which have it among the names that a label lists."""

    by_label: dict[str, list[int]]
    by_name: dict[str, list[int]]

    @classmethod
    def of(cls, labels: Sequence[str]) -> _Table:
        names = [[_plain(name) for name in label.split(",")] for label in labels]
        return cls(_positions([[_plain(label)] for label in labels]), _positions(names))


def _positions(rows: Sequence[Sequence[str]]) -> dict[str, list[int]]:
    """Map each name to the rows that have it."""
    positions: dict[str, list[int]] = {}
    for number, row in enumerate(rows):
        for name in dict.fromkeys(row):
            positions.setdefault(name, []).append(number)
    return positions


def _plain(name: str) -> str:
    return name.replace("_", " ").strip()
