"""What a second `deploy` to the same folder uses again, and what it never does."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from copy import deepcopy
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest
import torch

from tinyvit_edge import reuse
from tinyvit_edge.checkpoint import save_checkpoint
from tinyvit_edge.console import QuietDisplay
from tinyvit_edge.deploy import DeployRequest, deploy, plan
from tinyvit_edge.deploy_job import Job, prepare
from tinyvit_edge.files import sha256_of
from tinyvit_edge.worker import TargetProcess

BOTH = {"onnx-fp32", "onnx-w8a8"}


class Listener(QuietDisplay):
    """Keeps what was said."""

    def __init__(self) -> None:
        self.said: list[str] = []

    def say(self, message: str) -> None:
        self.said.append(message)

    def unchanged(self) -> set[str]:
        """Names of the steps that were said to be unchanged."""
        steps = (line.split()[1].rstrip(":") for line in self.said if ": unchanged" in line)
        return {step for step in steps if step.startswith("onnx-")}


@dataclass(frozen=True)
class First:
    """A finished deployment."""

    request: DeployRequest
    report: Any


@pytest.fixture(scope="module")
def first(digits_images, tmp_path_factory) -> First:
    """Two bundles of the digits, by photos and weights that tests may change in copies."""
    folder = tmp_path_factory.mktemp("first")
    for part in ("heldout", "train"):
        for path in sorted((digits_images / part).glob("*/*.png"))[::40]:
            copy = folder / part / path.parent.name / path.name
            copy.parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(path, copy)
    request = DeployRequest(
        weights="digits",
        data=folder / "heldout",
        calib=folder / "train",
        targets=("onnx",),
        precisions=("fp32", "w8a8"),
        out=folder / "out",
        runs=1,
        parity_images=4,
        calib_images=8,
        command=("tinyvit-edge", "deploy"),
    )
    return First(request, deploy(request))


@pytest.fixture
def again(first, tmp_path) -> DeployRequest:
    """The same request, with a copy of everything it reads and wrote."""
    shutil.copytree(first.request.out.parent, tmp_path / "again")
    paths = {name: tmp_path / "again" / name for name in ("heldout", "train", "out")}
    return replace(first.request, data=paths["heldout"], calib=paths["train"], out=paths["out"])


def prepared(request: DeployRequest, tmp_path: Path, display: QuietDisplay | None = None) -> Job:
    """What a run would use again."""
    cells, _ = plan(request)
    return prepare(request, cells, tmp_path, display or QuietDisplay())


def identities(folder: Path) -> dict[str, tuple[int, int]]:
    """Inode and time of change of every file in the bundles."""
    files = (path for path in folder.glob("onnx-*/**/*") if path.is_file())
    return {str(path): (path.stat().st_ino, path.stat().st_mtime_ns) for path in files}


def without_clock(report: Any) -> Any:
    """A report but for what a clock says."""
    value = report.to_dict() | {"created": None, "command": None}
    for row in value["rows"]:
        row["latency"], row["notes"] = None, None
    return value


def test_nothing_is_made_again_where_nothing_changed(first, again, monkeypatch):
    """Oracles: the files themselves; a converter and a runtime that would fail; the first report
    but for its latencies, which are measured again.
    """
    before = identities(again.out)

    def refuse(*_: object) -> None:
        raise AssertionError("made again")

    for method in ("export", "classify", "run"):
        monkeypatch.setattr(TargetProcess, method, refuse)
    display = Listener()
    report = deploy(again, display=display)
    assert identities(again.out) == before
    assert display.unchanged() == BOTH
    assert without_clock(report) == without_clock(first.report)
    assert all(row.latency.p50_ms > 0 for row in report.rows)
    assert [row.latency for row in report.rows] != [row.latency for row in first.report.rows]


def test_fresh_makes_everything_again(again, tmp_path):
    """Oracle: the same folder without the option."""
    assert set(prepared(again, tmp_path).verified) == BOTH
    job = prepared(replace(again, fresh=True), tmp_path)
    assert not job.earlier
    assert not job.verified


def _repainted(folder: Path) -> None:
    """One photo of the folder becomes another of the same name."""
    photos = sorted(folder.glob("*/*.png"))
    shutil.copy(photos[-1], photos[0])


def _fewer_photos(request: DeployRequest) -> DeployRequest:
    return replace(request, limit=7)


def _repainted_data(request: DeployRequest) -> DeployRequest:
    _repainted(request.data)
    return request


def _repainted_calib(request: DeployRequest) -> DeployRequest:
    _repainted(request.calib)
    return request


CHANGES: dict[str, tuple[Callable[[DeployRequest], DeployRequest], set[str], set[str]]] = {
    # name: (change, bundles that stay, evaluations that stay)
    "no change": (lambda request: request, BOTH, BOTH),
    "latency runs": (lambda request: replace(request, runs=3), BOTH, BOTH),
    "--limit": (_fewer_photos, BOTH, set()),
    "--parity-images": (lambda request: replace(request, parity_images=5), BOTH, set()),
    "a photo of --calib": (_repainted_calib, {"onnx-fp32"}, {"onnx-fp32"}),
    "--calib-images": (
        lambda request: replace(request, calib_images=4),
        {"onnx-fp32"},
        {"onnx-fp32"},
    ),
    "a photo of --data, that is a golden one": (_repainted_data, set(), set()),
    "--image-size": (lambda request: replace(request, image_size=96), set(), set()),
    "--preprocessing": (lambda request: replace(request, preprocessing="timm"), set(), set()),
}


@pytest.mark.parametrize("name", CHANGES)
def test_what_a_change_leaves(again, tmp_path, name):
    """Oracle: the table above: what depends on what."""
    change, bundles, evaluations = CHANGES[name]
    job = prepared(change(again), tmp_path)
    assert (set(job.earlier), set(job.verified)) == (bundles, evaluations)
    assert (job.pixels is None) == (evaluations == BOTH)


def test_another_weight_makes_all_new(again, tmp_path, digits):
    """Oracle: one weight, moved by one; a copy of the file elsewhere changes nothing."""
    copied = replace(again, weights=str(tmp_path / "copied"))
    save_checkpoint(digits, copied.weights)
    assert set(prepared(copied, tmp_path).verified) == BOTH
    moved = replace(again, weights=str(tmp_path / "moved"))
    model = deepcopy(digits.model)
    with torch.no_grad():
        model.classifier.bias[0] += 1
    save_checkpoint(replace(digits, model=model), moved.weights)
    assert not prepared(moved, tmp_path).earlier


def test_another_environment_makes_all_new(again, tmp_path, monkeypatch):
    """Oracle: a digest of other packages or of other source."""
    monkeypatch.setattr(reuse, "environment", lambda: "other")
    job = prepared(again, tmp_path)
    assert not job.earlier
    assert job.pixels is not None


def test_a_damaged_artifact_is_made_again(first, again):
    """Oracle: the undamaged artifact, which the same inputs give to the byte; the one beside it
    is left alone.
    """
    artifact = again.out / "onnx-w8a8" / "model.onnx"
    content = bytearray(artifact.read_bytes())
    content[len(content) // 2] ^= 1
    artifact.write_bytes(content)
    before, display = identities(again.out / "onnx-fp32"), Listener()
    report = deploy(again, display=display)
    assert display.unchanged() == {"onnx-fp32"}
    assert any("onnx-w8a8: has changed since" in line for line in display.said)
    assert sha256_of(artifact) == first.report.rows[1].sha256 == report.rows[1].sha256
    assert identities(again.out / "onnx-fp32") == before


@pytest.mark.parametrize("entry", ["onnx-w8a8.evaluation", "onnx-w8a8.bundle", "calibration"])
def test_a_damaged_note_is_not_believed(again, tmp_path, entry):
    """Oracle: one flipped bit; what the other notes say still holds."""
    note = again.out / reuse.FOLDER / entry
    content = bytearray(note.read_bytes())
    content[-30] ^= 1
    note.write_bytes(content)
    display = Listener()
    job = prepared(again, tmp_path, display)
    assert any(f"{entry}: damaged" in line for line in display.said)
    assert "onnx-fp32" in job.verified
    if entry != "calibration":  # which comes out the same when it is made again
        assert "onnx-w8a8" not in job.verified


def test_an_interrupted_run_goes_on_where_it_was(first, tmp_path, monkeypatch):
    """Oracle: the bundles that stood when it was interrupted, and the uninterrupted report."""
    request = replace(first.request, out=tmp_path / "out", jobs=1)

    def interrupt(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr("tinyvit_edge.deploy_job.verify", interrupt)
        with pytest.raises(KeyboardInterrupt):
            deploy(request)
    before = identities(request.out)
    assert before
    with monkeypatch.context() as patch:
        patch.setattr(TargetProcess, "export", interrupt)
        report = deploy(request)
    assert identities(request.out) == before
    seconds = [row.seconds for row in report.rows]
    assert None not in seconds
    expected = without_clock(first.report)
    found = without_clock(report)
    for rows in (expected["rows"], found["rows"]):
        for row in rows:
            row["seconds"] = None
    assert found == expected
