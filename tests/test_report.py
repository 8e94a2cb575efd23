"""The report: its values, its JSON contract, its exit code and the host it names."""

from __future__ import annotations

import json
import math
from importlib import metadata
from pathlib import Path
from types import ModuleType
from typing import Any

import jsonschema
import numpy as np
import pytest

import tinyvit_edge
from tinyvit_edge.errors import InputError
from tinyvit_edge.host import host_info
from tinyvit_edge.report import (
    Conversion,
    Gate,
    Quantization,
    Report,
    Row,
    read_report,
    write_report,
)

ASSETS = Path(tinyvit_edge.__file__).parent / "assets"


def test_schema_is_a_schema() -> None:
    """Oracle: the meta-schema of JSON Schema 2020-12."""
    schema = json.loads((ASSETS / "report.schema.json").read_text())
    jsonschema.Draft202012Validator.check_schema(schema)


def test_written_report_reads_back_equal(samples: ModuleType, tmp_path: Path) -> None:
    """Oracle: value equality; and nothing but the two files is left behind."""
    report = samples.full_report()
    path = write_report(report, tmp_path / "out")
    assert read_report(path) == report
    assert read_report(tmp_path / "out") == report
    assert sorted(p.name for p in path.parent.iterdir()) == ["report.html", "report.json"]


def test_keys_are_the_documented_ones(samples: ModuleType) -> None:
    """Oracle: the published key list, sub-objects null where nothing was measured."""
    data = samples.full_report().to_dict()
    published = {
        "conversion": {"sqnr_db", "max_abs", "top1_agreement", "reference"},
        "quantization": {"sqnr_db", "kl", "top1_agreement"},
        "accuracy": {"top1", "n"},
        "latency": {
            *("p50_ms", "p90_ms", "p99_ms", "threads", "runs", "cpu_over_wall", "device_kind"),
        },
        "int8": {"weight_bytes_fraction", "mac_fraction"},
    }
    plain = {"target", "precision", "status", "reason", "bundle", "artifact", "size_bytes"}
    row = data["rows"][1]
    assert {"schema_version", "host", "model", "rows"} <= data.keys()
    assert data["model"].keys() == {"variant", "params", "weights_sha256", "num_classes"}
    assert plain | {"sha256"} | published.keys() <= row.keys()
    for name, keys in published.items():
        assert keys <= row[name].keys()
        assert data["rows"][2][name] is None
    assert data["reference"] == {"accuracy": {"top1": 0.9866, "n": 599}}


def test_numbers_json_cannot_hold_are_replaced(samples: ModuleType, tmp_path: Path) -> None:
    """Oracle: the schema's words: 300 dB is bit-exact, other non-finite numbers are null."""
    row = samples.made(
        conversion=Conversion(sqnr_db=math.inf, max_abs=math.nan, top1_agreement=np.float32(1.0)),
        quantization=Quantization(sqnr_db=-math.inf, kl=math.inf),
        gates=(
            Gate(name="conversion SQNR", passed=np.True_, measured=math.inf, bound=90.0),
            Gate(name="max_abs", passed=False, measured=math.nan, bound=1e-3),
        ),
        size_bytes=np.int64(7),
        details={"scales": [np.float32(0.5), math.nan], "path": Path("a/b")},
    )
    data = json.loads(write_report(samples.report_of(row), tmp_path).read_text())["rows"][0]
    assert data["conversion"]["sqnr_db"] == 300.0
    assert data["conversion"]["max_abs"] is None
    assert data["conversion"]["top1_agreement"] == 1.0
    assert data["quantization"] == {"sqnr_db": -300.0, "kl": None, "top1_agreement": None}
    assert [gate["measured"] for gate in data["gates"]] == [300.0, None]
    assert data["size_bytes"] == 7
    assert data["details"] == {"scales": [0.5, None], "path": "a/b"}
    assert "exact" in samples.printed(samples.report_of(row))


BAD: dict[str, tuple[tuple[str | int, ...], Any, str]] = {
    "version": (("schema_version",), 2, "schema_version: 1 was expected"),
    "unknown status": (("rows", 1, "status"), "okay", "rows/1/status: 'okay'"),
    "percent for a fraction": (("rows", 1, "accuracy", "top1"), 98.2, "rows/1/accuracy/top1: 98.2"),
    "text for a number": (("rows", 0, "latency", "p50_ms"), "1.2", "rows/0/latency/p50_ms"),
    "infinite": (("rows", 0, "conversion", "sqnr_db"), 999.0, "rows/0/conversion/sqnr_db: 999.0"),
    "absolute path": (("rows", 1, "artifact"), "/tmp/model.onnx", "rows/1/artifact"),
    "path outside": (("rows", 1, "bundle"), "a/../../b", "rows/1/bundle"),
    "short hash": (("rows", 1, "sha256"), "abc", "rows/1/sha256"),
    "failure without reason": (("rows", 4, "reason"), None, "rows/4/reason"),
    "unknown key": (("rows", 1, "sizebytes"), 3, "rows/1: Additional properties"),
    "local time": (("created",), "2025-01-02T03:04:05+02:00", "created"),
    "empty evaluation": (("rows", 1, "evaluation"), "guessed", "rows/1/evaluation"),
    "no gate name": (("rows", 1, "gates", 0, "name"), "", "rows/1/gates/0/name"),
    "host without CPU": (("host",), {"os": "Linux"}, "host: 'machine' is a required property"),
}


@pytest.mark.parametrize("case", BAD)
def test_bad_reports_are_refused(samples: ModuleType, tmp_path: Path, case: str) -> None:
    """Oracle: the path that was damaged; the message is one line that names file and path."""
    keys, value, expected = BAD[case]
    data = samples.full_report().to_dict()
    place: Any = data
    for key in keys[:-1]:
        place = place[key]
    place[keys[-1]] = value
    file = tmp_path / "report.json"
    file.write_text(json.dumps(data))
    with pytest.raises(InputError) as caught:
        read_report(file)
    message = str(caught.value)
    assert message.startswith(f"{file}: not a valid report: {expected}")
    assert "\n" not in message


def test_missing_key_is_refused(samples: ModuleType) -> None:
    """Oracle: the published key list."""
    data = samples.full_report().to_dict()
    del data["rows"][0]["int8"]
    with pytest.raises(InputError, match=r"here: not a valid report: rows/0: 'int8' is a required"):
        Report.from_dict(data, source="here")


def test_added_keys_may_be_absent(samples: ModuleType) -> None:
    """Oracle: the contract names them as additional."""
    data = samples.full_report().to_dict()
    for key in ("created", "command", "tool_version", "reference"):
        del data[key]
    for key in ("evaluation", "reproducible", "gates", "notes", "seconds", "details"):
        del data["rows"][0][key]
    report = Report.from_dict(data)
    assert report.command == ()
    assert report.rows[0].gates == ()


@pytest.mark.parametrize(
    ("content", "expected"),
    [(None, "No such file"), ("{", "not JSON"), ("[]", "the top level: \\[\\] is not of type")],
)
def test_unreadable_reports_are_refused(tmp_path: Path, content: str | None, expected: str) -> None:
    """Oracle: what is wrong with the file."""
    file = tmp_path / "report.json"
    if content is not None:
        file.write_text(content)
    with pytest.raises(InputError, match=expected) as caught:
        read_report(file)
    assert str(file) in str(caught.value)


def test_invalid_report_is_not_written(samples: ModuleType, tmp_path: Path) -> None:
    """Oracle: an empty folder."""
    report = samples.report_of(Row(target="onnx", precision="fp32", status="failed"))
    with pytest.raises(InputError, match="rows/0/reason"):
        write_report(report, tmp_path)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("statuses", "code"),
    [
        ((), 0),
        (("skipped", "unsupported"), 0),
        (("gate_failed", "skipped"), 1),
        (("gate_failed", "failed"), 4),
    ],
)
def test_exit_code(samples: ModuleType, statuses: tuple[str, ...], code: int) -> None:
    """Oracle: the documented exit codes; a failed conversion outweighs a failed gate."""
    assert samples.report_of(samples.made(), *map(samples.missing, statuses)).exit_code == code


def test_host_info_is_of_this_host() -> None:
    """Oracle: importlib.metadata, and the kernel's own CPU name."""
    host = host_info()
    assert host["packages"]["numpy"] == metadata.version("numpy")
    cpuinfo = Path("/proc/cpuinfo")
    if cpuinfo.exists() and "model name" in cpuinfo.read_text():
        assert host["cpu"] in " ".join(cpuinfo.read_text().split())
    assert host["cpu"].strip()
