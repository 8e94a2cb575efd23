"""Run a model over a folder of images, in PyTorch or in an artifact's own runtime."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import nn

from tinyvit_edge import metrics
from tinyvit_edge.bundle import read_bundle
from tinyvit_edge.data import BATCH_SIZE, ImageDataset, at_a_time, load_batches, scan_folder
from tinyvit_edge.errors import DataError, InputError
from tinyvit_edge.exporters import exporter, require
from tinyvit_edge.worker import TargetProcess

if TYPE_CHECKING:
    from tinyvit_edge.checkpoint import PresetName
    from tinyvit_edge.console import QuietDisplay
    from tinyvit_edge.modeling import TinyVitForImageClassification
    from tinyvit_edge.pixels import Pixels
    from tinyvit_edge.preprocessing import Preprocessing
    from tinyvit_edge.types import FloatArray

__all__ = [
    "artifact_logits",
    "evaluate_accuracy",
    "labels_of",
    "logits_of_pixels",
    "reference_logits",
    "reference_module",
    "sample_images",
    "torch_threads",
]

Progress = Callable[[int], None]
Run = Callable[[ImageDataset, Progress], "FloatArray"]
"""Logits (n, classes) of a data set; calls the second argument with the number of images done."""


def _silent(count: int) -> None:
    """No progress is shown."""


@contextmanager
def torch_threads(count: int) -> Iterator[None]:
    """Let PyTorch use `count` threads, and as many as before afterwards."""
    before = torch.get_num_threads()
    torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def reference_module(model: TinyVitForImageClassification) -> nn.Module:
    """The reference model as a module from images (B, 3, S, S) to logits (B, classes)."""
    return _Logits(model)


def reference_logits(
    module: nn.Module,
    dataset: ImageDataset,
    preprocessing: Preprocessing,
    *,
    progress: Progress = _silent,
) -> FloatArray:
    """Logits (n, classes) of every image, by a PyTorch module in eval mode."""
    size = at_a_time(preprocessing.size)
    batches = (images for images, _ in load_batches(dataset, preprocessing, size))
    return _module_logits(module, batches, progress)


def logits_of_pixels(
    module: nn.Module, pixels: Pixels, *, progress: Progress = _silent
) -> FloatArray:
    """The same as `reference_logits` of images that were decoded before."""
    return _module_logits(module, pixels.batches(at_a_time(pixels.preprocessing.size)), progress)


def _module_logits(
    module: nn.Module, batches: Iterable[FloatArray], progress: Progress
) -> FloatArray:
    chunks = []
    for images in batches:
        with torch.inference_mode():
            chunks.append(module(torch.from_numpy(images)).numpy())
        progress(len(images))
    return np.concatenate(chunks)


def artifact_logits(
    target: str,
    artifact: Path,
    dataset: ImageDataset,
    preprocessing: Preprocessing,
    *,
    options: Mapping[str, Any] | None = None,
    threads: int = 1,
    pixels: Pixels | None = None,
    progress: Progress = _silent,
) -> FloatArray:
    """Logits (n, classes) of every image, by a saved artifact in a process of its own.

    Where `pixels` holds the data set's images by the same contract, the process reads them there.

    Raises:
        ConversionError: the runtime crashed.
        InputError: the artifact cannot be read, or an image cannot.
    """
    chunks = []
    with TargetProcess(target, options=options, threads=threads) as process:
        process.load(artifact)
        if pixels is not None:
            for start in range(0, len(pixels), BATCH_SIZE):
                chunks.append(process.classify(pixels, start, start + BATCH_SIZE))
                progress(len(chunks[-1]))
            return np.concatenate(chunks)
        for images, _ in load_batches(dataset, preprocessing, BATCH_SIZE):
            chunks.append(process.run(images))
            progress(len(images))
    return np.concatenate(chunks)


def sample_images(dataset: ImageDataset, preprocessing: Preprocessing, count: int) -> FloatArray:
    """Evenly spaced images of a data set as one array (min(count, n), 3, S, S)."""
    batches = load_batches(dataset.subset(count), preprocessing, BATCH_SIZE)
    return np.concatenate([images for images, _ in batches])


def labels_of(dataset: ImageDataset) -> Sequence[int | None]:
    """The label of every image, in order."""
    return [sample.label for sample in dataset.samples]


def evaluate_accuracy(
    model: str,
    *,
    data: Path,
    limit: int | None,
    threads: int,
    image_size: int | None = None,
    preprocessing: PresetName | None = None,
    display: QuietDisplay,
) -> dict[str, Any]:
    """Top-1 and top-5 accuracy of a checkpoint in PyTorch, or of a bundle in its runtime.

    `image_size` and `preprocessing` are `load_checkpoint`'s; a bundle has its own.

    Returns:
        ``top1`` and ``top5`` as fractions in 0..1, and ``n``; top-5 of fewer than five classes
        is top-n of all of them.

    Raises:
        DataError: no photo has a label.
        InputError: neither a checkpoint nor a bundle, or a bundle that is to be prepared for
            in another way.
    """
    if not (Path(model) / "manifest.json").is_file():
        labels, run = _checkpoint_run(model, image_size, preprocessing, threads)
    elif image_size is None and preprocessing is None:
        labels, run = _bundle_run(Path(model), threads)
    else:
        raise InputError(
            f"{model}: a bundle has its own preprocessing; --image-size and --preprocessing are "
            "for weights"
        )
    dataset = scan_folder(data, labels)
    if not dataset.labelled:
        raise DataError(f"{data}: no labels, so no accuracy: give one sub-folder a class")
    if limit is not None:
        dataset = dataset.subset(limit)
    with display.track("evaluate", len(dataset)) as advance:
        logits = run(dataset, advance)
    known = [label for label in labels_of(dataset) if label is not None]
    return {
        "top1": metrics.top_k_accuracy(logits, known, 1),
        "top5": metrics.top_k_accuracy(logits, known, 5),
        "n": len(known),
    }


def _checkpoint_run(
    weights: str, image_size: int | None, preprocessing: PresetName | None, threads: int
) -> tuple[Sequence[str], Run]:
    """A checkpoint's labels, and the way to run it in PyTorch."""
    from tinyvit_edge.checkpoint import load_checkpoint

    checkpoint = load_checkpoint(weights, image_size=image_size, preprocessing=preprocessing)
    module = reference_module(checkpoint.model)

    def run(dataset: ImageDataset, progress: Progress) -> FloatArray:
        with torch_threads(threads):
            return reference_logits(module, dataset, checkpoint.preprocessing, progress=progress)

    return checkpoint.labels, run


def _bundle_run(root: Path, threads: int) -> tuple[Sequence[str], Run]:
    """A bundle's labels, and the way to run its artifact."""
    bundle = read_bundle(root)
    options = bundle.manifest["options"]
    require(exporter(bundle.target, **options))

    def run(dataset: ImageDataset, progress: Progress) -> FloatArray:
        return artifact_logits(
            bundle.target,
            bundle.artifact,
            dataset,
            bundle.preprocessing,
            options=options,
            threads=threads,
            progress=progress,
        )

    return bundle.labels, run


class _Logits(nn.Module):
    def __init__(self, model: TinyVitForImageClassification) -> None:
        super().__init__()
        self.model = model

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        logits: torch.Tensor = self.model(images).logits
        return logits
