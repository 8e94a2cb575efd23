"""The preprocessing contract against torchvision, timm, and a second implementation of its text."""

from __future__ import annotations

import io
import itertools
import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torchvision.transforms as tv
from PIL import Image

from tinyvit_edge.errors import DataError, InputError
from tinyvit_edge.preprocessing import (
    IMAGENET_MEAN,
    IMAGENET_STD,
    Preprocessing,
    decode,
    normalise,
    preprocess,
    preset,
    resize,
    to_rgb,
)

# width x height: landscape, portrait, square, odd remainders, below the target, one pixel
SIZES = [(640, 427), (333, 500), (300, 300), (257, 256), (1023, 701), (64, 48), (7, 3), (1, 1)]


def photo(width: int, height: int, mode: str = "RGB", seed: int = 0) -> Image.Image:
    """Noise on a gradient: every filter tap matters, and orientation shows."""
    rng = np.random.default_rng(seed)
    ramp = np.linspace(0, 160, width)[None, :, None] + np.linspace(0, 60, height)[:, None, None]
    pixels = (ramp + rng.integers(0, 36, (height, width, 3))).astype(np.uint8)
    return Image.fromarray(pixels).convert(mode)


def encoded(image: Image.Image, fmt: str = "PNG", **options: Any) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, fmt, **options)
    return buffer.getvalue()


@pytest.mark.parametrize("size", [224, 384, 512])
def test_microsoft_preset_equals_the_original_transforms(size: int) -> None:
    """Oracle: the evaluation transforms of microsoft/Cream's TinyViT, built from torchvision."""
    if size == 224:
        steps = [tv.Resize(int((256 / 224) * size), tv.InterpolationMode.BICUBIC)]
    else:
        steps = [tv.Resize((size, size), tv.InterpolationMode.BICUBIC)]
    steps += [tv.CenterCrop(size), tv.ToTensor(), tv.Normalize(IMAGENET_MEAN, IMAGENET_STD)]
    transform = tv.Compose(steps)
    for width, height in SIZES:
        image = photo(width, height)
        # Pillow 13 squashes a tall photo vertically first, unless its width is right already
        given = image if size == 224 else image.resize((size, height), Image.Resampling.BICUBIC)
        expected = transform(given).numpy()
        np.testing.assert_array_equal(preprocess(image, preset("microsoft", size)), expected)


@pytest.mark.parametrize("size", [224, 384, 512])
def test_timm_preset_equals_timm(size: int) -> None:
    """Oracle: timm's evaluation transform for the pretrained configuration of that size."""
    from timm.data import create_transform
    from timm.models.tiny_vit import default_cfgs

    name = {224: "tiny_vit_5m_224", 384: "tiny_vit_21m_384", 512: "tiny_vit_21m_512"}[size]
    config = default_cfgs[name].default
    transform = create_transform(
        input_size=config.input_size,
        interpolation=config.interpolation,
        crop_pct=config.crop_pct,
        crop_mode=config.crop_mode or "center",
        mean=config.mean,
        std=config.std,
    )
    for width, height in SIZES:
        image = photo(width, height)
        expected = transform(image).numpy()
        np.testing.assert_array_equal(preprocess(image, preset("timm", size)), expected)


@pytest.mark.parametrize("crop_pct", [0.875, 0.9, 0.95, 1.0])
@pytest.mark.parametrize("size", [63, 64, 224])
def test_bilinear_and_odd_crops_equal_torchvision(size: int, crop_pct: float) -> None:
    """Oracle: torchvision's Resize and CenterCrop, byte for byte."""
    contract = Preprocessing(size=size, crop_pct=crop_pct, interpolation="bilinear")
    for width, height in SIZES:
        image = photo(width, height)
        resized = tv.Resize(int(size / crop_pct), tv.InterpolationMode.BILINEAR)(image)
        expected = np.asarray(tv.CenterCrop(size)(resized))
        np.testing.assert_array_equal(resize(image, contract), expected)


def _bicubic(x: float) -> float:
    x = abs(x)
    if x < 1:
        return (1.5 * x - 2.5) * x * x + 1
    return ((x - 5) * x + 8) * x * -0.5 + 2 if x < 2 else 0.0


def _bilinear(x: float) -> float:
    return max(0.0, 1 - abs(x))


def _resize_axis(pixels: np.ndarray, out: int, interpolation: str) -> np.ndarray:
    """Step 4 of the contract for axis 0, written from its text."""
    kernel, radius = {"bicubic": (_bicubic, 2), "bilinear": (_bilinear, 1)}[interpolation]
    scale = len(pixels) / out
    stretch = max(scale, 1.0)
    rows = []
    for i in range(out):
        centre = (i + 0.5) * scale
        first = max(int(centre - radius * stretch + 0.5), 0)
        last = min(int(centre + radius * stretch + 0.5), len(pixels))
        taps = [kernel((x - centre + 0.5) / stretch) for x in range(first, last)]
        total = sum(taps)
        fixed = [int(math.copysign(0.5, tap) + tap / total * (1 << 22)) for tap in taps]
        acc = np.tensordot(fixed, pixels[first:last].astype(np.int64), 1) + (1 << 21)
        rows.append(np.clip(acc >> 22, 0, 255).astype(np.uint8))
    return np.stack(rows)


@pytest.mark.parametrize("interpolation", ["bicubic", "bilinear"])
@pytest.mark.parametrize(
    ("width", "height"), [(90, 61), (61, 90), (40, 40), (9, 5), (1, 1), (50, 300), (300, 50)]
)
def test_the_documented_arithmetic_is_pillows(width: int, height: int, interpolation: Any) -> None:
    """Oracle: steps 4 to 6 in NumPy, from the module's text and without Pillow."""
    contract = Preprocessing(size=32, crop_pct=0.875, interpolation=interpolation)
    image = photo(width, height)
    short = int(32 / 0.875)
    long = int(short * max(width, height) / min(width, height))
    new_width, new_height = (short, long) if width <= height else (long, short)
    wide = _resize_axis(np.asarray(image).swapaxes(0, 1), new_width, interpolation)
    resized = _resize_axis(wide.swapaxes(0, 1), new_height, interpolation)
    left, top = round((new_width - 32) / 2), round((new_height - 32) / 2)
    cropped = resized[top : top + 32, left : left + 32]
    np.testing.assert_array_equal(resize(image, contract), cropped)

    mean, std = np.float32(IMAGENET_MEAN), np.float32(IMAGENET_STD)
    tensor = ((cropped.astype(np.float32) / np.float32(255) - mean) / std).transpose(2, 0, 1)
    actual = preprocess(image, contract)
    assert (actual.dtype, actual.shape) == (np.float32, (3, 32, 32))
    np.testing.assert_array_equal(actual, tensor)


def test_crop_offsets_round_half_to_even() -> None:
    """Oracle: by hand; sides 35 and 37 less 32 leave offsets of 1.5 and 2.5, both 2."""
    for side in (35, 37):
        contract = Preprocessing(size=32, crop_pct=1.0)
        tall = photo(32, side)  # the shorter side is 32 already: nothing is resampled
        np.testing.assert_array_equal(resize(tall, contract), np.asarray(tall)[2:34])


def test_the_mean_belongs_to_its_channel() -> None:
    """Oracle: by hand; a pixel equal to a channel's mean becomes zero in that channel alone."""
    contract = Preprocessing(size=1, mean=(0.0, 1.0, 0.2), std=(1.0, 0.5, 0.1))
    tensor = normalise(np.array([[[51, 0, 51]]], np.uint8), contract)
    np.testing.assert_allclose(tensor[:, 0, 0], [0.2, -2.0, 0.0], atol=1e-7)


@pytest.mark.parametrize("orientation", range(1, 9))
def test_exif_orientation(tmp_path: Path, orientation: int) -> None:
    """Oracle: the eight values of EXIF tag 0x0112 as NumPy flips and transpositions."""
    upright = np.asarray(photo(12, 8))
    stored = {
        1: upright,
        2: upright[:, ::-1],
        3: upright[::-1, ::-1],
        4: upright[::-1],
        5: upright.swapaxes(0, 1),
        6: np.rot90(upright),
        7: upright.swapaxes(0, 1)[::-1, ::-1],
        8: np.rot90(upright, -1),
    }[orientation]
    exif = Image.Exif()
    exif[0x0112] = orientation
    path = tmp_path / "photo.png"
    Image.fromarray(np.ascontiguousarray(stored)).save(path, exif=exif)
    np.testing.assert_array_equal(np.asarray(decode(path)), upright)


def _palette_image(**options: Any) -> bytes:
    image = Image.new("P", (2, 1))
    image.putpalette([10, 20, 30, 200, 100, 50])
    image.putpixel((1, 0), 1)
    return encoded(image, **options)


def _pixels(mode: str, *values: Any) -> Image.Image:
    image = Image.new(mode, (len(values), 1))
    for x, value in enumerate(values):
        image.putpixel((x, 0), value)
    return image


def _grey16(*values: int) -> Image.Image:
    return Image.fromarray(np.array([values], np.uint16))


MODES = {
    "grey": (encoded(_pixels("L", 7, 200)), [(7, 7, 7), (200, 200, 200)]),
    "grey-alpha": (encoded(_pixels("LA", (7, 0), (200, 9))), [(7, 7, 7), (200, 200, 200)]),
    "rgba": (encoded(_pixels("RGBA", (1, 2, 3, 0), (4, 5, 6, 128))), [(1, 2, 3), (4, 5, 6)]),
    "palette": (_palette_image(), [(10, 20, 30), (200, 100, 50)]),
    "palette, one transparent": (_palette_image(transparency=0), [(10, 20, 30), (200, 100, 50)]),
    "palette, alpha bytes": (
        _palette_image(transparency=b"\x00\x80"),
        [(10, 20, 30), (200, 100, 50)],
    ),
    "1-bit": (encoded(_pixels("1", 0, 1)), [(0, 0, 0), (255, 255, 255)]),
    "16-bit grey": (encoded(_grey16(256, 40000)), [(1, 1, 1), (156, 156, 156)]),
    "16-bit grey TIFF": (encoded(_grey16(256, 40000), "TIFF"), [(1, 1, 1), (156, 156, 156)]),
    "16-bit PGM": (
        b"P5 2 1 65535\n" + np.array([256, 40000], ">u2").tobytes(),
        [(1, 1, 1), (156, 156, 156)],
    ),
    "CMYK": (
        encoded(_pixels("CMYK", (0, 0, 0, 0), (100, 255, 0, 100)), "TIFF"),
        [(255, 255, 255), (94, 0, 155)],
    ),
    "GIF": (encoded(_pixels("L", 7, 200), "GIF"), [(7, 7, 7), (200, 200, 200)]),
}


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("kind", MODES)
def test_every_pixel_format_becomes_rgb(tmp_path: Path, kind: str) -> None:
    """Oracle: colours written by hand; alpha is dropped, 16 bits keep the high byte."""
    content, expected = MODES[kind]
    image = decode(content)
    assert image.mode == "RGB"
    assert [image.getpixel((x, 0)) for x in range(2)] == expected
    path = tmp_path / "image"
    path.write_bytes(content)
    np.testing.assert_array_equal(np.asarray(decode(path)), np.asarray(image))


def test_large_jpegs_are_decoded_at_full_size() -> None:
    """Oracle: Pillow's full decode; draft mode would give other pixels and a smaller image."""
    content = encoded(photo(1600, 1200), "JPEG", quality=90)
    expected = np.asarray(Image.open(io.BytesIO(content)))
    np.testing.assert_array_equal(np.asarray(decode(content)), expected)


BROKEN = {
    "a text file": (b"hello, I am not an image\n", "not an image"),
    "no bytes": (b"", "empty"),
    "half a JPEG": (encoded(photo(64, 64), "JPEG")[:900], "damaged or truncated"),
    "half a PNG": (encoded(photo(64, 64))[:900], "damaged or truncated"),
    "half a GIF": (encoded(photo(64, 64, "L"), "GIF")[:900], "damaged or truncated"),
    "a float TIFF": (encoded(photo(4, 4, "F"), "TIFF"), "no defined range"),
    "a 32-bit TIFF": (encoded(photo(4, 4, "I"), "TIFF"), "no defined range"),
}


@pytest.mark.parametrize("kind", BROKEN)
def test_unreadable_files_are_named(tmp_path: Path, kind: str) -> None:
    """Oracle: the contract for errors: one line, with the file's name and a remedy."""
    content, problem = BROKEN[kind]
    path = tmp_path / "photo.jpg"
    path.write_bytes(content)
    with pytest.raises(DataError, match=problem) as caught:
        decode(path)
    message = str(caught.value)
    assert message.startswith(str(path))
    assert ";" in message
    assert "\n" not in message
    with pytest.raises(DataError, match=problem):
        decode(content)


def test_missing_file_and_folder(tmp_path: Path) -> None:
    """Oracle: the documented DataError, not OSError."""
    for path in (tmp_path / "absent.png", tmp_path):
        with pytest.raises(DataError, match="cannot be read"):
            decode(path)


@pytest.mark.parametrize("limit", [40, 99])
def test_decompression_bombs_are_refused(monkeypatch: pytest.MonkeyPatch, limit: int) -> None:
    """Oracle: Pillow's limit, lowered: its error (twice the limit) and its warning both stop."""
    content = encoded(photo(10, 10))
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", limit)
    with pytest.raises(DataError, match="decompression bomb"):
        decode(content)
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 100)
    assert decode(content).size == (10, 10)


def test_a_hair_does_not_exhaust_memory() -> None:
    """Oracle: 256 x 2,560,000 pixels exceed Pillow's limit; a squash of the same is small.

    So do the 512 x 200,000 pixels between the passes of a squash.
    """
    hair = Image.new("RGB", (1, 10_000))
    with pytest.raises(DataError, match="1 x 10000"):
        preprocess(hair, preset("microsoft", 224))
    assert preprocess(hair, preset("timm", 512)).shape == (3, 512, 512)
    with pytest.raises(DataError, match="1 x 200000"):
        preprocess(Image.new("RGB", (1, 200_000)), preset("timm", 512))


def test_only_rgb_is_resized() -> None:
    """Oracle: the documented InputError; a grey image would lose an axis silently."""
    with pytest.raises(InputError, match="mode L"):
        resize(photo(8, 8, "L"), preset("timm", 224))
    assert to_rgb(photo(8, 8, "L")).mode == "RGB"


@pytest.mark.parametrize(
    ("name", "size", "crop_pct", "mode"),
    [
        ("microsoft", 224, 0.875, "crop"),
        ("microsoft", 384, 1.0, "squash"),
        ("microsoft", 512, 1.0, "squash"),
        ("microsoft", 64, 0.875, "crop"),
        ("timm", 224, 0.95, "crop"),
        ("timm", 384, 1.0, "crop"),
        ("timm", 512, 1.0, "squash"),
        ("timm", 64, 0.95, "crop"),
    ],
)
def test_presets(name: Any, size: int, crop_pct: float, mode: Any) -> None:
    """Oracle: the two published conventions, and the 224 row for other sizes."""
    assert preset(name, size) == Preprocessing(size=size, crop_pct=crop_pct, mode=mode)


def test_json_round_trip() -> None:
    """Oracle: equality after a real JSON file's text; every field differs from its default."""
    contract = Preprocessing(
        size=160,
        crop_pct=0.9,
        mode="squash",
        interpolation="bilinear",
        mean=(0.5, 0.25, 0.125),
        std=(1.0, 2.0, 3.0),
    )
    text = json.dumps(contract.to_dict())
    assert Preprocessing.from_dict(json.loads(text)) == contract
    assert json.loads(text) == {
        "size": 160,
        "crop_pct": 0.9,
        "mode": "squash",
        "interpolation": "bilinear",
        "mean": [0.5, 0.25, 0.125],
        "std": [1.0, 2.0, 3.0],
        "channel_order": "rgb",
    }
    assert Preprocessing.from_dict({"size": 32}) == Preprocessing(size=32)


BAD_FIELDS: dict[str, list[Any]] = {
    "size": [0, -1, 224.0, "224", True, None],
    "crop_pct": [0, -0.5, 1.01, math.nan, math.inf, "0.9", None],
    "mode": ["pad", None, ["crop"]],
    "interpolation": ["nearest", None],
    "mean": [[0.5], 0.5, ["a", "b", "c"], [0, 0, math.nan], None],
    "std": [[1, 1], [1, 0, 1], [1, -1, 1], [1, 1, math.inf]],
    "channel_order": ["bgr"],
    "resize": [1],
}


@pytest.mark.parametrize(
    ("field", "value"),
    list(itertools.chain.from_iterable(zip(itertools.repeat(k), v) for k, v in BAD_FIELDS.items())),
)
def test_bad_fields_are_refused(field: str, value: Any) -> None:
    """Oracle: the documented InputError that names the field."""
    with pytest.raises(InputError, match=field) as caught:
        Preprocessing.from_dict({"size": 224, **{field: value}})
    assert "\n" not in str(caught.value)


def test_missing_size_and_unknown_preset_are_refused() -> None:
    """Oracle: the documented InputError."""
    with pytest.raises(InputError, match="'size' is missing"):
        Preprocessing.from_dict({"crop_pct": 0.9})
    with pytest.raises(InputError, match="microsoft, timm"):
        preset("torchvision", 224)  # type: ignore[arg-type]
