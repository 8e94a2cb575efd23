"""The preprocessing contract: from image bytes to the model's input tensor.

One value, `Preprocessing`, drives data sets, calibration, parity, the image processor and the
apps; `Preprocessing.to_dict` is what a bundle carries as ``preprocess.json``. An implementation in
any language that follows these steps makes the same bytes (Pillow is the reference):

1. **Decode** the file at full size (no JPEG "draft" scaling). ICC profiles are ignored; of an
   animation the first frame counts.
2. **Orient** by the EXIF tag 0x0112, the eight values of the specification (Pillow reads the tag
   from XMP where EXIF has none).
3. **RGB**, 8 bits a channel: grey is repeated three times; a palette is looked up; alpha is
   dropped, not composited (the stored colour stays); 16-bit samples keep their high byte
   (``v >> 8``); 1-bit becomes 0 and 255; CMYK becomes ``(255 - C) * (255 - K) / 255``,
   rounded, and so on for M and Y.
4. **Resize** with Pillow's antialiased filter in 8 bits, horizontally and then vertically. For
   one axis, with ``scale = in / out`` and ``stretch = max(scale, 1)``, in double precision: output
   pixel ``i`` has its centre at ``c = (i + 0.5) * scale``, its taps run from ``int(c - r * stretch
   + 0.5)`` up to, not including, ``int(c + r * stretch + 0.5)``, limited to the image, and tap
   ``x`` weighs ``filter((x - c + 0.5) / stretch)`` (bicubic: a = -0.5, r = 2; bilinear: r = 1).
   Weights are divided by their sum and rounded to integers of 22 fractional bits, half away from
   zero. The weighted sum starts at ``1 << 21``, is shifted right by 22 and clipped to 0..255.
   Target size:

   - ``mode = "crop"``: the shorter side becomes ``short = int(size / crop_pct)`` and the longer
     one ``int(short * longer / shorter)``, both truncated, evaluated left to right in double
     precision;
   - ``mode = "squash"``: ``size x size`` whatever the aspect ratio; ``crop_pct`` is not used.

5. **Crop** (``mode = "crop"`` only) the central ``size x size``; the left and top offsets are
   ``round((o - size) / 2)`` of the resized side ``o``, a half rounded to the even integer.
6. **Normalise** in float32, one rounding per operation: ``(v / 255 - mean) / std`` with ``mean``
   and ``std`` rounded to float32 first; channels first, in the order of ``channel_order``.

Steps 4 to 6 equal torchvision's ``Resize``, ``CenterCrop``, ``ToTensor`` and ``Normalize`` on a
PIL image, which is what Microsoft's TinyViT and timm evaluate with; only where Pillow resizes
vertically first (Pillow 13, of an image whose height shrinks by more than twice what its width
does) can some bytes differ by a rounding.
"""

from __future__ import annotations

import io
import math
import warnings
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageOps, UnidentifiedImageError

from tinyvit_edge.errors import DataError, InputError

__all__ = [
    "IMAGENET_MEAN",
    "IMAGENET_STD",
    "Preprocessing",
    "decode",
    "normalise",
    "preprocess",
    "preset",
    "resize",
    "to_rgb",
]

IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)

_FILTERS = {"bicubic": Image.Resampling.BICUBIC, "bilinear": Image.Resampling.BILINEAR}
_CHOICES = {
    "mode": ("crop", "squash"),
    "interpolation": tuple(_FILTERS),
    "channel_order": ("rgb",),
}
_SIXTEEN_BIT_MODES = ("I;16", "I;16L", "I;16B", "I;16N")

# (crop_pct, mode) by published resolution; any other size takes the 224 row.
# microsoft: data/build.py of microsoft/Cream's TinyViT; timm: pretrained_cfg of tiny_vit_*.
_PRESETS: Mapping[str, Mapping[int, tuple[float, Literal["crop", "squash"]]]] = {
    "microsoft": {224: (0.875, "crop"), 384: (1.0, "squash"), 512: (1.0, "squash")},
    "timm": {224: (0.95, "crop"), 384: (1.0, "crop"), 512: (1.0, "squash")},
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Preprocessing:
    """Everything that decides which tensor a photo becomes; the module docstring has the steps.

    Attributes:
        size: side S of the square model input, in pixels.
        crop_pct: in (0, 1]; the shorter side is resized to ``int(S / crop_pct)`` (mode "crop").
        mode: "crop" keeps the aspect ratio and crops the centre; "squash" resizes to S x S.
        interpolation: Pillow's antialiased filter of that name.
        mean: per channel, of values in 0..1.
        std: per channel, of values in 0..1; positive.
        channel_order: order of the channels in the tensor.

    Raises:
        InputError: a field has a wrong type or lies out of range.
    """

    size: int
    crop_pct: float = 0.875
    mode: Literal["crop", "squash"] = "crop"
    interpolation: Literal["bicubic", "bilinear"] = "bicubic"
    mean: tuple[float, float, float] = IMAGENET_MEAN
    std: tuple[float, float, float] = IMAGENET_STD
    channel_order: Literal["rgb"] = "rgb"

    def __post_init__(self) -> None:
        if not isinstance(self.size, int) or isinstance(self.size, bool) or self.size < 1:
            raise _bad_field("size", self.size, "a positive integer")
        if not _is_number(self.crop_pct) or not 0 < self.crop_pct <= 1:
            raise _bad_field("crop_pct", self.crop_pct, "a number above 0 and at most 1")
        for name, choices in _CHOICES.items():
            if getattr(self, name) not in choices:
                raise _bad_field(name, getattr(self, name), f"one of {', '.join(choices)}")
        for name in ("mean", "std"):
            value = getattr(self, name)
            if not isinstance(value, tuple) or len(value) != 3 or not all(map(_is_number, value)):
                raise _bad_field(name, value, "three finite numbers")
        if min(self.std) <= 0:
            raise _bad_field("std", self.std, "three numbers above 0")

    def to_dict(self) -> dict[str, object]:
        """Return the JSON form: the fields by name, tuples as lists."""
        return {k: list(v) if isinstance(v, tuple) else v for k, v in asdict(self).items()}

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Preprocessing:
        """Build from the JSON form; fields that are left out take their defaults.

        Raises:
            InputError: a key is unknown, `size` is missing, or a value is out of range.
        """
        known = [field.name for field in fields(cls)]
        unknown = sorted(set(values) - set(known))
        if unknown:
            raise InputError(
                f"preprocessing: unknown key {unknown[0]!r}; the keys are {', '.join(known)}"
            )
        if "size" not in values:
            raise InputError("preprocessing: 'size' is missing; give the model's input side")
        arguments: dict[str, Any] = {
            k: tuple(v) if isinstance(v, list) else v for k, v in values.items()
        }
        return cls(**arguments)


def preset(name: Literal["microsoft", "timm"], size: int) -> Preprocessing:
    """Return the convention that the published accuracies were measured with.

    ========= ============= ============ ======
    name      224           384          512
    ========= ============= ============ ======
    microsoft crop at 0.875 squash       squash
    timm      crop at 0.95  crop at 1.0  squash
    ========= ============= ============ ======

    Any other size takes the crop fraction of 224. Bicubic and ImageNet statistics throughout.

    Raises:
        InputError: no such preset, or a bad size.
    """
    if name not in _PRESETS:
        raise InputError(
            f"preprocessing: no preset {name!r}; the presets are {', '.join(_PRESETS)}"
        )
    rows = _PRESETS[name]
    crop_pct, mode = rows.get(size, rows[224])
    return Preprocessing(size=size, crop_pct=crop_pct, mode=mode)


def decode(path_or_bytes: str | Path | bytes) -> Image.Image:
    """Decode an image file, or its content, to an upright RGB image (steps 1 to 3).

    Raises:
        DataError: the file is missing, empty, truncated, not an image, or larger than Pillow's
            decompression-bomb limit.
    """
    if isinstance(path_or_bytes, bytes):
        name, content = f"image of {len(path_or_bytes)} bytes", path_or_bytes
    else:
        name = str(path_or_bytes)
        try:
            content = Path(path_or_bytes).read_bytes()
        except OSError as error:
            raise DataError(
                f"{name}: cannot be read ({error.strerror or error}); check the path"
            ) from error
    if not content:
        raise DataError(f"{name}: the image is empty (0 bytes); remove or replace it")
    return _decode_content(content, name)


def to_rgb(image: Image.Image) -> Image.Image:
    """Apply the EXIF orientation and convert to mode RGB (steps 2 and 3).

    Raises:
        DataError: the mode has no defined range or no conversion (32-bit integer, float, Lab).
    """
    upright = ImageOps.exif_transpose(image)
    if upright.mode == "RGB":
        return upright
    if upright.mode in _SIXTEEN_BIT_MODES or (upright.mode == "I" and image.format == "PPM"):
        # Pillow's own conversion has clipped at 255 in some releases and shifted in others.
        high_bytes = np.asarray(upright).astype(np.uint16) >> 8  # (H, W)
        return Image.fromarray(high_bytes.astype(np.uint8)).convert("RGB")
    if upright.mode in ("I", "F", "LAB"):
        raise DataError(
            f"an image of Pillow mode {upright.mode} has no defined range of 8 bits; "
            "save it as 8-bit or 16-bit RGB or grey-scale"
        )
    if upright.mode == "P":
        # By way of RGBA, so that a transparent palette entry keeps its colour without a warning.
        return upright.convert("RGBA").convert("RGB")
    return upright.convert("RGB")


def resize(image: Image.Image, p: Preprocessing) -> npt.NDArray[np.uint8]:
    """Resize and crop an RGB image (steps 4 and 5).

    Returns:
        uint8 of shape (S, S, 3).

    Raises:
        InputError: the image is not of mode RGB.
        DataError: so long and thin that resizing its shorter side makes a decompression bomb.
    """
    if image.mode != "RGB":
        raise InputError(f"an image of mode {image.mode} was to be resized; call to_rgb first")
    width, height = _resized_size(image.width, image.height, p)
    # One axis a call: Pillow 13 goes over a tall image vertically first, earlier releases do not,
    # and with 8 bits in between the order can be seen.
    resized = image
    for axis_size in ((width, image.height), (width, height)):
        resized = resized.resize(axis_size, _FILTERS[p.interpolation])
    left, top = round((width - p.size) / 2), round((height - p.size) / 2)
    return np.array(resized.crop((left, top, left + p.size, top + p.size)))  # (S, S, 3)


def normalise(pixels: npt.NDArray[np.uint8], p: Preprocessing) -> npt.NDArray[np.float32]:
    """Scale, shift and move channels first (step 6): uint8 (S, S, 3) to float32 (3, S, S)."""
    mean, std = np.array(p.mean, np.float32), np.array(p.std, np.float32)
    normalised = (pixels.astype(np.float32) / np.float32(255) - mean) / std  # (S, S, 3)
    return np.ascontiguousarray(normalised.transpose(2, 0, 1))  # (3, S, S)


def preprocess(image: Image.Image, p: Preprocessing) -> npt.NDArray[np.float32]:
    """Turn an RGB image into the model's input (steps 4 to 6): float32 (3, S, S)."""
    return normalise(resize(image, p), p)


def _decode_content(content: bytes, name: str) -> Image.Image:
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error", Image.DecompressionBombWarning)
            with Image.open(io.BytesIO(content)) as image:
                image.load()
                return to_rgb(image)
    except (Image.DecompressionBombError, Image.DecompressionBombWarning) as error:
        raise DataError(
            f"{name}: more than {Image.MAX_IMAGE_PIXELS} pixels, taken for a decompression bomb; "
            "scale it down or remove it"
        ) from error
    except UnidentifiedImageError as error:
        raise DataError(
            f"{name}: not an image that Pillow can read; remove it or convert it to JPEG or PNG"
        ) from error
    except DataError as error:
        raise DataError(f"{name}: {error}") from error
    except Exception as error:  # a damaged file makes Pillow's decoders raise nearly anything
        detail = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise DataError(
            f"{name}: the image is damaged or truncated ({detail}); replace or remove it"
        ) from error


def _resized_size(width: int, height: int, p: Preprocessing) -> tuple[int, int]:
    """Return (width, height) after step 4."""
    if p.mode == "squash":
        new_width = new_height = p.size
    else:
        short = int(p.size / p.crop_pct)
        long = int(short * max(width, height) / min(width, height))
        new_width, new_height = (short, long) if width <= height else (long, short)
    limit = Image.MAX_IMAGE_PIXELS
    # after the horizontal pass the height is still the old one
    if limit is not None and new_width * max(height, new_height) > limit:
        raise DataError(
            f"an image of {width} x {height} pixels would be resized to more than {limit} pixels; "
            "crop it to a less extreme shape"
        )
    return new_width, new_height


def _is_number(value: object) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value)


def _bad_field(name: str, value: object, expected: str) -> InputError:
    return InputError(f"preprocessing: {name} is {value!r}; it must be {expected}")
