"""Judging bundles on photos and by themselves: which contract counts, and what a refusal is."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch

from tinyvit_edge.bundle import read_bundle
from tinyvit_edge.console import QuietDisplay
from tinyvit_edge.errors import InputError
from tinyvit_edge.evaluate import evaluate_accuracy
from tinyvit_edge.export import ExportRequest, export
from tinyvit_edge.parity import check_goldens, check_photos
from tinyvit_edge.report import Row

SAME_CONTRACT = "preprocessing as the checkpoint's (1 is yes)"


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An ONNX bundle of the digits with another contract and size than the checkpoint's own."""
    out = tmp_path_factory.mktemp("made")
    request = ExportRequest(
        target="onnx",
        weights="digits",
        precision="fp32",
        out=out,
        image_size=96,
        preprocessing="timm",
    )
    return Path(export(request)["bundle"])


@pytest.fixture
def tampered(made: Path, tmp_path: Path) -> Callable[..., Path]:
    """`tampered(**fields)`: a copy of the bundle with another preprocess.json."""

    def copy(**changes: Any) -> Path:
        root = tmp_path / made.name
        shutil.copytree(made, root)
        path = root / "preprocess.json"
        path.write_text(json.dumps(json.loads(path.read_text()) | changes))
        return root

    return copy


def judge(root: Path, data: Path) -> Row:
    return check_photos(
        root, weights="digits", data=data / "heldout", limit=20, display=QuietDisplay()
    )


def failed(row: Row) -> set[str]:
    assert row.status == ("ok" if all(gate.passed for gate in row.gates) else "gate_failed")
    return {gate.name for gate in row.gates if not gate.passed}


def test_a_bundle_is_judged_by_the_contract_it_was_made_with(
    made: Path, digits_images: Path
) -> None:
    """Oracle: the request; the checkpoint's own contract squashes to 64 pixels."""
    source = read_bundle(made).manifest["source"]
    assert (source["preprocessing"], source["image_size"]) == ("timm", 96)
    row = judge(made, digits_images)
    assert failed(row) == set()
    assert SAME_CONTRACT in {gate.name for gate in row.gates}


def test_the_checkpoints_own_contract_is_no_preset(deployed: Any) -> None:
    """Oracle: the digits are squashed to 64 pixels, which neither preset does."""
    source = read_bundle(deployed.out / "onnx-fp32").manifest["source"]
    assert (source["preprocessing"], source["image_size"]) == (None, 64)


@pytest.mark.parametrize("change", [{"crop_pct": 0.5}, {"std": [1.0, 1.0, 1.0]}])
def test_a_changed_contract_is_caught(
    change: dict[str, Any], tampered: Callable[..., Path], digits_images: Path
) -> None:
    """Oracle: the contract in force when the bundle was made."""
    assert {SAME_CONTRACT, "conversion SQNR"} <= failed(judge(tampered(**change), digits_images))


def test_a_contract_of_another_size_fails_gates(
    tampered: Callable[..., Path], digits_images: Path
) -> None:
    """Oracle: the runtime refuses 64 pixels where the graph says 96; that is a failed gate."""
    root = tampered(size=64)
    row = judge(root, digits_images)
    refusal = "artifact takes the images (1 is yes)"
    assert failed(row) == {SAME_CONTRACT, refusal}
    (gate,) = [gate for gate in row.gates if gate.name == refusal]
    assert gate.reason is not None
    assert "invalid dimensions" in gate.reason.lower()
    assert {"resized bytes that differ", "input tensor max abs difference"} <= failed(
        check_goldens(root)
    )


def test_every_gate_of_the_golden_check_says_why(made: Path) -> None:
    """Oracle: `Gate.reason`; at fp32 every class must agree."""
    gates = check_goldens(made).gates
    assert all(gate.reason for gate in gates)
    (agreement,) = [gate for gate in gates if gate.name.startswith("top-1")]
    assert agreement.bound == 1.0


class _Threads(QuietDisplay):
    """Notes how many threads PyTorch has at each step."""

    def __init__(self) -> None:
        self.seen: list[int] = []

    @contextmanager
    def track(self, what: str, total: int) -> Iterator[Callable[[int], None]]:
        yield lambda _: self.seen.append(torch.get_num_threads())


def test_weights_are_evaluated_on_the_threads_asked_for(digits_images: Path) -> None:
    """Oracle: PyTorch's own count, during and after."""
    before, display = torch.get_num_threads(), _Threads()
    count = before + 2
    evaluate_accuracy(
        "digits", data=digits_images / "heldout", limit=20, threads=count, display=display
    )
    assert display.seen == [count, count]
    assert torch.get_num_threads() == before


def test_weights_are_evaluated_as_they_are_deployed(made: Path, digits_images: Path) -> None:
    """Oracle: the artifact made with the same size and preset; and another result without."""

    def accuracy(model: str, **changes: Any) -> dict[str, Any]:
        data = digits_images / "heldout"
        return evaluate_accuracy(
            model, data=data, limit=60, threads=1, display=QuietDisplay(), **changes
        )

    as_made = accuracy("digits", image_size=96, preprocessing="timm")
    assert as_made == accuracy(str(made))
    assert as_made != accuracy("digits")
    with pytest.raises(InputError, match="a bundle has its own preprocessing"):
        accuracy(str(made), image_size=96)
