"""The bundled weights of full size: what the card says of them."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

import tinyvit_edge
from tinyvit_edge.checkpoint import Checkpoint, load_checkpoint
from tinyvit_edge.data import scan_folder
from tinyvit_edge.evaluate import labels_of, reference_logits, reference_module
from tinyvit_edge.files import size_of
from tinyvit_edge.measure import accuracy

FOLDER = Path(tinyvit_edge.__file__).parent / "weights" / "imagenette"
LOGS = Path(__file__).parents[1] / "docs" / "imagenette"


@pytest.fixture(scope="module")
def imagenette() -> Checkpoint:
    """The bundled checkpoint."""
    return load_checkpoint("imagenette")


def stated(pattern: str) -> float:
    """A figure of the model card."""
    found = re.search(pattern, (FOLDER / "README.md").read_text(encoding="utf-8"))
    assert found
    return float(found[1].replace(",", ""))


def test_the_card_describes_the_file(imagenette: Checkpoint) -> None:
    """Oracles: the tensors on disk, and the model that they give."""
    tensors = load_file(FOLDER / "model.safetensors")
    floats = {tensor.dtype for tensor in tensors.values() if tensor.is_floating_point()}
    assert floats == {torch.float16}
    assert size_of(FOLDER) < 11_000_000
    parameters = sum(p.numel() for p in imagenette.model.parameters())
    assert stated(r"\(([\d.]+) M parameters") == pytest.approx(parameters / 1e6, abs=0.005)
    assert imagenette.variant == "tiny_vit_5m_224"
    assert imagenette.preprocessing.size == 224
    assert len(imagenette.labels) == 10
    text = (FOLDER / "README.md").read_text(encoding="utf-8").replace("\n", " ")
    assert all(label in text for label in imagenette.labels)


def test_the_card_states_what_the_logs_say() -> None:
    """Oracle: the last accuracy that the last run logged, and what each run began from."""
    runs = sorted(path.parent for path in LOGS.glob("*/run.json"))
    assert [run.name[0] for run in runs] == ["1", "2", "3"]
    logged = [json.loads(line) for line in (runs[-1] / "metrics.jsonl").open()]
    assert stated(r"never trained on \| 473 \| ([\d.]+) %") == round(100 * logged[-1]["top1"], 2)
    for run in runs:
        facts = json.loads((run / "run.json").read_text())
        assert facts["teacher"] == "efficientnet-lite2"
        assert not facts["weights"].startswith("/")


@pytest.mark.slow
def test_accuracy_on_real_photos(imagenette: Checkpoint, request: pytest.FixtureRequest) -> None:
    """Oracle: the labels of Imagenette's validation pictures; 400 of them, so play of 4 points."""
    data = request.config.getoption("--data")
    if data is None:
        pytest.skip("--data names no folder of photos")
    photos = scan_folder(data, imagenette.labels).subset(400)
    module = reference_module(imagenette.model)
    found = accuracy(reference_logits(module, photos, imagenette.preprocessing), labels_of(photos))
    assert found is not None
    assert found.top1 is not None
    assert 100 * found.top1 >= stated(r"224 px \| 1,966 \| ([\d.]+) %") - 4
