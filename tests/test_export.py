"""`export` and `quantize ptq`: which options belong together, and what is recorded."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from tinyvit_edge.bundle import read_bundle
from tinyvit_edge.cli_measure import show_facts
from tinyvit_edge.console import QuietDisplay
from tinyvit_edge.data import SAMPLE_SIZE, fingerprint, scan_folder
from tinyvit_edge.errors import InputError
from tinyvit_edge.export import ExportRequest, export
from tinyvit_edge.quantization.ptq import PtqRequest
from tinyvit_edge.quantization.ptq import run as ptq


def request(out: Path, **changes: Any) -> ExportRequest:
    """ONNX of the digits at fp32, with fields changed."""
    asked = ExportRequest(target="onnx", weights="digits", precision="fp32", out=out)
    return replace(asked, **changes)


@pytest.mark.parametrize(
    ("target", "option", "known"),
    [
        ("onnx", "delegate", "its options: none"),
        ("executorch", "package", "its options: delegate"),
        ("coreml", "delegate", "its options: package, deployment_target, layout"),
    ],
)
def test_an_option_of_another_target_is_refused(
    target: str, option: str, known: str, tmp_path: Path
) -> None:
    """Oracle: the fields of each exporter, by hand; no word of Python's."""
    with pytest.raises(InputError) as caught:
        export(request(tmp_path / "out", target=target, options={option: "portable"}))
    message = f"target {target!r} has no option {option!r}; {known}"
    assert str(caught.value) == message
    assert not (tmp_path / "out").exists()


def test_photos_and_ranges_together_are_refused(tmp_path: Path) -> None:
    """Oracle: only one of them could be used."""
    both = request(
        tmp_path / "out", precision="w8a8", calib=tmp_path, calibration=tmp_path / "ranges.json"
    )
    with pytest.raises(InputError, match="not both"):
        export(both)


class _Said(QuietDisplay):
    def __init__(self) -> None:
        self.lines: list[str] = []

    def say(self, message: str) -> None:
        self.lines.append(message)


def test_weights_of_few_bits_need_photos(tmp_path: Path) -> None:
    """Oracle: no photos, and ranges in their place; nothing is written."""
    asked = request(tmp_path / "out", target="coreml", precision="w4-lut")
    with pytest.raises(
        InputError, match="coreml-w4-lut needs photos to calibrate on: give --calib"
    ):
        export(asked)
    with pytest.raises(
        InputError, match=r"w4-lut rounds weights by .* not by the ranges of .*ranges\.json"
    ):
        export(replace(asked, calibration=tmp_path / "ranges.json"))
    assert not list(tmp_path.rglob("*"))


def test_photos_that_are_not_used_are_mentioned(tmp_path: Path) -> None:
    """Oracle: fp32 has no ranges; the folder need not even exist."""
    display = _Said()
    photos = tmp_path / "photos"
    export(request(tmp_path / "out", calib=photos), display=display)
    assert [line for line in display.lines if str(photos) in line and "not used" in line]


def test_calibration_photos_are_identified(deployed: Any, digits_images: Path) -> None:
    """Oracle: the fingerprint of the photos that were sampled."""
    photos = scan_folder(digits_images / "train").subset(SAMPLE_SIZE)
    ranges = read_bundle(deployed.out / "onnx-w8a8").manifest["quantization"]
    assert ranges["photos_sha256"] == fingerprint(photos)


def test_ranges_of_another_size_are_refused(digits_images: Path, tmp_path: Path) -> None:
    """Oracle: the size that the ranges were asked for."""
    ranges = tmp_path / "ranges.json"
    ptq(
        PtqRequest(
            weights="digits",
            calib=digits_images / "train",
            out=ranges,
            calib_images=2,
            image_size=96,
            preprocessing="timm",
        )
    )
    asked = request(tmp_path / "out", precision="w8a8", calibration=ranges)
    with pytest.raises(InputError, match="size 96, and the weights are used with 64"):
        export(asked)
    with pytest.raises(InputError, match=r"crop_pct 0\.95, and the weights are used with 0\.875"):
        export(replace(asked, image_size=96, preprocessing="microsoft"))
    assert not (tmp_path / "out").exists()


def test_facts_are_printed_for_people(capsys: pytest.CaptureFixture[str]) -> None:
    """Oracle: by hand: four significant digits, no Python literals."""
    show_facts(
        {
            "sqnr_db": 31.415926535,
            "operators": {"Conv": 3, "share": 1 / 3},
            "reproducible": True,
            "top1": None,
            "names": ("a", "b"),
        }
    )
    assert capsys.readouterr().out.splitlines() == [
        "sqnr_db       31.42",
        "operators     Conv=3, share=0.3333",
        "reproducible  yes",
        "top1          -",
        "names         a, b",
    ]
