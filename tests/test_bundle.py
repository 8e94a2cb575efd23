"""Bundles: what is written is what is read, and damage is found."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from tinyvit_edge._version import __version__
from tinyvit_edge.bundle import Bundle, GoldenImage, golden_images, read_bundle, write_bundle
from tinyvit_edge.errors import InputError
from tinyvit_edge.exporters import Audit, Exported, Share, exporter
from tinyvit_edge.files import sha256_of
from tinyvit_edge.precision import PRECISIONS
from tinyvit_edge.preprocessing import Preprocessing, normalise, resize
from tinyvit_edge.program import Program
from tinyvit_edge.quantization.calibration import Calibration, LayerRanges
from tinyvit_edge.quantization.qdq import QuantParams

CONTRACT = Preprocessing(size=64)
CALIBRATION = Calibration(
    layers={
        "stem": LayerRanges(
            input=QuantParams(scale=0.1, zero_point=-3),
            output=QuantParams(scale=1 / 3, zero_point=9),
        )
    },
    images=7,
)
AUDIT = Audit(
    weight_bytes={"int8": 5, "float32": 8},
    macs={"float32": 1, "int8": 3},
    left_float={"attention": Share(count=1, macs=1)},
    quantize=2,
    dequantize=1,
)
ARRAYS = ("decoded", "resized", "tensor", "reference_logits", "artifact_logits")


def photo(width: int, height: int, seed: int = 0) -> Image.Image:
    rng = np.random.default_rng(seed)
    return Image.fromarray(rng.integers(0, 256, (height, width, 3), np.uint8))


def make_goldens() -> tuple[GoldenImage, ...]:
    rng = np.random.default_rng(0)
    photos = [("cat/ä b.jpg", photo(90, 70)), ("dog.png", photo(64, 100, seed=1))]
    return tuple(
        replace(
            golden,
            reference_logits=rng.standard_normal(10, np.float32),
            artifact_logits=rng.standard_normal(10, np.float32),
        )
        for golden in golden_images(photos, CONTRACT)
    )


@pytest.fixture
def write(small_program: Callable[..., Program], tmp_path: Path) -> Callable[..., Path]:
    def make(precision: str = "w8a8", **changes: Any) -> Path:
        root, target = tmp_path / "onnx-bundle", exporter("onnx")
        root.mkdir()
        (root / target.artifact).write_bytes(b"artifact")
        arguments: dict[str, Any] = {
            "target": target,
            "program": small_program(precision),
            "exported": Exported(details={"opset": 21}, reproducible=False),
            "audit": AUDIT,
            "options": {"opset": 21},
            "calibration": CALIBRATION,
            "moments": None,
            "goldens": make_goldens(),
            "source": {"checkpoint": "digits", "sha256": "ab" * 32},
            "command": ("tinyvit-edge", "deploy"),
            "packages": {"onnx": "1.2.3"},
        }
        write_bundle(root, **(arguments | changes))
        return root

    return make


def test_a_bundle_is_read_as_it_was_written(
    write: Callable[..., Path], small_program: Callable[..., Program]
) -> None:
    """Oracle: the values that went in."""
    root = write()
    bundle = read_bundle(root)
    program = small_program("w8a8")
    assert bundle.root == root
    assert (bundle.target, bundle.precision) == ("onnx", "w8a8")
    assert bundle.preprocessing == program.preprocessing
    assert bundle.labels == program.labels
    assert bundle.artifact.read_bytes() == b"artifact"
    manifest = bundle.manifest
    assert manifest["artifact"] == {
        "file": bundle.artifact.name,
        "sha256": sha256_of(bundle.artifact),
        "size_bytes": 8,
        "reproducible": False,
        "details": {"opset": 21},
        "audit": {
            "weight_bytes": {"int8": 5, "float32": 8},
            "macs": {"float32": 1, "int8": 3},
            "quantize": 2,
            "dequantize": 1,
            "needless": 0,
            "left_float": [
                {
                    "kind": "attention",
                    "count": 1,
                    "macs": 1,
                    "reason": PRECISIONS["w8a8"].why_float["attention"],
                }
            ],
            "left_out": {},
        },
    }
    assert manifest["tool"] == {"name": "tinyvit-edge", "version": __version__}
    assert manifest["command"] == ["tinyvit-edge", "deploy"]
    assert manifest["packages"] == {"onnx": "1.2.3"}
    assert manifest["options"] == {"opset": 21}
    assert manifest["source"] == {"checkpoint": "digits", "sha256": "ab" * 32}
    assert manifest["input"] == {
        "name": "image",
        "kind": "tensor",
        "shape": [1, 3, 64, 64],
        "dtype": "float32",
    }
    assert manifest["outputs"] == ["logits"]
    assert manifest["output"] == {"name": "logits", "shape": [1, 10], "dtype": "float32"}
    assert Calibration.from_dict(manifest["quantization"]) == CALIBRATION
    assert Preprocessing.from_dict(manifest["preprocessing"]) == program.preprocessing


def test_the_manifest_says_what_a_mixed_row_leaves_out(write: Callable[..., Path]) -> None:
    """Oracle: the calibration's own reasons, and at other rows none of them."""
    named = replace(CALIBRATION, left_float={"stem": "40 % of the noise"})
    root = write("w8a8-mixed", calibration=named)
    audit = read_bundle(root).manifest["artifact"]["audit"]
    assert audit["left_out"] == {"stem": "40 % of the noise"}
    assert [one["kind"] for one in audit["left_float"]] == ["attention"]


def test_an_artifact_that_takes_an_image_says_so(write: Callable[..., Path]) -> None:
    """Oracle: what the exporter said; the logits' shape stays where it was."""
    outputs = ("classLabel", "classLabel_probs", "logits")
    manifest = read_bundle(write(exported=Exported(input="image", outputs=outputs))).manifest
    assert manifest["input"] == {
        "name": "image",
        "kind": "image",
        "shape": [64, 64, 3],
        "dtype": "uint8",
    }
    assert manifest["outputs"] == list(outputs)
    assert manifest["output"] == {"name": "logits", "shape": [1, 10], "dtype": "float32"}


def test_a_bundle_without_ranges_says_so(write: Callable[..., Path]) -> None:
    """Oracle: null in the manifest."""
    bundle = read_bundle(write("fp32", calibration=None))
    assert bundle.manifest["quantization"] is None
    assert bundle.precision == "fp32"


def test_golden_vectors_come_back_bit_for_bit(write: Callable[..., Path]) -> None:
    """Oracle: the arrays that went in, types and shapes included."""
    found = read_bundle(write()).goldens()
    assert [golden.name for golden in found] == ["cat/ä b.jpg", "dog.png"]
    for before, after in zip(make_goldens(), found, strict=True):
        for key in ARRAYS:
            one, other = getattr(before, key), getattr(after, key)
            assert one.dtype == other.dtype
            np.testing.assert_array_equal(one, other)


def test_golden_files_are_raw_little_endian_arrays(write: Callable[..., Path]) -> None:
    """Oracle: `numpy.frombuffer` with the types that the module's docstring gives."""
    folder = write() / "golden"
    golden = make_goldens()[1]
    types = {"decoded": "u1", "resized": "u1", "tensor": "<f4", "reference_logits": "<f4"}
    for key, dtype in types.items():
        raw = np.frombuffer((folder / f"1.{key}.bin").read_bytes(), dtype)
        np.testing.assert_array_equal(raw, getattr(golden, key).ravel())
    index = json.loads((folder / "golden.json").read_text())
    entry = index["images"][1]
    assert entry["decoded"] == {"file": "1.decoded.bin", "shape": [100, 64, 3], "dtype": "uint8"}
    assert entry["tensor"] == {"file": "1.tensor.bin", "shape": [3, 64, 64], "dtype": "float32"}


# --- golden images ----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("size", "kept"),
    [
        ((512, 700), (512, 700)),
        ((1024, 1500), (512, 750)),
        ((4000, 3000), (800, 600)),
        ((90, 5000), (90, 5000)),
        ((2047, 1536), (683, 512)),
    ],
)
def test_large_photos_are_reduced_by_a_whole_factor(
    size: tuple[int, int], kept: tuple[int, int]
) -> None:
    """Oracle: shorter side // 512, by hand; every stage follows from the reduced image."""
    (golden,) = golden_images([("x", photo(*size))], CONTRACT)
    width, height = kept
    assert golden.decoded.shape == (height, width, 3)
    assert golden.decoded.dtype == np.uint8
    resized = resize(Image.fromarray(golden.decoded), CONTRACT)
    np.testing.assert_array_equal(golden.resized, resized)
    np.testing.assert_array_equal(golden.tensor, normalise(resized, CONTRACT))
    assert golden.reference_logits is None
    assert golden.artifact_logits is None


def test_reduction_averages_pixels() -> None:
    """Oracle: the mean of each 2 x 2 block, rounded, in NumPy."""
    image = photo(1024, 1024)
    (golden,) = golden_images([("x", image)], CONTRACT)
    blocks = np.asarray(image, np.float64).reshape(512, 2, 512, 2, 3).mean((1, 3))
    assert np.abs(golden.decoded - blocks).max() <= 0.5


# --- damage -----------------------------------------------------------------------------------


def assert_refused(attempt: Callable[[], Any], path: Path) -> None:
    with pytest.raises(InputError) as caught:
        attempt()
    assert str(path) in str(caught.value)
    assert "\n" not in str(caught.value)


def edit(path: Path, change: Callable[[Any], Any]) -> None:
    path.write_text(json.dumps(change(json.loads(path.read_text()))))


def without(*keys: str) -> Callable[[Any], Any]:
    def change(value: Any) -> Any:
        inner = value
        for key in keys[:-1]:
            inner = inner[key]
        del inner[keys[-1]]
        return value

    return change


MANIFESTS: dict[str, Callable[[Any], Any]] = {
    "other version": lambda value: value | {"schema_version": 2},
    "no version": without("schema_version"),
    "no artifact": without("artifact"),
    "no file": without("artifact", "file"),
    "a list": lambda value: [value],
    "null": lambda _: None,
    "artifact is null": lambda value: value | {"artifact": None},
}


@pytest.mark.parametrize("damage", MANIFESTS)
def test_a_damaged_manifest_is_refused(damage: str, write: Callable[..., Path]) -> None:
    """Oracle: one line that names the bundle."""
    root = write()
    edit(root / "manifest.json", MANIFESTS[damage])
    assert_refused(lambda: read_bundle(root), root)


def test_the_version_that_does_not_fit_is_named(write: Callable[..., Path]) -> None:
    """Oracle: the two numbers."""
    root = write()
    edit(root / "manifest.json", MANIFESTS["other version"])
    with pytest.raises(InputError, match="schema version 2 is not 1"):
        read_bundle(root)


@pytest.mark.parametrize("name", ["manifest.json", "preprocess.json", "labels.txt"])
@pytest.mark.parametrize("content", [None, b"", b"{", b"\xff\xfe"])
def test_a_cut_or_missing_file_is_refused(
    content: bytes | None, name: str, write: Callable[..., Path]
) -> None:
    """Oracle: one line that names the bundle; labels are any UTF-8 text, as many as outputs."""
    root = write()
    if content is None:
        (root / name).unlink()
    else:
        (root / name).write_bytes(content)
    with pytest.raises(InputError) as caught:
        read_bundle(root)
    assert "\n" not in str(caught.value)


def test_what_is_no_bundle_is_refused(tmp_path: Path) -> None:
    """Oracle: an empty folder, a missing one, a file."""
    (tmp_path / "file").write_text("x")
    for root in (tmp_path, tmp_path / "missing", tmp_path / "file"):
        assert_refused(lambda root=root: read_bundle(root), root)  # type: ignore[misc]


def test_a_missing_artifact_is_refused(write: Callable[..., Path]) -> None:
    """Oracle: the artifact's name in the message."""
    root = write()
    artifact = read_bundle(root).artifact
    artifact.unlink()
    assert_refused(lambda: read_bundle(root), artifact)


def cut(name: str) -> Callable[[Path], None]:
    def change(folder: Path) -> None:
        path = folder / name
        path.write_bytes(path.read_bytes()[:-4])

    return change


def index(change: Callable[[Any], Any]) -> Callable[[Path], None]:
    return lambda folder: edit(folder / "golden.json", change)


GOLDENS: dict[str, Callable[[Path], None]] = {
    "array cut": cut("0.tensor.bin"),
    "logits cut": cut("1.artifact_logits.bin"),
    "index cut": cut("golden.json"),
    "array missing": lambda folder: (folder / "0.resized.bin").unlink(),
    "index missing": lambda folder: (folder / "golden.json").unlink(),
    "no images": index(without("images")),
    "no name": index(without("images", 0, "name")),  # type: ignore[arg-type]
    "no stage": index(without("images", 0, "decoded")),  # type: ignore[arg-type]
    "no shape": index(without("images", 0, "tensor", "shape")),  # type: ignore[arg-type]
    "a list": index(lambda value: [value]),
    "null": index(lambda _: None),
    "other type": index(
        lambda value: json.loads(json.dumps(value).replace('"float32"', '"float8"'))
    ),
    "narrow type": index(
        lambda value: json.loads(json.dumps(value).replace('"float32"', '"uint8"'))
    ),
}


@pytest.mark.parametrize("damage", GOLDENS)
def test_damaged_golden_vectors_are_refused(damage: str, write: Callable[..., Path]) -> None:
    """Oracle: one line that names the folder; the bundle itself can still be read."""
    root = write()
    GOLDENS[damage](root / "golden")
    bundle: Bundle = read_bundle(root)
    assert_refused(bundle.goldens, root / "golden")


def test_labels_keep_every_character_but_the_line_feed(
    write: Callable[..., Path], small_program: Callable[..., Program]
) -> None:
    """Oracle: one label a line, and only a line feed ends a line."""
    labels = ("a b", "é, ü", "x\u2028y", "p\x0bq", "n\x85m", "", *"ABCD")
    program = replace(small_program("w8a8"), labels=labels)
    assert read_bundle(write(program=program)).labels == labels
