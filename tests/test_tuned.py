"""Trained weights beside ranges: their file, and what is refused."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from tinyvit_edge.errors import InputError
from tinyvit_edge.precision import PRECISIONS
from tinyvit_edge.preprocessing import preset
from tinyvit_edge.quantization.calibration import Calibration
from tinyvit_edge.quantization.ptq import quantize

CONTRACT = preset("microsoft", 64)
FACTS: dict[str, Any] = {"weights_sha256": "ab" * 32, "preprocessing": CONTRACT}


@pytest.fixture
def tuned(float_form: nn.Module, calibration: Calibration) -> Calibration:
    """The calibration with every weight a little larger."""
    weights = {name: 1.01 * p.detach() for name, p in float_form.named_parameters()}
    return replace(calibration, tuned=weights)


def same(one: dict[str, Tensor], other: dict[str, Tensor]) -> bool:
    return one.keys() == other.keys() and all(torch.equal(one[key], other[key]) for key in one)


def test_a_file_of_ranges_keeps_trained_weights(tuned: Calibration, tmp_path: Path) -> None:
    """Oracle: what was written, bit for bit; ranges without weights have no second file."""
    path = tmp_path / "ranges.json"
    tuned.write(path, **FACTS)
    again = Calibration.read(path, **FACTS)
    assert again == tuned
    assert same(dict(again.tuned), dict(tuned.tuned))
    plain = tmp_path / "plain" / "ranges.json"
    replace(tuned, tuned={}).write(plain, **FACTS)
    assert [file.name for file in plain.parent.iterdir()] == ["ranges.json"]
    assert not Calibration.read(plain, **FACTS).tuned


@pytest.mark.parametrize("damage", ["missing", "cut", "another"])
def test_damaged_weights_are_refused(damage: str, tuned: Calibration, tmp_path: Path) -> None:
    """Oracle: one line that names the file."""
    path = tmp_path / "ranges.json"
    tuned.write(path, **FACTS)
    file = tmp_path / json.loads(path.read_text())["tuned"]["file"]
    if damage == "missing":
        file.unlink()
    elif damage == "cut":
        file.write_bytes(file.read_bytes()[:1000])
    else:
        other = {name: 2 * value for name, value in tuned.tuned.items()}
        replace(tuned, tuned=other).write(tmp_path / "other.json", **FACTS)
        (tmp_path / "other.tuned.safetensors").replace(file)
    with pytest.raises(InputError) as caught:
        Calibration.read(path, **FACTS)
    assert str(caught.value).startswith(f"{file}: not ")
    assert "\n" not in str(caught.value)


def test_what_does_not_say_where_its_weights_are_is_refused(
    tuned: Calibration, tmp_path: Path
) -> None:
    """Oracle: one line that names the folder, whatever stands where name and digest must."""
    path = tmp_path / "ranges.json"
    tuned.write(path, **FACTS)
    values = json.loads(path.read_text())
    for about in ({}, [], "x", {"file": "x"}, {"file": 3, "sha256": "ab"}):
        path.write_text(json.dumps(values | {"tuned": about}))
        with pytest.raises(
            InputError, match="do not say where their trained weights are"
        ) as caught:
            Calibration.read(path, **FACTS)
        assert str(caught.value).startswith(str(tmp_path))
        assert "\n" not in str(caught.value)


def test_whose_ranges_they_are_is_looked_at_first(tuned: Calibration, tmp_path: Path) -> None:
    """Oracle: other weights are named as the reason, though the trained ones are gone, too."""
    path = tmp_path / "ranges.json"
    tuned.write(path, **FACTS)
    (tmp_path / "ranges.tuned.safetensors").unlink()
    with pytest.raises(InputError, match="calibrated for other weights"):
        Calibration.read(path, **{**FACTS, "weights_sha256": "cd" * 32})


def test_weights_of_another_model_are_refused(float_form: nn.Module, tuned: Calibration) -> None:
    """Oracle: a layer that this form lacks, and one of another shape."""
    row = PRECISIONS["w8a8"]
    for name, value in (("stages.9.fc", torch.zeros(3)), ("classifier.weight", torch.zeros(3))):
        wrong = replace(tuned, tuned={name: value})
        with pytest.raises(InputError, match=rf"{name} are not of this model"):
            quantize(float_form, row, calibration=wrong)


def test_precisions_without_ranges_take_no_trained_weights(
    float_form: nn.Module, tuned: Calibration
) -> None:
    """Oracle: the same precision without a calibration, bit for bit."""
    x = torch.randn(1, 3, 64, 64, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        for name in ("fp32", "w8-dynamic", "w8"):
            row = PRECISIONS[name]
            assert torch.equal(
                quantize(float_form, row, calibration=tuned)(x), quantize(float_form, row)(x)
            )
