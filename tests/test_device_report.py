"""Reports of the sample apps: what the command shows, and what it refuses."""

from __future__ import annotations

import copy
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jsonschema
import pytest

import tinyvit_edge
from tinyvit_edge.device_report import read_device_report
from tinyvit_edge.errors import InputError

Cli = Callable[..., tuple[int, str, str]]
SCHEMA = Path(tinyvit_edge.__file__).parent / "assets" / "device_report.schema.json"

PHONE: dict[str, Any] = {
    "schema_version": 1,
    "app": {"name": "an app", "version": "1"},
    "device": {"kind": "physical", "manufacturer": "Maker", "model": "Phone 3", "os": "Android 16"},
    "bundle": {
        "name": "tflite-w8a8",
        "target": "tflite",
        "precision": "w8a8",
        "artifact_sha256": "ab" * 32,
        "artifact_bytes": 7_080_000,
        "tool_version": "0.1.0",
        "image_size": 224,
    },
    "backend": "litert-cpu",
    "threads": 4,
    "latency_ms": {
        "load": 31.4,
        "preprocess": {"first": 9.5, "median": 4.25, "p90": 5.0, "count": 40},
        "inference": {"first": 30.0, "median": 12.5, "p90": 14.0, "count": 40},
    },
    "parity": {
        "passed": True,
        "images": [
            {"name": "a.jpg", "different_bytes": 0, "tensor_error": 0.0}
            | {"sqnr_db": None, "same_top1": True}
        ],
    },
}


def changed(path: str, value: Any) -> dict[str, Any]:
    """`PHONE` with one value replaced, by its keys with slashes between."""
    data = copy.deepcopy(PHONE)
    *way, last = path.split("/")
    inner: Any = data
    for key in way:
        inner = inner[key]
    inner[last] = value
    return data


def saved(tmp_path: Path, data: Any) -> Path:
    path = tmp_path / "phone.json"
    path.write_text(json.dumps(data))
    return path


def test_schema_is_a_schema() -> None:
    """Oracle: the meta-schema of JSON Schema 2020-12."""
    jsonschema.Draft202012Validator.check_schema(json.loads(SCHEMA.read_text()))


def test_a_report_is_shown(cli: Cli, tmp_path: Path) -> None:
    """Oracle: the figures of the file, each in its place; --json gives the file back."""
    path = saved(tmp_path, PHONE)
    status, out, _ = cli("report", path)
    assert status == 0
    assert "tflite-w8a8 on litert-cpu, 4 threads; Maker, Phone 3, Android 16 (physical)" in out
    assert "| load | 31.40 | | | |" in out
    assert "| preprocess | 9.50 | 4.25 | 5.00 | 40 |" in out
    assert "| inference | 30.00 | 12.50 | 14.00 | 40 |" in out
    assert "parity: 1 golden image as where the bundle was made" in out
    assert json.loads(cli("report", path, "--json", "-")[1]) == PHONE


def test_what_was_not_measured_is_a_dash(cli: Cli, tmp_path: Path) -> None:
    """Oracle: nulls and absent keys mean the same."""
    data = changed("latency_ms", {"load": None, "preprocess": None})
    del data["parity"], data["threads"]
    status, out, _ = cli("report", saved(tmp_path, data))
    assert status == 0
    assert "tflite-w8a8 on litert-cpu; Maker" in out
    assert "| load | - | | | |" in out
    assert out.count("| - | - | - | - |") == 2
    assert "parity: not checked on the device" in out


def test_a_failed_check_is_the_exit_code(cli: Cli, tmp_path: Path) -> None:
    """Oracle: 1 is a gate that failed; the image and its measures are named."""
    image = {"name": "a.jpg", "different_bytes": 12, "tensor_error": 0.5}
    parity = {"passed": False, "images": [image | {"sqnr_db": 9.04, "same_top1": False}]}
    status, out, _ = cli("report", saved(tmp_path, changed("parity", parity)))
    assert status == 1
    assert "parity: FAILED on 1 golden image (a.jpg: 12 bytes differ, SQNR 9.0 dB)" in out


@pytest.mark.parametrize("kind", ["emulated", "simulated"])
def test_an_emulators_times_are_called_so(cli: Cli, tmp_path: Path, kind: str) -> None:
    """Oracle: a sentence of its own, so that no table is taken for a phone's."""
    out = cli("report", saved(tmp_path, changed("device/kind", kind)))[1]
    assert "say nothing about a device" in out


@pytest.mark.parametrize(
    ("path", "value"),
    [
        ("schema_version", 2),
        ("device/kind", "phone"),
        ("bundle/artifact_sha256", "abc"),
        ("latency_ms/inference/first", -1),
        ("latency_ms/inference/count", 0),
        ("latency_ms/warmup", 3),
        ("parity/images", None),
    ],
)
def test_what_breaks_the_schema_is_one_line(
    cli: Cli, tmp_path: Path, path: str, value: Any
) -> None:
    """Oracle: exit code 2, and where in the file it is; an unknown key is its parent's fault."""
    file = saved(tmp_path, changed(path, value))
    status, _, err = cli("report", file)
    assert status == 2
    (line,) = err.splitlines()
    where = path if path != "latency_ms/warmup" else "latency_ms"
    assert f"{file}: not a valid device report: {where}: " in line


def test_pages_are_for_deployments(cli: Cli, tmp_path: Path) -> None:
    """Oracle: exit code 2 and the options that there are; no file is written."""
    page = tmp_path / "page.html"
    status, _, err = cli("report", saved(tmp_path, PHONE), "--html", page)
    assert status == 2
    assert "--markdown" in err
    assert not page.exists()


def test_an_absent_report_says_so(tmp_path: Path) -> None:
    """Oracle: the path and what to do."""
    with pytest.raises(InputError, match=r"absent\.json: not a readable report .* again"):
        read_device_report(tmp_path / "absent.json")
