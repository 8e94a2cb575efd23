"""Audits in reports: the JSON contract, the lines below the table, and the page."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from types import ModuleType

import pytest

from tinyvit_edge.audit import audited, left_out
from tinyvit_edge.errors import InputError
from tinyvit_edge.exporters import Audit, Share
from tinyvit_edge.precision import PRECISIONS
from tinyvit_edge.quantization.calibration import Calibration
from tinyvit_edge.report import Report, Row, read_report, render_markdown, write_report
from tinyvit_edge.report_audit import audit_lines
from tinyvit_edge.report_html import render_html

ATTENTION, LINEAR, CONV = (
    Share(count=n, macs=m) for n, m in ((8, 260_000), (25, 9_000_000), (18, 5_000_000))
)
STATIC = Audit(
    weight_bytes={"float32": 50, "int8": 900},
    macs={"float32": 260_000, "int8": 14_000_000},
    left_float={"attention": ATTENTION},
    quantize=41,
    dequantize=43,
)
FOUND = {
    "fp32": replace(
        STATIC,
        weight_bytes={"float32": 3600, "int64": 48},  # shapes
        macs={"float32": 14_260_000},
        left_float={"attention": ATTENTION, "conv": CONV, "linear": LINEAR},
        quantize=0,
        dequantize=0,
    ),
    "w8-dynamic": replace(
        STATIC,
        macs={"float32": 5_260_000, "int8": 9_000_000},
        left_float={"attention": ATTENTION, "conv": CONV},
        quantize=17,
        dequantize=0,
    ),
    "w8a8": STATIC,
    "w8a8-mixed": replace(
        STATIC,
        macs={"float32": 460_000, "int8": 13_800_000},
        left_float={"attention": ATTENTION, "linear": Share(count=1, macs=200_000)},
        quantize=40,
        dequantize=42,
    ),
    "w8": replace(
        STATIC,
        macs={"float32": 14_260_000},
        left_float={"attention": ATTENTION, "conv": CONV, "linear": LINEAR},
        quantize=0,
        dequantize=0,
    ),
}
LAYERS = {f"stages.{n}.mlp.fc2": f"{50 - n} % of the noise" for n in range(4)}


def row_of(samples: ModuleType, precision: str, target: str = "onnx") -> Row:
    layers = LAYERS if PRECISIONS[precision].mixed else {}
    section = audited(FOUND[precision], PRECISIONS[precision], layers)
    row: Row = samples.made(target, precision, audit=section)
    return row


@pytest.fixture
def report(samples: ModuleType) -> Report:
    """A report of one target at the precisions of `FOUND`, and of another at w8a8."""
    made: Report = samples.report_of(
        *(row_of(samples, name) for name in FOUND), row_of(samples, "w8a8", "tflite")
    )
    return made


def test_a_line_a_precision_says_what_is_int8_and_what_is_not(report: Report) -> None:
    """Oracle: written by hand; targets that compute alike share a line; floats have none."""
    lines = audit_lines(report)
    assert lines[:4] == [
        "w8-dynamic: int8 9 of 14.3 MMAC, float 8 products of attention (0.26 MMAC),"
        " 18 convolutions (5 MMAC); quantize/dequantize: onnx 17/0",
        "w8a8: int8 14 of 14.3 MMAC, float 8 products of attention (0.26 MMAC);"
        " quantize/dequantize: onnx 41/43, tflite 41/43",
        "w8a8-mixed: int8 13.8 of 14.3 MMAC, float 8 products of attention (0.26 MMAC), 1 Linear"
        " layer (0.2 MMAC); quantize/dequantize: onnx 40/42",
        "w8: all 14.3 MMAC in floating point; quantize/dequantize: onnx 0/0",
    ]


@pytest.mark.parametrize("precision", [name for name in FOUND if name != "fp32"])
def test_every_kind_left_float_has_the_reason_of_its_row(report: Report, precision: str) -> None:
    """Oracle: the precision's row; each reason is said once."""
    lines = audit_lines(report)
    for kind in FOUND[precision].left_float:
        reason = PRECISIONS[precision].why_float[kind]
        (line,) = (line for line in lines if line.endswith(f": {reason}"))
        assert precision in line.split(" in float ")[1].split(": ")[0]


def test_layers_that_a_mixed_row_leaves_out_are_named(report: Report) -> None:
    """Oracle: the calibration's names and reasons; the page has them all."""
    (line,) = (line for line in audit_lines(report) if "leaves out" in line)
    assert line.startswith("w8a8-mixed leaves out stages.0.mlp.fc2 (50 % of the noise), ")
    assert line.endswith("stages.2.mlp.fc2 (48 % of the noise) and 1 more")
    page = render_html(report)
    assert all(f"{name} ({reason})" in page for name, reason in LAYERS.items())


def test_only_mixed_rows_leave_layers_out() -> None:
    """Oracle: the row's own words."""
    calibration = Calibration(layers={}, images=1, left_float=LAYERS)
    assert left_out(PRECISIONS["w8a8-mixed"], calibration) == LAYERS
    assert left_out(PRECISIONS["w8a8"], calibration) == {}
    assert left_out(PRECISIONS["w8a8-mixed"], None) == {}


def test_what_no_row_leaves_float_says_so() -> None:
    """Oracle: w8a8 gives no reason for a Linear layer."""
    audit = replace(STATIC, left_float={"linear": LINEAR}, needless=2)
    section = audited(audit, PRECISIONS["w8a8"], {})
    assert [one.reason for one in section.left_float] == ["the recipe does not leave it so"]


def test_every_precision_gives_a_reason_for_what_it_does_not_quantize() -> None:
    """Oracle: the kinds of layer in the row; attention is in none, local convolutions not in all
    that have convolutions.
    """
    for row in PRECISIONS.values():
        quantized = set(row.layers) if row.computes_in_integers and not row.mixed else set()
        if "local-conv" not in quantized:
            quantized.discard("conv")
        assert row.why_float.keys() == {"attention", "linear", "conv"} - quantized, row.name
        assert all(row.why_float.values())


def test_needless_conversions_are_shown(samples: ModuleType) -> None:
    """Oracle: the count."""
    section = audited(replace(STATIC, needless=6), PRECISIONS["w8a8"], {})
    report = samples.report_of(samples.made(audit=section))
    assert audit_lines(report)[0].endswith("onnx 41/43 (6 needless)")


def test_the_terminal_the_markdown_and_the_page_show_them(
    report: Report, samples: ModuleType
) -> None:
    """Oracles: `audit_lines`; a row of the page for every artifact, floats too."""
    printed, page = samples.printed(report), render_html(report)
    assert all(f"\n{line}\n" in printed for line in audit_lines(report))
    assert "int8 14 of 14.3 MMAC" in render_markdown(report)
    assert "<h2>What is really int8</h2>" in page
    assert (
        "<td>onnx fp32</td><td>float32 3,600 B, int64 48 B</td><td>float32 14.3 MMAC</td>" in page
    )
    assert (
        "<td>tflite w8a8</td><td>float32 50 B, int8 900 B</td>"
        "<td>float32 0.26 MMAC, int8 14 MMAC</td>"
        "<td>8 products of attention (0.26 MMAC)</td><td>41</td><td>43</td><td>0</td>"
    ) in page


def test_a_report_reads_back_with_them_and_an_older_one_without(
    report: Report, samples: ModuleType, tmp_path: Path
) -> None:
    """Oracles: value equality; the key was added in a later version."""
    path = write_report(report, tmp_path)
    assert read_report(path) == report
    data = json.loads(path.read_text())
    for row in data["rows"]:
        del row["audit"]
    path.write_text(json.dumps(data))
    old = read_report(path)
    assert {row.audit for row in old.rows} == {None}
    assert audit_lines(old) == []
    assert "really int8" not in render_html(old)
    assert samples.printed(old)


def test_a_damaged_audit_is_refused(report: Report) -> None:
    """Oracle: the path that was damaged."""
    data = report.to_dict()
    data["rows"][0]["audit"]["left_float"][0]["kind"] = "pooling"
    with pytest.raises(InputError, match="rows/0/audit/left_float/0/kind: 'pooling'"):
        Report.from_dict(data)
