"""The native app's preprocessing, step by step, against Pillow's."""

from __future__ import annotations

import io
import json
import struct
import subprocess
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image
from PIL.PngImagePlugin import PngInfo

import native_app
from tinyvit_edge import metrics
from tinyvit_edge.errors import DataError
from tinyvit_edge.preprocessing import Preprocessing, decode, normalise, resize

pytestmark = pytest.mark.slow

# width x height: shrunk and enlarged, landscape and portrait, odd, thin, one pixel
SHAPES = [(640, 427), (333, 500), (224, 224), (257, 256), (64, 48), (7, 3), (2, 90), (1, 1)]
CONTRACTS = [
    Preprocessing(size=48),
    Preprocessing(size=48, crop_pct=0.95, interpolation="bilinear"),
    Preprocessing(size=33, crop_pct=1.0, mean=(0.5, 0.4, 0.3), std=(0.25, 0.5, 1.0)),
    Preprocessing(size=224, mode="squash"),
    Preprocessing(size=31, mode="squash", interpolation="bilinear"),
]
ORIENTATION = 0x0112


def noise(width: int, height: int, mode: str = "RGB") -> Image.Image:
    """An image in which every tap and every place shows."""
    rng = np.random.default_rng(width + height)
    pixels = rng.integers(0, 256, (height, width, 3), dtype=np.uint8)
    return Image.fromarray(pixels).convert(mode)


def smooth(width: int, height: int, mode: str = "RGB") -> Image.Image:
    """An image like a photo, whose colours stay apart through JPEG."""
    y, x = np.mgrid[0:height, 0:width]
    planes = [x * 255 / width, y * 255 / height, 127 + 127 * np.sin(np.hypot(x, y) / 5)]
    return Image.fromarray(np.stack(planes, -1).astype(np.uint8)).convert(mode)


def stages(contract: Preprocessing, files: list[Path]) -> list[list[NDArray[Any]]]:
    """What the app makes of each file: decoded bytes, resized (S, S, 3), tensor (3, S, S)."""
    path = files[0].with_name("contract.json")
    path.write_text(json.dumps(contract.to_dict()), encoding="utf-8")
    command = [native_app.host_programs() / "tinyvit-preprocess", path, *files]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=60)
    assert (done.returncode, done.stderr) == (0, "")
    side = contract.size
    return [
        [
            np.fromfile(f"{file}.decoded", np.uint8),
            np.fromfile(f"{file}.resized", np.uint8).reshape(side, side, 3),
            np.fromfile(f"{file}.tensor", "<f4").reshape(3, side, side),
        ]
        for file in files
    ]


def assert_decoded_alike(files: list[Path]) -> None:
    """Compare with `decode`: the upright pixels, and what a resize makes of their shape."""
    contract = CONTRACTS[0]
    for file, (decoded, resized, _) in zip(files, stages(contract, files), strict=True):
        expected = decode(file)
        np.testing.assert_array_equal(decoded, np.asarray(expected).ravel(), err_msg=file.name)
        np.testing.assert_array_equal(resized, resize(expected, contract), err_msg=file.name)


def png16(path: Path, colour: int, channels: int) -> Path:
    """Write a PNG of 16 bits a sample, which Pillow cannot; `colour` is PNG's colour type."""
    rng = np.random.default_rng(colour)
    rows = rng.integers(0, 65536, (40, 50 * channels)).astype(">u2")

    def chunk(name: bytes, content: bytes) -> bytes:
        checksum = zlib.crc32(name + content)
        return struct.pack(">I", len(content)) + name + content + struct.pack(">I", checksum)

    header = struct.pack(">IIBBBBB", 50, 40, 16, colour, 0, 0, 0)
    lines = b"".join(b"\0" + row.tobytes() for row in rows)
    content = chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(lines)) + chunk(b"IEND", b"")
    path.write_bytes(b"\x89PNG\r\n\x1a\n" + content)
    return path


@pytest.mark.parametrize("contract", CONTRACTS, ids=lambda c: f"{c.mode}-{c.interpolation}")
def test_every_step_is_pillows_to_the_bit(contract: Preprocessing, tmp_path: Path) -> None:
    """Oracle: `resize` and `normalise`, which are Pillow's resize and NumPy's float32."""
    files = []
    for width, height in SHAPES:
        files.append(tmp_path / f"{width}x{height}.png")
        noise(width, height).save(files[-1])
    for file, (_, resized, tensor) in zip(files, stages(contract, files), strict=True):
        expected = resize(decode(file), contract)
        np.testing.assert_array_equal(resized, expected, err_msg=file.name)
        np.testing.assert_array_equal(tensor, normalise(expected, contract), err_msg=file.name)


@pytest.mark.parametrize("suffix", ["jpg", "png"])
def test_all_orientations(suffix: str, tmp_path: Path) -> None:
    """Oracle: `decode`, for the eight values of EXIF, two that are none of them, and XMP."""
    files = []
    for value in range(10):
        exif = Image.Exif()
        exif[ORIENTATION] = value
        files.append(tmp_path / f"exif{value}.{suffix}")
        smooth(40, 25).save(files[-1], exif=exif.tobytes())
    xmp = b'<x:xmpmeta xmlns:x="adobe:ns:meta/"><a tiff:Orientation="6"/></x:xmpmeta>'
    if suffix == "jpg":
        files.append(tmp_path / "xmp.jpg")
        smooth(40, 25).save(files[-1], xmp=xmp)
        # EXIF has no orientation, and its byte order is the other one
        files.append(tmp_path / "both.jpg")
        empty = b"Exif\0\0II*\0\x08\0\0\0\0\0\0\0\0\0"
        smooth(40, 25).save(files[-1], xmp=xmp, exif=empty)
    else:
        text = PngInfo()
        text.add_itxt("XML:com.adobe.xmp", xmp.decode())
        files.append(tmp_path / "xmp.png")
        smooth(40, 25).save(files[-1], pnginfo=text)
    assert decode(files[-1]).size == (25, 40)
    assert decode(files[6]).size == (25, 40)
    assert_decoded_alike(files)


def test_both_byte_orders_of_exif(tmp_path: Path) -> None:
    """Oracle: `decode`, and the size of an image on its side."""
    files = []
    for order, mark in (("<", b"II*\0"), (">", b"MM\0*")):
        entry = struct.pack(f"{order}HHIHH", ORIENTATION, 3, 1, 8, 0)
        tiff = mark + struct.pack(f"{order}IH", 8, 1) + entry + bytes(4)
        files.append(tmp_path / f"{len(files)}.jpg")
        smooth(40, 25).save(files[-1], exif=b"Exif\0\0" + tiff)
        assert decode(files[-1]).size == (25, 40)
    assert_decoded_alike(files)


def test_png_of_every_kind(tmp_path: Path) -> None:
    """Oracle: `decode`: grey of 1, 8 and 16 bits, palettes with and without transparency, alpha
    that is dropped, 16-bit samples of every colour type.
    """
    images = {mode: noise(50, 40, mode) for mode in ("1", "L", "LA", "RGB", "RGBA", "P")}
    files = []
    for mode, image in images.items():
        files.append(tmp_path / f"{mode}.png")
        image.save(files[-1])
    images["RGBA"].putalpha(images["L"])
    images["RGBA"].save(tmp_path / "alpha.png")
    images["P"].save(tmp_path / "transparent.png", transparency=bytes(range(0, 250, 10)))
    images["RGB"].save(tmp_path / "key.png", transparency=images["RGB"].getpixel((0, 0)))
    noise(50, 40).quantize(11).save(tmp_path / "palette4.png", bits=4)
    noise(50, 40).quantize(3).save(tmp_path / "palette2.png", bits=2)
    files += [tmp_path / f"{name}.png" for name in ("alpha", "transparent", "key")]
    files += [tmp_path / "palette4.png", tmp_path / "palette2.png"]
    for colour, channels in ((0, 1), (2, 3), (4, 2), (6, 4)):
        files.append(png16(tmp_path / f"sixteen{colour}.png", colour, channels))
    assert_decoded_alike(files)


def test_jpeg_of_every_kind(tmp_path: Path) -> None:
    """Oracle: `decode`, whose decoder is libjpeg-turbo, too: subsampling, progressive, grey, CMYK,
    and odd sizes.
    """
    files = []
    for name, mode, options in (
        ("420", "RGB", {"subsampling": "4:2:0"}),
        ("422", "RGB", {"subsampling": "4:2:2"}),
        ("444", "RGB", {"subsampling": "4:4:4", "quality": 95}),
        ("progressive", "RGB", {"progressive": True}),
        ("grey", "L", {}),
        ("cmyk", "CMYK", {}),
        ("rgb", "RGB", {"keep_rgb": True}),
        ("icc", "RGB", {"icc_profile": b"not looked at"}),
    ):
        files.append(tmp_path / f"{name}.jpg")
        smooth(161, 99, mode).save(files[-1], **options)
    assert_decoded_alike(files)


def _encoded(fmt: str) -> bytes:
    buffer = io.BytesIO()
    smooth(64, 64).save(buffer, fmt)
    return buffer.getvalue()


def _png_header(width: int, height: int) -> bytes:
    content = b"IHDR" + struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    chunk = struct.pack(">I", 13) + content + struct.pack(">I", zlib.crc32(content))
    return b"\x89PNG\r\n\x1a\n" + chunk + struct.pack(">I", 100) + b"IDAT"


BAD_IMAGES = {
    "empty.jpg": (b"", "the image is empty (0 bytes); remove or replace it"),
    "text.png": (b"no image", "neither JPEG nor PNG; convert it to one of them"),
    "cut.jpg": (_encoded("JPEG")[:-200], "the image cannot be decoded (Premature end of JPEG"),
    "no-end.jpg": (_encoded("JPEG")[:-2], "the image cannot be decoded (Premature end of JPEG"),
    "cut.png": (_encoded("PNG")[:-200], "the image cannot be decoded (it is truncated)"),
    "head.jpg": (_encoded("JPEG")[:40], "the image cannot be decoded ("),
    "bomb.png": (_png_header(20000, 20000), "more than 89478485 pixels, taken for a"),
}


@pytest.mark.parametrize("name", BAD_IMAGES)
def test_a_bad_image_is_one_line(name: str, tmp_path: Path) -> None:
    """Oracle: `decode` refuses it, too; exit code 2 and a line with input and remedy, by hand."""
    content, message = BAD_IMAGES[name]
    image = tmp_path / name
    image.write_bytes(content)
    with pytest.raises(DataError):
        decode(image)
    (tmp_path / "contract.json").write_text(json.dumps(CONTRACTS[0].to_dict()), encoding="utf-8")
    command = [native_app.host_programs() / "tinyvit-preprocess", tmp_path / "contract.json"]
    for path, expected in (
        (image, message),
        (tmp_path / "missing.jpg", "cannot be read; check the path"),
        (tmp_path, "cannot be read; check the path"),
    ):
        done = subprocess.run([*command, path], capture_output=True, text=True, check=False)
        (line,) = done.stderr.splitlines()
        assert done.returncode == 2
        assert line.startswith(f"{path}: ")
        assert expected in line


def test_statistics_are_numpys() -> None:
    """Oracle: NumPy's median and percentile, and the project's SQNR."""
    for count in (2, 12, 50):
        values = np.random.default_rng(count).standard_normal(count)
        median, p90, sqnr = subprocess.run(
            [native_app.host_programs() / "tinyvit-statistics"],
            input=" ".join(map(repr, values.tolist())),
            capture_output=True,
            text=True,
            check=True,
        ).stdout.split()
        first, second = values.astype(np.float32).reshape(2, -1)
        assert float(median) == pytest.approx(np.median(values), rel=1e-12)
        assert float(p90) == pytest.approx(np.percentile(values, 90), rel=1e-12)
        assert float(sqnr) == pytest.approx(metrics.sqnr_db([first], [second]), rel=1e-9)
