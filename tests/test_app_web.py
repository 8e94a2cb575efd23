"""The web app, in headless Chromium with a phone's viewport and a fake camera."""

from __future__ import annotations

import base64
import json
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import torch
from PIL import Image
from torch import Tensor, nn

import web_samples
from tinyvit_edge.app_bundles import ship, write_index
from tinyvit_edge.bundle import read_bundle
from tinyvit_edge.deploy import DeployRequest, deploy
from tinyvit_edge.preprocessing import Preprocessing, decode, resize

pytestmark = pytest.mark.slow

CPU = ("ort-wasm", "litert-wasm")
BUNDLES = ("onnx-fp32", "onnx-w8a8", "tflite-fp32", "tflite-w8a8")
_ORIENTATION = 0x0112
_RED = "rgb(165, 29, 29)"
_CROP = Preprocessing(size=48, crop_pct=0.875)
CONTRACTS = {
    "crop": _CROP,
    "bilinear": replace(_CROP, crop_pct=0.95, interpolation="bilinear"),
    "squash": replace(_CROP, mode="squash"),
}
Install = Callable[[str], Path]


@pytest.fixture(scope="module")
def site(digits_images: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The app with the digits model for both runtimes, in float and in int8."""
    web_samples.chromium()
    folder = web_samples.install(tmp_path_factory.mktemp("web") / "site")
    out = tmp_path_factory.mktemp("web-bundles")
    report = deploy(
        DeployRequest(
            weights="digits",
            data=digits_images / "heldout",
            calib=digits_images / "train",
            targets=("onnx", "tflite"),
            precisions=("fp32", "w8a8"),
            out=out,
            runs=1,
            limit=30,
            command=("tinyvit-edge", "deploy"),
        )
    )
    assert report.exit_code == 0
    ship("web", [out], folder / "bundles")
    return folder


@pytest.fixture
def without_bundles(site: Path, tmp_path: Path) -> Path:
    """A copy of the site to put other bundles into; packages are linked."""
    copy = tmp_path / "site"
    shutil.copytree(site, copy, ignore=shutil.ignore_patterns("bundles", "vendor", "node_modules"))
    for name in ("vendor", "node_modules"):
        (copy / name).symlink_to(site / name)
    return copy


def drawn(width: int, height: int) -> Image.Image:
    """Waves and noise: no two rows or columns are alike, and JPEG has something to round."""
    rng = np.random.default_rng(width * height)
    y, x = np.mgrid[:height, :width]
    waves = [128 + 90 * np.sin(x / a + y / b) for a, b in ((7, 19), (13, 5), (3, 29))]
    pixels = np.stack(waves, -1) + rng.normal(0, 9, (height, width, 3))
    return Image.fromarray(pixels.clip(0, 255).astype(np.uint8))


def write_photos(folder: Path) -> list[str]:
    """Photos as phones and people save them; each EXIF orientation once in each way to store it."""
    folder.mkdir()
    for value in range(1, 9):
        exif = Image.Exif()
        exif[_ORIENTATION] = value
        for kind in ("jpg", "png", "webp"):
            drawn(61, 40).save(
                folder / f"turned-{value}.{kind}", exif=exif, **_LOSSLESS.get(kind, {})
            )
    drawn(640, 411).save(folder / "large.jpg", quality=90)
    drawn(97, 150).save(folder / "progressive.jpg", progressive=True, subsampling=0)
    drawn(50, 300).save(folder / "tall.png")
    drawn(9, 7).convert("L").save(folder / "grey.png")
    drawn(64, 48).quantize(16).save(folder / "palette.png")
    faint = drawn(61, 40)
    faint.putalpha(drawn(61, 40).getchannel("R").point(lambda v: max(0, v - 64)))
    faint.save(folder / "transparent.png")
    faint.convert("LA").save(folder / "transparent-grey.png")
    return sorted(path.name for path in folder.iterdir())


_LOSSLESS: dict[str, dict[str, Any]] = {"webp": {"lossless": True}}


def _bytes(encoded: str) -> npt.NDArray[np.uint8]:
    return np.frombuffer(base64.b64decode(encoded), np.uint8)


def test_both_runtimes_and_the_contract_give_pythons_numbers(site: Path) -> None:
    """Oracles: PyTorch's float32 logits; the artifact's in Python (int8); Pillow's bytes."""
    names = write_photos(site / "photos")
    contracts = {key: contract.to_dict() for key, contract in CONTRACTS.items()}
    photos = [{"name": name, "contracts": contracts} for name in names]
    outcome = web_samples.drive(site, "numbers", backends=CPU, photos=photos)
    found = outcome["result"]
    assert outcome["errors"] == []
    assert found["isolated"]

    runtime = {"onnx": "ort-wasm", "tflite": "litert-wasm"}
    assert set(found["logits"]) == {f"{name} {runtime[name.split('-')[0]]}" for name in BUNDLES}
    for key, rows in found["logits"].items():
        bundle = read_bundle(site / "bundles" / key.split()[0])
        logits = np.array(rows)
        expected = np.stack([golden.reference_logits for golden in bundle.goldens()])
        if bundle.precision == "fp32":
            np.testing.assert_allclose(logits, expected, rtol=0, atol=1e-4, err_msg=key)
        else:
            artifact = np.stack([golden.artifact_logits for golden in bundle.goldens()])
            np.testing.assert_array_equal(logits.argmax(1), artifact.argmax(1), err_msg=key)
            # int8 in earnest, and not the float model under its name
            assert np.abs(logits - expected).max() > 1e-3

    for name in names:
        image = decode(site / "photos" / name)
        shown = found["decoded"][name]
        pixels = _bytes(shown["data"]).reshape(shown["shape"])
        np.testing.assert_array_equal(pixels, np.asarray(image), err_msg=name)
        for key, contract in CONTRACTS.items():
            got = _bytes(found["resized"][f"{name} {key}"])
            np.testing.assert_array_equal(got, resize(image, contract).ravel(), err_msg=name)


def test_a_visit(site: Path, digits_images: Path, tmp_path: Path) -> None:
    """Oracles: the photo's class; the manifest; no request after load; all of it again offline."""
    from tinyvit_edge.device_report import read_device_report

    photo = sorted((digits_images / "heldout" / "7").iterdir())[0]
    options = {
        "bundles": BUNDLES,
        "photo": photo,
        "report": tmp_path / "report.json",
        "screenshot": tmp_path / "visit.png",
    }
    outcome = web_samples.drive(site, "visit", **options)
    found = outcome["result"]
    assert outcome["errors"] == []
    for name in BUNDLES:
        assert found["parity"][name]["verdict"] == "Same as where it was made"
        assert set(found["parity"][name]["gates"].values()) == {"ok"}
    assert found["photo"] == "7"
    assert found["runs"] == "of 22 runs"  # the golden that loading shows, the photo, 20 more
    assert found["camera"] > 16
    assert found["requests"] == []
    assert found["overflow"] <= 0
    assert found["offlineChip"]
    assert found["isolatedOffline"]
    assert found["offline"]["verdict"] == "Same as where it was made"

    report = read_device_report(options["report"])
    manifest = json.loads((site / "bundles" / BUNDLES[-1] / "manifest.json").read_text())
    assert report.bundle["artifact_sha256"] == manifest["artifact"]["sha256"]
    assert report.backend == "litert-wasm"
    assert report.inference is not None
    assert report.inference["count"] > 22  # the camera's frames, too
    assert report.exit_code == 0


def test_damage_is_shown(site: Path, without_bundles: Path, tmp_path: Path) -> None:
    """Oracle: one fault a bundle, and the one gate that is about it is red."""
    bundles = without_bundles / "bundles"
    names = ("cut", "golden", "labels", "missing", "pixels", "tensor")
    for name in names:
        shutil.copytree(site / "bundles" / "onnx-fp32", bundles / name)
    write_index(bundles)
    model = bundles / "cut" / "model.onnx"
    model.write_bytes(model.read_bytes()[:1000])
    for name, file, dtype in (
        ("golden", "1.artifact_logits.bin", np.float32),
        ("pixels", "0.resized.bin", np.uint8),
        ("tensor", "2.tensor.bin", np.float32),
    ):
        path = bundles / name / "golden" / file
        values = np.fromfile(path, dtype)
        values[0] += dtype(1)
        values.tofile(path)
    (bundles / "labels" / "preprocess.json").write_text("{")
    (bundles / "missing" / "manifest.json").unlink()
    found = web_samples.drive(without_bundles, "damaged", bundles=names, screenshots=tmp_path)[
        "result"
    ]
    for name, words in {
        "cut": ("ONNX Runtime, CPU cannot load model.onnx",),
        "labels": ("labels/preprocess.json", "tinyvit-edge bundle"),
        "missing": ("missing/manifest.json", "404"),
    }.items():
        assert all(word in found[name]["error"] for word in words), found[name]
        assert found[name]["parity"] is None
    for name, gates in {
        "golden": {"Logits"},
        "pixels": {"Resized pixels"},
        "tensor": {"Input tensor", "Logits"},
    }.items():
        parity = found[name]["parity"]
        assert parity["failed"]
        assert parity["verdict"] == "Differs from where it was made"
        assert parity["colour"] == _RED
        assert {gate for gate, state in parity["gates"].items() if state == "bad"} == gates


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_keyboard_and_contrast(site: Path, scheme: str) -> None:
    """Oracles: the order on the page; WCAG 2.2's 4.5 : 1 for text."""
    found = web_samples.drive(site, "accessibility", scheme=scheme)["result"]
    order = ["camera", "photo", "sample", "bundle", "backend", "time", "export", "check"]
    assert found["focused"][: len(order)] == order
    assert found["contrast"] == []


class SixDimensions(nn.Module):
    """Windows as a stock TinyViT cuts them out, between a reshape to six dimensions and back."""

    def __init__(self) -> None:
        super().__init__()
        self.head = nn.Linear(3, 10)

    def forward(self, image: Tensor) -> Tensor:
        """(1, 3, 64, 64) -> (1, 10)."""
        windows = image.permute(0, 2, 3, 1).reshape(1, 8, 8, 8, 8, 3).transpose(2, 3)
        return self.head(windows.reshape(64, 64, 3).relu()).mean((0, 1)).reshape(1, 10)


def run_on_gpu(site: Path) -> str:
    """LiteRT's log of the float32 artifact on WebGPU in software."""
    bundle, backend = "tflite-fp32", "litert-webgpu"
    outcome = web_samples.drive(site, "gpu", webgpu=True, bundle=bundle, backend=backend)
    assert outcome["result"]["error"] == ""
    assert outcome["result"]["status"].endswith("GPU")
    log = "\n".join(outcome["logs"])
    assert "Initializing WebGPU-based API from graph" in log
    return log.lower()


LEFT_OUT = ("not supported by gpu delegate", "bad input dims", "will run on the cpu")


def test_no_operator_is_left_out_on_the_gpu(site: Path) -> None:
    """Oracle: LiteRT's own log; its `isFullyAccelerated` is true for the model below, too."""
    log = run_on_gpu(site)
    assert not [words for words in LEFT_OUT if words in log]


def test_the_log_tells_what_is_left_out(site: Path, without_bundles: Path) -> None:
    """Oracle: a form that the delegate cannot take; without it the test above might see nothing."""
    import litert_torch

    name = "tflite-fp32"
    bundle = without_bundles / "bundles" / name
    shutil.copytree(site / "bundles" / name, bundle)
    model = litert_torch.convert(SixDimensions().eval(), (torch.zeros(1, 3, 64, 64),))
    model.export(str(bundle / "model.tflite"))
    write_index(bundle.parent)
    log = run_on_gpu(without_bundles)
    assert all(words in log for words in LEFT_OUT)
