"""A small TinyViT for handwritten digits: real data and trained weights, with nothing to download.

The images are the 1,797 handwritten digits that scikit-learn carries (8 x 8 pixels, 17 grey
levels; UCI "Optical Recognition of Handwritten Digits", CC BY 4.0). Every third one is held out.

::

    python -m tinyvit_edge.digits images OUT   # OUT/train and OUT/heldout, an ImageFolder each
    python -m tinyvit_edge.digits train OUT    # trains, checks the held-out third, writes OUT

The bundled weights (``--weights digits``) were made by the second command.
"""

from __future__ import annotations

import argparse
import math
from pathlib import Path
from typing import TYPE_CHECKING, Literal, get_args

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor

from tinyvit_edge.errors import GateError, MissingDependencyError
from tinyvit_edge.files import atomic_directory
from tinyvit_edge.preprocessing import Preprocessing, preprocess

if TYPE_CHECKING:
    from tinyvit_edge.modeling import TinyVitForImageClassification

__all__ = ["PREPROCESSING", "load_digits", "train", "write_images"]

LABELS = tuple(str(digit) for digit in range(10))
PREPROCESSING = Preprocessing(size=64, crop_pct=1.0, mode="squash")
_EPOCHS, _BATCH, _LEARNING_RATE, _WEIGHT_DECAY, _SMOOTHING = 60, 64, 2e-3, 0.05, 0.1
_REQUIRED_ACCURACY = 0.98

Part = Literal["train", "heldout"]
Digits = tuple[list[Image.Image], list[int]]


def load_digits(part: Part) -> Digits:
    """Grey-scale 8 x 8 images and their digits.

    Args:
        part: ``heldout`` for every third image, ``train`` for the others.

    Raises:
        MissingDependencyError: scikit-learn is not installed.
    """
    try:
        from sklearn.datasets import load_digits as load
    except ImportError as error:
        raise MissingDependencyError(
            "the digits come with scikit-learn: pip install 'tinyvit-edge[demo]'"
        ) from error
    bunch = load()
    pixels = np.rint(bunch.images * (255 / 16)).astype(np.uint8)  # (1797, 8, 8)
    chosen = [i for i in range(len(pixels)) if (i % 3 == 2) == (part == "heldout")]
    return [Image.fromarray(pixels[i]) for i in chosen], [int(bunch.target[i]) for i in chosen]


def write_images(directory: Path) -> None:
    """Write both parts as PNG files, ``directory/part/digit/index.png``."""
    with atomic_directory(directory) as root:
        for part in get_args(Part):
            images, labels = load_digits(part)
            for index, (image, label) in enumerate(zip(images, labels, strict=True)):
                path = root / part / LABELS[label] / f"{index:04d}.png"
                path.parent.mkdir(parents=True, exist_ok=True)
                image.save(path)


def train(directory: Path, *, seed: int = 0) -> float:
    """Train the model and write it as a Hugging Face folder.

    Returns:
        Top-1 accuracy on the held-out third, a fraction in 0..1.

    Raises:
        GateError: it is below 98 %; nothing is written then.
    """
    from tinyvit_edge.checkpoint import Checkpoint, save_checkpoint

    torch.manual_seed(seed)
    torch.set_num_threads(1)  # another count gives other sums, and so another model
    model = _model()
    images, labels = _tensors("train")
    optimizer = torch.optim.AdamW(model.parameters(), weight_decay=_WEIGHT_DECAY)
    steps_per_epoch = len(images) // _BATCH
    for epoch in range(_EPOCHS):
        model.train()
        order = torch.randperm(len(images))
        for step in range(steps_per_epoch):
            _set_learning_rate(optimizer, epoch * steps_per_epoch + step, steps_per_epoch)
            batch = order[step * _BATCH : (step + 1) * _BATCH]
            logits = model(_augment(images[batch])).logits  # (B, 10)
            loss = F.cross_entropy(logits, labels[batch], label_smoothing=_SMOOTHING)
            optimizer.zero_grad()
            loss.backward()  # type: ignore[no-untyped-call]
            torch.nn.utils.clip_grad_norm_(model.parameters(), 5.0)
            optimizer.step()
        print(f"epoch {epoch + 1}/{_EPOCHS} loss {float(loss):.3f}", flush=True)
    accuracy = evaluate(model.eval())
    if accuracy < _REQUIRED_ACCURACY:
        raise GateError(f"held-out accuracy is {accuracy:.4f}, below {_REQUIRED_ACCURACY}")
    checkpoint = Checkpoint(
        model=model,
        labels=LABELS,
        preprocessing=PREPROCESSING,
        variant="custom",
        format="huggingface",
        sha256="",
        source="digits",
    )
    save_checkpoint(checkpoint, directory)
    return accuracy


def evaluate(model: TinyVitForImageClassification) -> float:
    """Top-1 accuracy on the held-out third, a fraction in 0..1."""
    images, labels = _tensors("heldout")
    with torch.inference_mode():
        predicted = torch.cat(
            [model(batch).logits.argmax(1) for batch in torch.split(images, _BATCH)]
        )
    return float((predicted == labels).float().mean())


def _model() -> TinyVitForImageClassification:
    from tinyvit_edge.configuration import TinyVitConfig
    from tinyvit_edge.modeling import TinyVitForImageClassification

    # the third stage works on 4 x 4 tokens in windows of 3: the demo goes through window padding
    config = TinyVitConfig(
        image_size=PREPROCESSING.size,
        hidden_sizes=[32, 64, 96, 128],
        depths=[1, 1, 2, 1],
        num_heads=[1, 2, 3, 4],
        window_sizes=[4, 4, 3, 2],
        id2label=dict(enumerate(LABELS)),
        label2id={label: index for index, label in enumerate(LABELS)},
    )
    return TinyVitForImageClassification(config)


def _tensors(part: Part) -> tuple[Tensor, Tensor]:
    images, labels = load_digits(part)
    stacked = np.stack([preprocess(image.convert("RGB"), PREPROCESSING) for image in images])
    return torch.from_numpy(stacked), torch.tensor(labels)  # (n, 3, 64, 64), (n,)


def _augment(images: Tensor) -> Tensor:
    """Rotate by up to 15 degrees, scale by up to 15 % and shift by up to 10 %, per image."""
    count = len(images)
    angle = (torch.rand(count) * 2 - 1) * math.radians(15)
    scale = 1 + (torch.rand(count) * 2 - 1) * 0.15
    shift = (torch.rand(count, 2) * 2 - 1) * 0.2  # in half sides
    cos, sin = torch.cos(angle) * scale, torch.sin(angle) * scale
    rows = (torch.stack((cos, -sin, shift[:, 0]), 1), torch.stack((sin, cos, shift[:, 1]), 1))
    grid = F.affine_grid(torch.stack(rows, 1), list(images.shape), align_corners=False)
    return F.grid_sample(images, grid, padding_mode="border", align_corners=False)


def _set_learning_rate(optimizer: torch.optim.Optimizer, step: int, steps_per_epoch: int) -> None:
    """Warm up linearly over three epochs, then decay with a cosine to zero."""
    warmup, total = 3 * steps_per_epoch, _EPOCHS * steps_per_epoch
    factor = (step + 1) / warmup
    if step >= warmup:
        factor = 0.5 * (1 + math.cos(math.pi * (step - warmup) / (total - warmup)))
    for group in optimizer.param_groups:
        group["lr"] = _LEARNING_RATE * factor


def main() -> None:
    """Run one of the two commands."""
    parser = argparse.ArgumentParser(prog="python -m tinyvit_edge.digits")
    parser.add_argument("command", choices=("images", "train"))
    parser.add_argument("out", type=Path)
    arguments = parser.parse_args()
    if arguments.command == "images":
        write_images(arguments.out)
    else:
        print(f"held-out top-1 {train(arguments.out):.4f}")


if __name__ == "__main__":
    main()
