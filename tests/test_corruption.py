"""A damaged artifact or contract must not pass: for every target, by the gates themselves."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch

from tinyvit_edge.bundle import read_bundle
from tinyvit_edge.console import QuietDisplay
from tinyvit_edge.errors import InputError
from tinyvit_edge.exporters import TARGETS, exporter
from tinyvit_edge.parity import check_goldens, check_photos
from tinyvit_edge.precision import PRECISIONS
from tinyvit_edge.program import build_program
from tinyvit_edge.quantization.calibration import Calibration


@pytest.fixture
def bundle_copy(deployed, tmp_path):
    """`bundle_copy(target, precision)`: a bundle of the deployment that a test may damage."""

    def copy(target, precision):
        root = tmp_path / f"{target}-{precision}"
        shutil.copytree(deployed.out / root.name, root)
        return root

    return copy


def judge(root: Path, digits_images: Path):
    """The row that ``parity BUNDLE --weights digits --data heldout --limit 60`` gives."""
    return check_photos(
        root,
        weights="digits",
        data=digits_images / "heldout",
        limit=60,
        display=QuietDisplay(),
    )


def failed(row) -> set[str]:
    """Names of the gates that failed."""
    assert row.status == ("gate_failed" if any(not g.passed for g in row.gates) else "ok")
    return {gate.name for gate in row.gates if not gate.passed}


@pytest.mark.parametrize("target", TARGETS)
def test_a_whole_bundle_passes(bundle_copy, digits_images, target):
    """Oracle: the deployment that it was copied from passed."""
    root = bundle_copy(target, "w8a8")
    assert failed(judge(root, digits_images)) == set()
    assert failed(check_goldens(root)) == set()


@pytest.mark.parametrize(
    "precision", ["fp32", pytest.param("fp16", marks=pytest.mark.slow), "w8a8"]
)
@pytest.mark.parametrize("target", TARGETS)
def test_a_wrong_weight_is_caught(bundle_copy, digits, digits_images, target, precision):
    """Oracle: one layer's weights are negated in the saved file, wherever they lie in it."""
    root = bundle_copy(target, precision)
    negate_layer(root, digits)
    assert "conversion SQNR" in failed(judge(root, digits_images))
    assert "SQNR against recorded logits" in failed(check_goldens(root))


@pytest.mark.parametrize("target", TARGETS)
def test_a_file_that_is_not_int8_is_caught(bundle_copy, digits_images, target):
    """Oracle: the file of another precision, in place of an int8 one: nothing but the audit can
    tell that it is too good.
    """
    root = bundle_copy(target, "w8a8")
    path = read_bundle(root).artifact
    shutil.rmtree(path) if path.is_dir() else path.unlink()
    other = read_bundle(bundle_copy(target, "fp32")).artifact
    shutil.copytree(other, path) if other.is_dir() else shutil.copy(other, path)
    assert failed(judge(root, digits_images)) >= {
        "int8 weight bytes",
        "int8 multiply-accumulates",
        "artifact as in the manifest (1 is yes)",
    }


def test_weights_of_few_bits_are_judged_by_those_that_were_chosen(bundle_copy, digits_images):
    """Oracles: the bundle as it was made; codes of the other sign; a file that is cut short."""
    from safetensors.torch import load_file, save_file

    root = bundle_copy("coreml", "w4g32")
    path = root / read_bundle(root).manifest["rounding"]["file"]
    assert failed(judge(root, digits_images)) == set()
    bounds = {gate.name: gate.bound for gate in check_goldens(root).gates}
    assert bounds["SQNR against recorded logits"] == 35.0  # as for fp16, which it computes in
    tensors = load_file(path)
    codes = tensors["stages.2.blocks.0.mlp.fc1.codes"]
    codes.clamp_(-7, 7).neg_()
    save_file(tensors, path)
    assert "conversion SQNR" in failed(judge(root, digits_images))
    save_file({name: t for name, t in tensors.items() if not name.endswith("fc1.scale")}, path)
    with pytest.raises(InputError, match=r"rounded weights of .*fc1 are not of this model"):
        judge(root, digits_images)
    path.write_bytes(path.read_bytes()[:-100])
    with pytest.raises(InputError, match=r"rounded\.safetensors: not readable"):
        judge(root, digits_images)


@pytest.mark.parametrize(
    "target",
    [  # the gate is the same, and these two convert for long
        pytest.param(name, marks=pytest.mark.slow) if name in ("executorch", "tflite") else name
        for name in TARGETS
    ],
)
def test_swapped_channels_are_caught(bundle_copy, digits, digits_images, target):
    """Oracle: the artifact is replaced by one that reads blue for red."""
    root = bundle_copy(target, "fp32")
    swap_channels(root, digits)
    assert "conversion SQNR" in failed(judge(root, digits_images))


@pytest.mark.parametrize("target", TARGETS)
def test_a_wrong_mean_is_caught(bundle_copy, digits_images, target):
    """Oracle: the bundle's contract says another mean than the checkpoint's."""
    root = bundle_copy(target, "fp32")
    path = root / "preprocess.json"
    contract = json.loads(path.read_text())
    contract["mean"] = [0.5, 0.5, 0.5]
    path.write_text(json.dumps(contract))
    row = check_goldens(root)
    assert "input tensor max abs difference" in failed(row)
    # a classifier package carries its own contract, and refuses the input
    shown = "artifact takes the images (1 is yes)" if target == "coreml" else "conversion SQNR"
    assert {"preprocessing as the checkpoint's (1 is yes)", shown} <= failed(
        judge(root, digits_images)
    )


def test_the_manifest_says_what_a_core_ml_classifier_takes(deployed):
    """Oracle: the feature descriptions in the saved package."""
    from tinyvit_edge.exporters._mlprogram_package import read_spec

    bundle = read_bundle(deployed.out / "coreml-fp32")
    described = read_spec(bundle.artifact).description
    image = described.input[0].type.imageType
    taken = bundle.manifest["input"]
    assert (taken["name"], taken["kind"]) == (described.input[0].name, "image")
    assert taken["shape"] == [image.height, image.width, 3]
    assert bundle.manifest["outputs"] == [output.name for output in described.output]
    assert bundle.manifest["outputs"] == ["classLabel", "classLabel_probs", "logits"]


def negate_layer(root: Path, digits) -> None:
    """Negate the weights of one Linear layer in the file that holds them."""
    bundle = read_bundle(root)
    ranges = bundle.manifest["quantization"]
    program = build_program(
        digits,
        PRECISIONS[bundle.precision],
        form=exporter(bundle.target).form,
        calibration=None if ranges is None else Calibration.from_dict(ranges),
    )
    layer = program.module.get_submodule("stages.2.blocks.0.mlp.fc1")
    weight = layer.weight.detach()
    if ranges is not None and weight.is_floating_point():
        weight = torch.round(weight / layer.weight_scale[:, None])
    stored = {"fp32": np.float32, "fp16": np.float16, "w8a8": np.int8}[bundle.precision]
    values = weight.numpy().astype(stored)
    file = bundle.artifact
    if file.is_dir():
        file = next(file.rglob("weight.bin"))
    content = file.read_bytes()
    for layout in (values, values.T):
        original = np.ascontiguousarray(layout).tobytes()
        if original in content:
            file.write_bytes(content.replace(original, np.ascontiguousarray(-layout).tobytes()))
            return
    raise AssertionError(f"{file} does not hold the layer's weights as {stored}")


def swap_channels(root: Path, digits) -> None:
    """Export the model with the stem's red and blue inputs exchanged, in the bundle's place."""
    bundle = read_bundle(root)
    target = exporter(bundle.target)
    program = build_program(digits, PRECISIONS["fp32"], form=target.form)
    stem = program.module.stem.convs[0]
    stem.weight.data = stem.weight.data.flip(1)
    path = bundle.artifact
    if path.is_dir():
        shutil.rmtree(path)
    else:
        path.unlink()
    target.export(program, path)
