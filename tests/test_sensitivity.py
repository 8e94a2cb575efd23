"""Which layers cost accuracy, and the smallest set that is left in float32."""

from __future__ import annotations

import json
import math
import re
import shutil
from collections.abc import Callable
from copy import deepcopy
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from tinyvit_edge.checkpoint import Checkpoint
from tinyvit_edge.console import QuietDisplay
from tinyvit_edge.data import scan_folder
from tinyvit_edge.deployment import deployment_form
from tinyvit_edge.errors import InputError
from tinyvit_edge.evaluate import labels_of, sample_images
from tinyvit_edge.precision import PRECISIONS
from tinyvit_edge.quantization.accounting import layer_macs
from tinyvit_edge.quantization.calibration import Calibration, quantizable
from tinyvit_edge.quantization.choose import ChooseRequest, choose
from tinyvit_edge.quantization.conditioning import apply_factors
from tinyvit_edge.quantization.ptq import quantize
from tinyvit_edge.quantization.qdq import StaticLayer
from tinyvit_edge.quantization.sensitivity import (
    LayerSensitivity,
    measure_layers,
    ranked,
    smallest_set,
)

MIXED, W8A8 = PRECISIONS["w8a8-mixed"], PRECISIONS["w8a8"]


def layer(name: str, macs: int, rest_db: float) -> LayerSensitivity:
    return LayerSensitivity(
        name=name, kind="conv", macs=macs, alone_db=40.0, rest_db=rest_db, whole_db=20.0
    )


def test_gain_is_the_share_of_the_noise_that_goes() -> None:
    """Oracle: by hand: 3.01 dB less noise is half of it."""
    assert layer("a", 1, 20.0 + 10 * math.log10(2)).gain == pytest.approx(0.5)
    assert layer("a", 1, 20.0).gain == 0.0
    assert layer("a", 1, 19.0).gain < 0


def test_rank_is_by_gain_a_multiply_accumulate() -> None:
    """Oracle: by hand."""
    layers = [layer("dear", 100, 23.0), layer("cheap", 1, 20.5), layer("bad", 1, 19.0)]
    assert [one.name for one in ranked(layers)] == ["cheap", "dear", "bad"]


def test_rank_by_what_a_target_loses() -> None:
    """Oracle: by hand: where convolutions cost nothing in float32, those that gain come first."""
    linear = replace(layer("linear", 1, 23.0), kind="linear")
    layers = [linear, layer("small", 100, 20.5), layer("big", 1000, 21.0), layer("bad", 1, 19.0)]
    free = [one.name for one in ranked(layers, conv_cost=0.0)]
    assert free == ["big", "small", "linear", "bad"]
    assert [one.name for one in ranked(layers)] == ["linear", "small", "big", "bad"]


def test_a_target_has_its_own_choice(calibration: Calibration) -> None:
    """Oracle: by hand; and it survives the file's form."""
    both = replace(calibration, left_float_on={"onnx": {"stem.convs.0": "free"}})
    again = Calibration.from_dict(json.loads(json.dumps(both.to_dict())))
    assert again.on("onnx").left_float == {"stem.convs.0": "free"}
    assert again.on("tflite").left_float == calibration.left_float
    assert again.on("onnx").left_float_on == {}


def test_layers_are_measured_from_both_sides(
    float_form: nn.Module,
    calibration: Calibration,
    batches: list[Tensor],
    sqnr_db: Callable[[Tensor, Tensor], float],
) -> None:
    """Oracle: for one layer, modules put together by hand."""
    found = {one.name: one for one in measure_layers(float_form, W8A8, calibration, batches)}
    assert found.keys() == quantizable(float_form, W8A8).keys()
    name = "stages.1.blocks.0.mlp.fc1"
    whole = quantize(float_form, W8A8, calibration=calibration)
    conditioned = deepcopy(float_form)
    apply_factors(conditioned, calibration.factors)
    alone, rest = deepcopy(conditioned), deepcopy(whole)
    alone.set_submodule(name, whole.get_submodule(name))
    rest.set_submodule(name, conditioned.get_submodule(name))
    with torch.inference_mode():
        exact, *others = (
            torch.cat([module(batch) for batch in batches])
            for module in (conditioned, whole, alone, rest)
        )
    expected = [sqnr_db(exact, other) for other in others]
    one = found[name]
    assert [one.whole_db, one.alone_db, one.rest_db] == pytest.approx(expected, abs=0.01)
    assert one.macs == layer_macs(float_form, batches[0][:1])[name]
    assert not any(isinstance(m, StaticLayer) for m in float_form.modules())


def test_a_layer_that_is_broken_stands_first(
    float_form: nn.Module, calibration: Calibration, batches: list[Tensor]
) -> None:
    """Oracle: a range a fiftieth of what the layer gives."""
    name = "stages.1.downsample.convs.1"
    ranges = calibration.layers[name]
    narrow = replace(ranges, output=replace(ranges.output, scale=ranges.output.scale / 50))
    broken = replace(calibration, layers={**calibration.layers, name: narrow})
    layers = measure_layers(float_form, W8A8, broken, batches)
    assert max(layers, key=lambda one: one.gain).name == name
    assert min(layers, key=lambda one: one.alone_db).name == name


@pytest.mark.parametrize("needed", [set(), {0}, {3}, {2, 5}, {0, 19}, set(range(20))])
def test_smallest_set_finds_what_is_needed(needed: set[int]) -> None:
    """Oracle: a loss that is known: 1 point for each needed layer that is quantized."""
    order = [str(i) for i in range(20)]
    asked = 0

    def drop(names: frozenset[str]) -> float:
        nonlocal asked
        asked += 1
        return 0.01 * len({str(i) for i in needed} - names)

    assert set(smallest_set(order, drop, 0.003)) == {str(i) for i in needed}
    assert asked < 40
    assert len(smallest_set(order, drop, 0.01)) == max(0, len(needed) - 1)


def test_mixed_leaves_its_layers_in_float32(
    float_form: nn.Module, calibration: Calibration
) -> None:
    """Oracle: the names in the calibration; w8a8 takes no notice of them."""
    assert calibration.left_float
    made = quantize(float_form, MIXED, calibration=calibration)
    for name in calibration.layers:
        kind = type(made.get_submodule(name))
        assert (kind is StaticLayer) == (name not in calibration.left_float), name
    plain = quantize(float_form, W8A8, calibration=calibration)
    assert all(isinstance(plain.get_submodule(name), StaticLayer) for name in calibration.layers)


def test_mixed_without_a_choice_is_refused(float_form: nn.Module, calibration: Calibration) -> None:
    """Oracle: one line with the remedy."""
    with pytest.raises(InputError, match="quantize ptq --precision w8a8-mixed"):
        quantize(float_form, MIXED, calibration=replace(calibration, left_float=None))


@pytest.fixture
def fragile(digits: Checkpoint) -> Checkpoint:
    """The demo model with MLPs that cannot be int8: a hidden unit of 10,000 that nobody reads."""
    checkpoint = deepcopy(digits)
    with torch.no_grad():
        for stage in list(checkpoint.model.tinyvit.encoder.stages)[1:]:
            for block in stage.layers:
                fc1, fc2 = block.mlp.fc1, block.mlp.fc2
                fc1.weight[0], fc1.bias[0], fc2.weight[:, 0] = 0.0, 1e4, 0.0
    return checkpoint


@pytest.fixture
def few(digits_images: Path, tmp_path: Path) -> Path:
    """Twelve photos of each digit, which is quicker than all."""
    for folder in (digits_images / "train").iterdir():
        (tmp_path / "few" / folder.name).mkdir(parents=True)
        for path in sorted(folder.iterdir())[:12]:
            shutil.copy(path, tmp_path / "few" / folder.name)
    return tmp_path / "few"


def test_choose_keeps_to_its_budget_on_other_photos(
    fragile: Checkpoint, few: Path, digits_images: Path
) -> None:
    """Oracle: accuracy on digits that took no part, of the mixed and of the plain program."""
    request = ChooseRequest(
        photos=few, images=32, mixed=MIXED, max_drop=0.02, targets=("executorch",)
    )
    found = choose(fragile, request, QuietDisplay())
    assert found.left_float is not None
    assert found.left_float
    assert all(re.search(r"mlp\.fc[12]$", name) for name in found.left_float)
    assert all("of the quantization noise at" in reason for reason in found.left_float.values())
    form = deployment_form(fragile.model)
    heldout = scan_folder(digits_images / "heldout", fragile.labels)
    images = torch.from_numpy(sample_images(heldout, fragile.preprocessing, len(heldout)))
    labels = torch.tensor(labels_of(heldout))
    modules = {
        "fp32": form,
        "mixed": quantize(form, MIXED, calibration=found),
        "w8a8": quantize(form, W8A8, calibration=found),
    }
    with torch.inference_mode():
        right = {
            name: float((module(images).argmax(1) == labels).float().mean())
            for name, module in modules.items()
        }
    assert right["fp32"] - right["mixed"] <= 0.03
    assert right["fp32"] - right["w8a8"] > 0.05


def test_a_model_that_bears_int8_has_nothing_left_out(digits: Checkpoint, few: Path) -> None:
    """Oracle: the demo model, which loses nothing at w8a8."""
    request = ChooseRequest(photos=few, images=32, mixed=MIXED, max_drop=0.02)
    assert choose(digits, request, QuietDisplay()).left_float == {}


def test_no_photo_left_to_measure_on_is_refused(digits: Checkpoint, digits_images: Path) -> None:
    """Oracle: one line, before any work."""
    few = digits_images / "train" / "0"
    request = ChooseRequest(photos=few, images=10_000, mixed=MIXED)
    with pytest.raises(InputError, match="none is left to measure"):
        choose(digits, request, QuietDisplay())


def test_ranges_without_a_choice_are_refused_before_any_work(
    cli: Any, digits_images: Path, tmp_path: Path
) -> None:
    """Oracle: an earlier report stays."""
    ranges, out = tmp_path / "ranges.json", tmp_path / "out"
    code, _, _ = cli(
        "quantize", "ptq", "--weights", "digits", "--calib", digits_images / "train",
        "--calib-images", 32, "--out", ranges,
    )  # fmt: skip
    assert code == 0
    out.mkdir()
    (out / "report.json").write_text("{}")
    code, _, error = cli(
        "deploy", "--weights", "digits", "--data", digits_images / "heldout", "--limit", 5,
        "--calibration", ranges, "--targets", "onnx", "--precisions", "fp32,w8a8-mixed",
        "--out", out,
    )  # fmt: skip
    assert code == 2
    assert "write the ranges with quantize ptq --precision w8a8-mixed" in error
    assert [path.name for path in out.iterdir()] == ["report.json"]


def test_photos_and_ranges_together_are_refused(
    cli: Any, digits_images: Path, tmp_path: Path
) -> None:
    """Oracle: one line that names both, and nothing written."""
    code, _, error = cli(
        "deploy", "--weights", "digits", "--data", digits_images / "heldout",
        "--calib", digits_images / "train", "--calibration", tmp_path / "ranges.json",
        "--out", tmp_path / "out",
    )  # fmt: skip
    assert code == 2
    assert "give photos or ranges, not both" in error
    assert not (tmp_path / "out").exists()


def test_commands(cli: Any, few: Path, tmp_path: Path) -> None:
    """Oracle: the deployment form's layers; the file that the other command wrote."""
    code, out, _ = cli(
        "quantize", "sensitivity", "--weights", "digits", "--calib", few,
        "--calib-images", 32, "--json", "-", "--html", tmp_path / "page.html",
    )  # fmt: skip
    rows = json.loads(out)
    assert code == 0
    page = (tmp_path / "page.html").read_text()
    assert all(page.count(f">{row['name']}</td>") == 1 for row in rows)
    assert page.count("<rect class=") == len(rows)
    assert "<script" not in page
    assert {row["kind"] for row in rows} == {"conv", "linear"}
    assert all(row["macs"] > 0 and row["alone_db"] > 20 for row in rows)
    ranges = tmp_path / "ranges.json"
    code, out, error = cli(
        "quantize", "ptq", "--weights", "digits", "--calib", few, "--precision", "w8a8-mixed",
        "--method", "auto", "--conditioning", 0.5, "--calib-images", 32, "--out", ranges,
        "--json", "-",
    )  # fmt: skip
    assert code == 0, error
    assert json.loads(out)["left_float"] == json.loads(ranges.read_text())["left_float"]
    code, out, error = cli(
        "export", "onnx", "--weights", "digits", "--precision", "w8a8-mixed",
        "--calibration", ranges, "--out", tmp_path / "bundles", "--json", "-",
    )  # fmt: skip
    assert code == 0, error


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("--method", "mean"), "unknown calibration method 'mean'"),
        (("--conditioning", 1.5), "--conditioning 1.5"),
        (("--precision", "w8-dynamic"), "no ranges to calibrate"),
    ],
)
def test_bad_options_are_one_line(
    cli: Any, digits_images: Path, tmp_path: Path, arguments: tuple[Any, ...], words: str
) -> None:
    """Oracle: one line, and nothing written."""
    code, _, error = cli(
        "quantize", "ptq", "--weights", "digits", "--calib", digits_images / "train",
        "--out", tmp_path / "r.json", *arguments,
    )  # fmt: skip
    assert code == 2
    assert words in error
    assert len(error.strip().splitlines()) == 1
    assert not list(tmp_path.iterdir())
