"""Calibration: the ranges that are found, and the file that keeps them."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from tinyvit_edge.configuration import TinyVitConfig
from tinyvit_edge.deployment import FormOptions, deployment_form
from tinyvit_edge.errors import DataError, InputError
from tinyvit_edge.modeling import TinyVitForImageClassification
from tinyvit_edge.precision import PRECISIONS
from tinyvit_edge.preprocessing import Preprocessing
from tinyvit_edge.quantization.calibration import (
    Calibration,
    CalibrationOptions,
    LayerRanges,
    calibrate,
    quantizable,
)
from tinyvit_edge.quantization.qdq import QuantParams

CONTRACT = Preprocessing(size=64)
SMALL = TinyVitConfig(
    image_size=32, hidden_sizes=[16, 32], depths=[1, 1], num_heads=[1, 2], window_sizes=[4, 4]
)


def normal(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def test_ranges_are_the_extremes_over_all_batches() -> None:
    """Oracle: by hand: y = 2 x + 1 over -3..5 and then -1..9."""
    linear = nn.Linear(1, 1)
    linear.weight.data.fill_(2.0)
    linear.bias.data.fill_(1.0)
    seen: list[int] = []
    found = calibrate(
        nn.Sequential(linear),
        [torch.tensor([[-3.0], [5.0]]), torch.tensor([[9.0], [-1.0], [0.0]])],
        CalibrationOptions(method="min-max"),
        progress=seen.append,
    )
    assert found.images == 5
    assert seen == [2, 3]
    assert found.layers == {
        "0": LayerRanges(
            input=QuantParams.from_range(-3.0, 9.0), output=QuantParams.from_range(-5.0, 19.0)
        )
    }


def test_calibration_names_every_layer_and_is_deterministic(
    float_form: nn.Module, batches: list[Tensor], calibration: Calibration
) -> None:
    """Oracle: the form's Linear and convolution layers but the local ones; a second run, in
    another order.
    """
    names = {
        name
        for name, m in float_form.named_modules()
        if isinstance(m, (nn.Linear, nn.Conv2d)) and not name.endswith("local_conv")
    }
    assert calibration.layers.keys() == names
    assert calibration.images == 5
    options = CalibrationOptions(method="min-max", strength=0.5)
    plain = replace(calibration, left_float=None)
    assert calibrate(float_form, batches, options) == plain
    assert calibrate(float_form, batches[::-1], options) == plain
    assert not any(m._forward_hooks for m in float_form.modules())


def test_layers_that_read_one_tensor_share_its_range(
    float_form: nn.Module, batches: list[Tensor]
) -> None:
    """Oracle: attention's q, k and v have one input. Rules are not the same everywhere, so that
    they could have chosen apart.
    """
    layers = calibrate(float_form, batches, CalibrationOptions(method="auto")).layers
    triples = [
        [layers[f"{name.removesuffix('.q')}.{part}"] for part in "qkv"]
        for name in layers
        if name.endswith(".q")
    ]
    assert triples
    assert all(one.input == triple[0].input for triple in triples for one in triple)
    assert len({one.rules[0] for triple in triples for one in triple}) > 1


def test_the_form_options_do_not_change_which_layers_there_are(
    small_model: TinyVitForImageClassification, float_form: nn.Module
) -> None:
    """Oracle: the native form; LayerNorm's products with a constant row are no layers."""
    linear = deployment_form(small_model, options=FormOptions(layer_norm="linear"))
    assert quantizable(linear).keys() == quantizable(float_form).keys()


def test_quantizable_follows_the_precision(float_form: nn.Module) -> None:
    """Oracle: `Precision.layers`."""
    kinds = {
        name: {type(m) for m in quantizable(float_form, row).values()}
        for name, row in PRECISIONS.items()
    }
    assert kinds == {
        "fp32": set(),
        "fp16": set(),
        "w8-dynamic": {nn.Linear},
        "w8a8": {nn.Linear, nn.Conv2d},
        "w8a8-mixed": {nn.Linear, nn.Conv2d},
        "w8": {nn.Linear, nn.Conv2d},
        "w6-lut": {nn.Linear, nn.Conv2d},
        "w4-lut": {nn.Linear, nn.Conv2d},
        "w4g32": {nn.Linear, nn.Conv2d},
    }


def test_few_bits_are_for_layers_that_have_many_weights(float_form: nn.Module) -> None:
    """Oracle: the shapes: no depthwise convolution, 2048 weights or more, whole blocks."""
    every = quantizable(float_form)
    for name in ("w6-lut", "w4-lut", "w4g32"):
        row = PRECISIONS[name]
        taken = quantizable(float_form, row)
        for layer_name, layer in every.items():
            depthwise = layer.weight.ndim == 4 and layer.weight.shape[1] == 1
            whole = layer.weight.shape[1] % 32 == 0 or row.block is None
            big = layer.weight.numel() >= 2048
            assert (layer_name in taken) == (big and whole and not depthwise)
        assert 0 < len(taken) < len(every)


@pytest.mark.parametrize("method", ["min-max", "mse", "auto"])
@pytest.mark.parametrize("strength", [None, 0.5])
def test_progress_adds_up(method: str, strength: float | None) -> None:
    """Oracle: what the options say that there is to do."""
    options = CalibrationOptions(method=method, strength=strength)
    module = deployment_form(TinyVitForImageClassification(SMALL)) if strength else None
    seen: list[int] = []
    batches = [normal(20, 3, 32, 32, seed=seed) for seed in (1, 2)]
    calibrate(module or nn.Sequential(nn.Conv2d(3, 4, 3)), batches, options, progress=seen.append)
    assert sum(seen) == options.work(40)


def test_no_image_is_refused(float_form: nn.Module) -> None:
    """Oracle: there is no range of nothing."""
    with pytest.raises(DataError, match="no image"):
        calibrate(float_form, [])
    assert not any(m._forward_hooks for m in float_form.modules())


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("where", [0, 1])
def test_values_that_are_not_finite_are_refused(value: float, where: int) -> None:
    """Oracle: one bad pixel in the first or in a later batch; the message names the layer."""
    images = [normal(4, 3, seed=1), normal(4, 3, seed=2)]
    images[where][2, 1] = value
    with pytest.raises(DataError, match="layer 0 gives values that are not finite"):
        calibrate(nn.Sequential(nn.Linear(3, 2)), images)


def test_calibration_goes_through_json(calibration: Calibration, tmp_path: Path) -> None:
    """Oracle: the value that was written; scales come back to the last bit."""
    calibration = replace(calibration, photos_sha256="ef" * 32)
    path = tmp_path / "ranges.json"
    calibration.write(path, weights_sha256="ab" * 32, preprocessing=CONTRACT)
    assert Calibration.read(path, weights_sha256="ab" * 32, preprocessing=CONTRACT) == calibration
    assert Calibration.from_dict(json.loads(json.dumps(calibration.to_dict()))) == calibration


def test_ranges_of_other_weights_are_refused(calibration: Calibration, tmp_path: Path) -> None:
    """Oracle: the digest in the file."""
    path = tmp_path / "ranges.json"
    calibration.write(path, weights_sha256="ab" * 32, preprocessing=CONTRACT)
    with pytest.raises(InputError, match="other weights"):
        Calibration.read(path, weights_sha256="cd" * 32, preprocessing=CONTRACT)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"size": 96}, "size 64, and the weights are used with 96"),
        ({"mode": "squash"}, "mode crop, and the weights are used with squash"),
        ({"mean": (0.5, 0.5, 0.5)}, "mean"),
    ],
)
def test_ranges_of_another_contract_are_refused(
    change: dict[str, Any], words: str, calibration: Calibration, tmp_path: Path
) -> None:
    """Oracle: the contract that was written, with one field changed; the message has both."""
    path = tmp_path / "ranges.json"
    calibration.write(path, weights_sha256="ab" * 32, preprocessing=CONTRACT)
    with pytest.raises(InputError, match=words) as caught:
        Calibration.read(path, weights_sha256="ab" * 32, preprocessing=replace(CONTRACT, **change))
    assert "\n" not in str(caught.value)


def _damage(key: str, value: Any) -> Callable[[dict[str, Any]], Any]:
    def change(values: dict[str, Any]) -> Any:
        if key in values:
            values[key] = value
        else:
            next(iter(values["layers"].values()))[key] = value
        return values

    return change


DAMAGES: dict[str, Callable[[dict[str, Any]], Any]] = {
    "list": lambda values: [values],
    "null": lambda _: None,
    "empty": lambda _: {},
    "no images": lambda values: {k: v for k, v in values.items() if k != "images"},
    "no version": lambda values: {k: v for k, v in values.items() if k != "schema_version"},
    "no contract": lambda values: {k: v for k, v in values.items() if k != "preprocessing"},
    "contract is null": _damage("preprocessing", None),
    "contract is empty": _damage("preprocessing", {}),
    "other version": _damage("schema_version", 1),
    "layers are a list": _damage("layers", []),
    "layers are null": _damage("layers", None),
    "no zero point": _damage("input", [0.1]),
    "zero scale": _damage("output", [0.0, 3]),
    "wide zero point": _damage("output", [0.1, 300]),
    "scale is text": _damage("input", ["a", 3]),
    "input is null": _damage("input", None),
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_damaged_file_of_ranges_is_refused(
    damage: str, calibration: Calibration, tmp_path: Path
) -> None:
    """Oracle: one line that names the file."""
    path = tmp_path / "ranges.json"
    calibration.write(path, weights_sha256="ab" * 32, preprocessing=CONTRACT)
    values = DAMAGES[damage](json.loads(path.read_text()))
    path.write_text(json.dumps(values))
    assert_refused(path)


def test_a_file_of_the_first_version_says_so(calibration: Calibration, tmp_path: Path) -> None:
    """Oracle: what the first version wrote: no rules, no factors."""
    path = tmp_path / "ranges.json"
    calibration.write(path, weights_sha256="ab" * 32, preprocessing=CONTRACT)
    values = json.loads(path.read_text()) | {"schema_version": 1, "method": "min-max"}
    del values["factors"], values["left_float"]
    for ends in values["layers"].values():
        del ends["rules"]
    path.write_text(json.dumps(values))
    with pytest.raises(InputError, match=r"schema version 1, not 2\); write one with"):
        Calibration.read(path, weights_sha256="ab" * 32, preprocessing=CONTRACT)
    bundled = Calibration.from_dict(values)  # the manifest of an older bundle is still read
    assert bundled.layers.keys() == calibration.layers.keys()
    assert (bundled.factors, bundled.left_float) == ({}, None)


def test_a_cut_or_missing_file_of_ranges_is_refused(
    calibration: Calibration, tmp_path: Path
) -> None:
    """Oracle: one line that names the file."""
    path = tmp_path / "ranges.json"
    assert_refused(path)
    calibration.write(path, weights_sha256="ab" * 32, preprocessing=CONTRACT)
    path.write_bytes(path.read_bytes()[:100])
    assert_refused(path)
    path.write_bytes(b"\xff\xfe\x00")
    assert_refused(path)
    assert_refused(tmp_path)


def assert_refused(path: Path) -> None:
    with pytest.raises(InputError) as caught:
        Calibration.read(path, weights_sha256="ab" * 32, preprocessing=CONTRACT)
    assert str(caught.value).startswith(str(path))
    assert "\n" not in str(caught.value)
