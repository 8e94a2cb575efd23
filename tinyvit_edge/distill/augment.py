"""Augmentation that can be replayed: a policy, a seed and an image give the same bytes anywhere.

Drawing and rendering are apart. `draw` turns a seed into a `View`, plain numbers that do not
depend on the size of the output; `render` makes the pixels. Rendered at the size that the teacher
saw, a student gets the very bytes that the teacher got; rendered smaller (progressive resolution)
it gets the same crop, flip, operations and erasing.

To keep the bytes equal across platforms, every step is integer arithmetic: Pillow's 8-bit resize
and its fixed-point nearest-neighbour transform, and lookup tables for the colours. Pillow's
`Image.blend` and its bilinear transform are not used: they work in float, which compilers round in
different ways. `VERSION` counts every change that alters a byte, and a store that another version
wrote is refused.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, fields
from typing import Any

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageOps

from tinyvit_edge.distill.draws import Draws
from tinyvit_edge.errors import InputError

__all__ = [
    "POLICIES",
    "VERSION",
    "Mix",
    "Policy",
    "View",
    "draw",
    "draw_mix",
    "mix",
    "policy_for",
    "render",
]

VERSION = 2
Pixels = npt.NDArray[np.uint8]

_FILL = (124, 116, 104)  # the ImageNet mean, where a transform leaves the image
_TRIES = 10  # of a crop that fits, as torchvision's RandomResizedCrop


@dataclass(frozen=True, slots=True, kw_only=True)
class Policy:
    """How views are drawn; a store's manifest carries it.

    Attributes:
        scale: range of the crop's area over the image's.
        ratio: range of the crop's width over its height.
        flip: probability of a horizontal flip.
        operations: how many operations of RandAugment (arXiv 1909.13719) are applied.
        magnitude: their strength in 0..10.
        erase: probability that a rectangle is replaced by noise (arXiv 1708.04896).
        mixup: alpha of Beta(alpha, alpha) for blending two images (arXiv 1710.09412); 0 is off.
        cutmix: the same for pasting a rectangle (arXiv 1905.04899); where both are on, a fair coin
            decides.
        mix: probability that a sample is mixed at all.

    Raises:
        InputError: a number out of range.
    """

    scale: tuple[float, float] = (0.08, 1.0)
    ratio: tuple[float, float] = (3 / 4, 4 / 3)
    flip: float = 0.5
    operations: int = 0
    magnitude: float = 9.0
    erase: float = 0.0
    mixup: float = 0.0
    cutmix: float = 0.0
    mix: float = 1.0

    def __post_init__(self) -> None:
        for name, least, most in (("scale", 1e-6, 1.0), ("ratio", 0.01, 100.0)):
            low, high = getattr(self, name)
            if not least <= low <= high <= most:
                raise InputError(
                    f"augmentation: {name} {low}..{high} is not a range within {least}..{most}"
                )
        for name in ("flip", "erase", "mix"):
            if not 0 <= getattr(self, name) <= 1:
                raise InputError(f"augmentation: {name} must be a probability in 0..1")
        if self.operations < 0 or not 0 <= self.magnitude <= 10:
            raise InputError("augmentation: operations must be >= 0, and magnitude in 0..10")
        for alpha in (self.mixup, self.cutmix):
            if alpha != 0 and not 0.01 <= alpha <= 4:  # beyond, Johnk's method hardly ever ends
                raise InputError("augmentation: mixup and cutmix must be 0 (off) or in 0.01..4")

    @property
    def mixes(self) -> bool:
        """Whether samples are mixed in pairs."""
        return self.mix > 0 and (self.mixup > 0 or self.cutmix > 0)

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Policy:
        """Build from JSON.

        Raises:
            InputError: an unknown key, or a number out of range.
        """
        unknown = sorted(set(values) - {field.name for field in fields(cls)})
        if unknown:
            raise InputError(f"augmentation: unknown key {unknown[0]!r}")
        arguments: dict[str, Any] = {
            k: tuple(v) if isinstance(v, list) else v for k, v in values.items()
        }
        return cls(**arguments)


POLICIES: Mapping[str, Policy] = {
    # pretraining distillation of the paper: crops, flips, RandAugment, erasing, no mixing
    "distill": Policy(operations=2, magnitude=9.0, erase=0.25),
    # for small data sets and few epochs: the subject stays in the crop
    "light": Policy(scale=(0.3, 1.0), operations=1, magnitude=6.0),
    # training on hard labels, as the paper's 300 epochs
    "strong": Policy(operations=2, magnitude=9.0, erase=0.25, mixup=0.8, cutmix=1.0),
    "crop": Policy(scale=(0.3, 1.0)),
}


def policy_for(name: str) -> Policy:
    """The policy of that name.

    Raises:
        InputError: there is none.
    """
    if name not in POLICIES:
        raise InputError(f"unknown augmentation {name!r}: choose {', '.join(POLICIES)}")
    return POLICIES[name]


@dataclass(frozen=True, slots=True, kw_only=True)
class View:
    """What happens to one image.

    Attributes:
        box: left, top, right, bottom of the crop in pixels of the image.
        flip: mirrored left to right.
        operations: names out of `_OPERATIONS`, each with its level.
        erase: left, top, right, bottom as fractions of the output; None where nothing is erased.
        noise_seed: of the erased rectangle's pixels.
    """

    box: tuple[int, int, int, int]
    flip: bool
    operations: tuple[tuple[str, float], ...]
    erase: tuple[float, float, float, float] | None
    noise_seed: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Mix:
    """How an image and its partner become one.

    Attributes:
        keep: share of the image that stays, in 1/256.
        box: left, top, right, bottom, as fractions, of the partner's rectangle (CutMix); None for
            a blend (mixup).
    """

    keep: int
    box: tuple[float, float, float, float] | None


def draw(policy: Policy, seed: int, width: int, height: int) -> View:
    """Draw the view of an image of `width` x `height` pixels."""
    draws = Draws(seed)
    box = _draw_crop(policy, draws, width, height)
    flip = draws.chance(policy.flip)
    names = sorted(_OPERATIONS)
    operations = []
    for _ in range(policy.operations):
        name = names[draws.integer(len(names))]
        operations.append((name, draws.sign() * policy.magnitude / 10))
    return View(
        box=box,
        flip=flip,
        operations=tuple(operations),
        erase=_draw_rectangle(draws, draws.uniform(0.02, 1 / 3))
        if draws.chance(policy.erase)
        else None,
        noise_seed=seed,
    )


def draw_mix(policy: Policy, seed: int, partner_seed: int) -> Mix | None:
    """Draw how a pair is mixed, from both seeds; None where it is not."""
    draws = Draws(seed ^ partner_seed)
    if not policy.mixes or not draws.chance(policy.mix):
        return None
    cut = draws.chance(0.5) if policy.mixup and policy.cutmix else policy.cutmix > 0
    share = draws.beta(policy.cutmix if cut else policy.mixup)
    # the image is the larger part: then a sample's view is mostly of its own image
    keep = max(share, 1 - share)
    box = _draw_rectangle(draws, 1 - keep, square=True) if cut else None
    return Mix(keep=round(keep * 256), box=box)


def _resized(image: Image.Image, size: int, box: tuple[float, float, float, float]) -> Image.Image:
    """Cut and resize horizontally, then vertically: Pillow's releases differ in their order."""
    left, top, right, bottom = box
    support = 2 * max((bottom - top) / size, 1.0)  # rows that bicubic reads beyond the box
    first = max(0, math.floor(top - support) - 1)
    last = min(image.height, math.ceil(bottom + support) + 1)
    rows = image.crop((0, first, image.width, last))
    narrow = rows.resize(
        (size, rows.height), Image.Resampling.BICUBIC, box=(left, 0, right, rows.height)
    )
    within = (0, top - first, size, bottom - first)
    return narrow.resize((size, size), Image.Resampling.BICUBIC, box=within)


def render(image: Image.Image, view: View, size: int) -> Pixels:
    """Make the pixels of a view: RGB image to uint8 (size, size, 3)."""
    crop = _resized(image, size, view.box)
    if view.flip:
        crop = crop.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
    for name, level in view.operations:
        crop = _OPERATIONS[name](crop, level)
    pixels = np.array(crop)  # (size, size, 3)
    if view.erase is not None:
        left, top, right, bottom = _to_pixels(view.erase, size)
        noise = Draws(view.noise_seed, 1).noise(bottom - top, right - left, 3)
        pixels[top:bottom, left:right] = noise
    return pixels


def mix(pixels: Pixels, partner: Pixels, how: Mix) -> Pixels:
    """Mix two rendered images of one size: uint8 (S, S, 3)."""
    if how.box is None:
        blended = pixels.astype(np.uint32) * how.keep + partner.astype(np.uint32) * (256 - how.keep)
        mixed: Pixels = ((blended + 128) >> 8).astype(np.uint8)
        return mixed
    mixed = pixels.copy()
    left, top, right, bottom = _to_pixels(how.box, len(pixels))
    mixed[top:bottom, left:right] = partner[top:bottom, left:right]
    return mixed


def _draw_crop(policy: Policy, draws: Draws, width: int, height: int) -> tuple[int, int, int, int]:
    """A crop of random area and aspect; the largest central one where none fits."""
    low, high = math.log(policy.ratio[0]), math.log(policy.ratio[1])
    for _ in range(_TRIES):
        area = width * height * draws.uniform(*policy.scale)
        ratio = math.exp(draws.uniform(low, high))
        w, h = round(math.sqrt(area * ratio)), round(math.sqrt(area / ratio))
        if 0 < w <= width and 0 < h <= height:
            left, top = draws.integer(width - w + 1), draws.integer(height - h + 1)
            return left, top, left + w, top + h
    w = min(width, max(1, round(height * policy.ratio[1])))
    h = min(height, max(1, round(width / policy.ratio[0])))
    left, top = (width - w) // 2, (height - h) // 2
    return left, top, left + w, top + h


def _draw_rectangle(
    draws: Draws, area: float, square: bool = False
) -> tuple[float, float, float, float]:
    """A rectangle inside the unit square, as left, top, right, bottom."""
    ratio = 1.0 if square else math.exp(draws.uniform(math.log(0.3), math.log(1 / 0.3)))
    w, h = min(1.0, math.sqrt(area * ratio)), min(1.0, math.sqrt(area / ratio))
    left, top = draws.uniform(0, 1 - w), draws.uniform(0, 1 - h)
    return left, top, left + w, top + h


def _to_pixels(box: tuple[float, float, float, float], size: int) -> tuple[int, int, int, int]:
    left, top, right, bottom = (round(edge * size) for edge in box)
    return left, top, right, bottom


def _lookup(image: Image.Image, value: Callable[[int], float]) -> Image.Image:
    table = [min(255, max(0, math.floor(value(v) + 0.5))) for v in range(256)]
    return image.point(table * 3)


def _affine(image: Image.Image, a: float, b: float, d: float, e: float) -> Image.Image:
    """Output pixel (x, y) around the centre comes from (a x + b y, d x + e y)."""
    c = image.width / 2
    data = (a, b, c - a * c - b * c, d, e, c - d * c - e * c)
    return image.transform(
        image.size, Image.Transform.AFFINE, data, Image.Resampling.NEAREST, fillcolor=_FILL
    )


def _rotate(image: Image.Image, level: float) -> Image.Image:
    angle = math.radians(30 * level)
    return _affine(image, math.cos(angle), math.sin(angle), -math.sin(angle), math.cos(angle))


def _translate(image: Image.Image, x: float, y: float) -> Image.Image:
    data = (1, 0, round(x * image.width), 0, 1, round(y * image.height))
    return image.transform(
        image.size, Image.Transform.AFFINE, data, Image.Resampling.NEAREST, fillcolor=_FILL
    )


def _contrast(image: Image.Image, level: float) -> Image.Image:
    histogram = image.convert("L").histogram()
    mean = sum(v * count for v, count in enumerate(histogram)) // (image.width * image.height)
    return _lookup(image, lambda v: mean + (1 + 0.9 * level) * (v - mean))


def _saturation(image: Image.Image, level: float) -> Image.Image:
    colour = np.asarray(image).astype(np.int32)  # (S, S, 3)
    grey = np.asarray(image.convert("L")).astype(np.int32)[..., None]  # (S, S, 1)
    factor = round(256 * (1 + 0.9 * level))
    mixed = grey + (((colour - grey) * factor + 128) >> 8)
    return Image.fromarray(mixed.clip(0, 255).astype(np.uint8))


# level is in -1..1; an operation without a direction goes by its absolute value
_OPERATIONS: Mapping[str, Callable[[Image.Image, float], Image.Image]] = {
    "autocontrast": lambda image, _: ImageOps.autocontrast(image),
    "brightness": lambda image, level: _lookup(image, lambda v: v * (1 + 0.9 * level)),
    "contrast": _contrast,
    "equalize": lambda image, _: ImageOps.equalize(image),
    "posterize": lambda image, level: ImageOps.posterize(image, 8 - round(4 * abs(level))),
    "rotate": _rotate,
    "saturation": _saturation,
    "shear_x": lambda image, level: _affine(image, 1, 0.3 * level, 0, 1),
    "shear_y": lambda image, level: _affine(image, 1, 0, 0.3 * level, 1),
    "solarize": lambda image, level: ImageOps.solarize(image, 256 - round(256 * abs(level) * 0.6)),
    "translate_x": lambda image, level: _translate(image, 0.3 * level, 0),
    "translate_y": lambda image, level: _translate(image, 0, 0.3 * level),
}
