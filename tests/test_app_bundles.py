"""Bundles on their way into the apps: whole, indexed, and only where they can run."""

from __future__ import annotations

import json
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import tinyvit_edge.app_bundles as app_bundles
from tinyvit_edge.bundle import read_bundle

Cli = Callable[..., tuple[int, str, str]]
Content = Callable[[Path], dict[str, bytes]]


def make_bundle(root: Path, target: str = "onnx", precision: str = "fp32") -> Path:
    """The least that reads as a bundle; an artifact of Core ML is a folder."""
    artifact = root / {"onnx": "model.onnx", "tflite": "model.tflite"}.get(
        target, f"model.{target}"
    )
    (root / "golden").mkdir(parents=True)
    if target == "coreml":
        artifact.mkdir()
        (artifact / "weights.bin").write_bytes(b"weights")
    else:
        artifact.write_bytes(b"artifact")
    manifest: dict[str, Any] = {
        "schema_version": 1,
        "target": target,
        "recipe": {"name": precision},
        "artifact": {"file": artifact.name},
        "output": {"shape": [1, 2]},
    }
    (root / "manifest.json").write_text(json.dumps(manifest))
    (root / "preprocess.json").write_text('{"size": 32}')
    (root / "labels.txt").write_text("a\nb\n")
    (root / "golden" / "golden.json").write_text('{"images": []}')
    return root


def refused(outcome: tuple[int, str, str], *words: str) -> None:
    status, _, err = outcome
    assert status == 2
    (line,) = err.splitlines()
    assert line.startswith("error: ")
    for word in words:
        assert word in line


def test_bundles_are_copied_with_an_index(cli: Cli, content: Content, tmp_path: Path) -> None:
    """Oracle: the bytes that were given, less what is only there to make the bundle again."""
    one = make_bundle(tmp_path / "onnx-fp32")
    two = make_bundle(tmp_path / "tflite-w8a8", "tflite", "w8a8")
    kept = {name: content(root) for name, root in (("one", one), ("two", two))}
    for extra in ("rounded.safetensors", "tuned.safetensors"):
        (two / extra).write_bytes(b"large")
    out = tmp_path / "app"
    status, stdout, _ = cli("bundle", "--app", "web", one, two, "--out", out, "--json", "-")
    assert status == 0
    assert content(out / "onnx-fp32") == kept["one"]
    assert content(out / "tflite-w8a8") == kept["two"]
    assert json.loads((out / "index.json").read_text()) == {
        "bundles": [
            {"name": "onnx-fp32", "target": "onnx", "precision": "fp32"}
            | {"file": "model.onnx", "bytes": 8},
            {"name": "tflite-w8a8", "target": "tflite", "precision": "w8a8"}
            | {"file": "model.tflite", "bytes": 8},
        ]
    }
    assert [entry["name"] for entry in json.loads(stdout)["bundles"]] == [
        "onnx-fp32",
        "tflite-w8a8",
    ]
    assert sorted(path.name for path in out.iterdir()) == ["index.json", "onnx-fp32", "tflite-w8a8"]


def test_a_second_call_replaces_one_and_keeps_the_others(cli: Cli, tmp_path: Path) -> None:
    """Oracle: the folder after the calls; nothing of the replaced bundle is left."""
    one, two = (make_bundle(tmp_path / "made" / name) for name in ("onnx-fp32", "onnx-fp16"))
    (one / "old.txt").write_text("old")
    out = tmp_path / "app"
    assert cli("bundle", "--app", "web", one, two, "--out", out)[0] == 0
    (one / "old.txt").unlink()
    (one / "model.onnx").write_bytes(b"longer than before")
    assert cli("bundle", "--app", "web", one, "--out", out)[0] == 0
    sizes = {e["name"]: e["bytes"] for e in json.loads((out / "index.json").read_text())["bundles"]}
    assert sizes == {"onnx-fp16": 8, "onnx-fp32": 18}
    assert not (out / "onnx-fp32" / "old.txt").exists()
    assert (out / "onnx-fp32" / "model.onnx").read_bytes() == b"longer than before"


def test_a_folder_of_deploy_stands_for_what_the_app_runs(cli: Cli, tmp_path: Path) -> None:
    """Oracle: the targets of each app; Core ML's artifact is a folder and counts as its files."""
    out = tmp_path / "made"
    for target in ("onnx", "tflite", "executorch", "coreml"):
        make_bundle(out / f"{target}-fp32", target)
    for app, targets in {
        "web": ["onnx", "tflite"],
        "android": ["executorch", "onnx", "tflite"],
        "ios": ["coreml"],
        "native": ["executorch"],
    }.items():
        folder = tmp_path / app
        assert cli("bundle", "--app", app, out, "--out", folder)[0] == 0
        index = json.loads((folder / "index.json").read_text())["bundles"]
        assert [entry["target"] for entry in index] == targets
        assert all(entry["bytes"] > 0 for entry in index)
        for entry in index:
            assert read_bundle(folder / entry["name"]).artifact.name == entry["file"]


@pytest.mark.parametrize(
    ("app", "target"),
    [
        *(("web", target) for target in ("coreml", "executorch")),
        *(("ios", target) for target in ("onnx", "tflite")),
        ("android", "coreml"),
        ("native", "tflite"),
    ],
)
def test_a_target_that_the_app_cannot_run_is_refused(
    cli: Cli, tmp_path: Path, app: str, target: str
) -> None:
    """Oracle: one line with the bundle and what the app can run; nothing is copied."""
    good = make_bundle(tmp_path / "good", app_bundles.APPS[app].targets[0])
    bad = make_bundle(tmp_path / "bad", target)
    out = tmp_path / "app"
    words = ("bad", target, *app_bundles.APPS[app].targets)
    refused(cli("bundle", "--app", app, good, bad, "--out", out), *words)
    assert not out.exists()


def test_bad_input_is_one_line(cli: Cli, tmp_path: Path) -> None:
    """Oracle: exit code 2 and a line that names the input, for each mistake."""
    one = make_bundle(tmp_path / "a" / "onnx-fp32")
    same = make_bundle(tmp_path / "b" / "onnx-fp32")
    out = tmp_path / "app"
    refused(cli("bundle", "--app", "tv", one, "--out", out), "tv", "web")
    refused(cli("bundle", "--app", "web", one, same, "--out", out), "onnx-fp32", "rename")
    refused(cli("bundle", "--app", "web", tmp_path / "absent", "--out", out), "absent")
    refused(cli("bundle", "--app", "ios", tmp_path / "a", "--out", out), "coreml")
    assert not out.exists()
    refused(cli("bundle", "--app", "web", one, "--out", one.parent), "already")
    (same / "model.onnx").unlink()
    refused(cli("bundle", "--app", "web", same, "--out", out), "model.onnx", "missing")


def test_without_the_apps_out_is_needed(
    cli: Cli, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Oracle: an installation elsewhere than in a checkout has no folder of apps to write to."""
    installed = tmp_path / "site-packages" / "tinyvit_edge" / "app_bundles.py"
    monkeypatch.setattr(app_bundles, "__file__", str(installed))
    one = make_bundle(tmp_path / "onnx-fp32")
    refused(cli("bundle", "--app", "web", one), "--out")


def test_the_apps_folders_are_ignored_by_git() -> None:
    """Oracle: git's own answer for a file in each folder; models do not belong into the history."""
    root = Path(__file__).parents[1]
    if shutil.which("git") is None or not (root / ".git").exists():
        pytest.skip("needs git and a checkout")
    paths = [f"{app.folder}/onnx-fp32/model.onnx" for app in app_bundles.APPS.values()]
    shown = subprocess.run(
        ["git", "check-ignore", *paths], cwd=root, capture_output=True, text=True, check=True
    )
    assert shown.stdout.split() == paths
