"""tiny_vit_5m_224 at full size, with randomised weights, on photos, through every target."""

from __future__ import annotations

from pathlib import Path

import pytest
from PIL import Image

from tinyvit_edge.checkpoint import Checkpoint, save_checkpoint
from tinyvit_edge.deploy import DeployRequest, deploy
from tinyvit_edge.exporters import TARGETS
from tinyvit_edge.imagenet import imagenet_labels
from tinyvit_edge.modeling import TinyVitForImageClassification
from tinyvit_edge.preprocessing import preset
from tinyvit_edge.variants import config_for

pytestmark = pytest.mark.slow

CONVERSION_DB = {"fp32": 90.0, "fp16": 35.0}


@pytest.fixture(scope="module")
def photos(request, tmp_path_factory) -> Path:
    """The folder of --data, or crops of the two photos that scikit-learn carries."""
    given = request.config.getoption("--data")
    if given is not None:
        return given
    datasets = pytest.importorskip("sklearn.datasets")
    folder = tmp_path_factory.mktemp("photos")
    for index, pixels in enumerate(datasets.load_sample_images().images):
        photo = Image.fromarray(pixels)
        for left in range(0, photo.width - 320, 80):
            photo.crop((left, 0, left + 320, photo.height)).save(folder / f"{index}-{left}.png")
    return folder


@pytest.fixture(scope="module")
def report(randomise, photos, tmp_path_factory):
    """One deployment of every target at the float precisions, and at w8a8."""
    config = config_for("tiny_vit_5m_224")
    config.id2label = dict(enumerate(imagenet_labels()))
    checkpoint = Checkpoint(
        model=randomise(TinyVitForImageClassification(config)),
        labels=imagenet_labels(),
        preprocessing=preset("microsoft", 224),
        variant="tiny_vit_5m_224",
        format="huggingface",
        sha256="",
        source="random",
    )
    folder = tmp_path_factory.mktemp("full")
    save_checkpoint(checkpoint, folder / "weights")
    return deploy(
        DeployRequest(
            weights=str(folder / "weights"),
            data=photos,
            calib=photos,
            targets=tuple(TARGETS),
            precisions=(*CONVERSION_DB, "w8-dynamic", "w8a8"),
            out=folder / "out",
            limit=16,
            calib_images=32,
            runs=10,
        )
    )


@pytest.mark.parametrize("precision", CONVERSION_DB)
@pytest.mark.parametrize("target", TARGETS)
def test_float_conversions_lose_nothing_that_matters(report, target, precision):
    """Oracle: the same-precision PyTorch model on the same photos."""
    row = next(r for r in report.rows if (r.target, r.precision) == (target, precision))
    assert row.conversion.sqnr_db >= CONVERSION_DB[precision]
    assert all(gate.passed for gate in row.gates if gate.name.startswith("conversion"))


@pytest.mark.parametrize("precision", ["w8-dynamic", "w8a8"])
@pytest.mark.parametrize("target", TARGETS)
def test_int8_conversions_are_int8_and_faithful(report, target, precision):
    """Oracle: the same-precision PyTorch model, as far as it agrees with itself when its layers'
    inputs move by a rounding; accuracy against float32 means nothing with random weights.
    """
    row = next(r for r in report.rows if (r.target, r.precision) == (target, precision))
    if row.status == "unsupported":
        assert (target, precision) == ("coreml", "w8-dynamic")
        return
    gates = {gate.name: gate for gate in row.gates}
    for name in ("conversion SQNR", "int8 weight bytes", "int8 multiply-accumulates"):
        assert gates[name].passed, gates[name]


def test_executorch_is_one_partition(report):
    """Oracle: the saved program, whose details the exporter reads back."""
    row = next(r for r in report.rows if (r.target, r.precision) == ("executorch", "fp32"))
    assert row.details["partitions"] == 1


def test_the_model_is_the_published_one(report):
    """Oracle: the published parameter count."""
    assert (report.model.variant, report.model.params) == ("tiny_vit_5m_224", 5_392_764)
