"""The main job on the bundled digits: one conformance suite over targets and precisions."""

from __future__ import annotations

import json
from dataclasses import replace
from itertools import combinations
from pathlib import Path

import numpy as np
import pytest

from deployment_samples import DEPLOYED_PRECISIONS
from tinyvit_edge.bundle import read_bundle
from tinyvit_edge.data import load_batches, scan_folder
from tinyvit_edge.deploy import DeployRequest, deploy, plan
from tinyvit_edge.errors import InputError
from tinyvit_edge.exporters import TARGETS, exporter
from tinyvit_edge.files import sha256_of, size_of
from tinyvit_edge.precision import PRECISIONS
from tinyvit_edge.report import Row, read_report
from tinyvit_edge.verify import Verified, disagreements

CELLS = [(target, precision) for target in TARGETS for precision in DEPLOYED_PRECISIONS]
REFUSED = {
    ("coreml", "w8-dynamic"),
    ("executorch", "w8"),
    *((target, "w4g32") for target in ("onnx", "executorch", "tflite")),
}
BUILT = [cell for cell in CELLS if cell not in REFUSED]

cell = pytest.mark.parametrize(("target", "precision"), BUILT)


@cell
def test_every_cell_passes_its_gates(deployed, target, precision):
    """Oracle: the gates' bounds, on a trained model and real handwriting."""
    row = deployed.row(target, precision)
    assert (row.status, row.reason) == ("ok", None)
    assert {gate.name for gate in row.gates} >= {"conversion SQNR", "top-1 drop"}


@pytest.mark.parametrize(("target", "precision"), sorted(REFUSED))
def test_what_a_target_cannot_do_is_refused_with_its_reason(deployed, target, precision):
    """Oracle: the target's own table; nothing is written for the cell."""
    row = deployed.row(target, precision)
    assert row.status == "unsupported"
    assert row.reason == exporter(target).unsupported[precision]
    assert not (deployed.out / f"{target}-{precision}").exists()


@cell
def test_the_row_describes_the_file(deployed, target, precision):
    """Oracle: the artifact on disk."""
    row = deployed.row(target, precision)
    artifact = deployed.out / row.artifact
    assert (row.size_bytes, row.sha256) == (size_of(artifact), sha256_of(artifact))
    assert row.bundle == f"{target}-{precision}"


@cell
def test_the_manifest_says_what_the_bundle_is(deployed, digits, target, precision):
    """Oracle: the checkpoint that the bundle was made from."""
    bundle = read_bundle(deployed.out / f"{target}-{precision}")
    manifest = bundle.manifest
    assert (bundle.target, bundle.precision) == (target, precision)
    assert (bundle.labels, bundle.preprocessing) == (digits.labels, digits.preprocessing)
    assert manifest["source"]["sha256"] == digits.sha256
    assert manifest["artifact"]["sha256"] == sha256_of(bundle.artifact)
    kind, shape = ("image", [64, 64, 3]) if target == "coreml" else ("tensor", [1, 3, 64, 64])
    assert (manifest["input"]["kind"], manifest["input"]["shape"]) == (kind, shape)
    assert (manifest["quantization"] is not None) == PRECISIONS[precision].calibrated
    assert (manifest["rounding"] is not None) == PRECISIONS[precision].coded


@cell
def test_goldens_follow_the_contract(deployed, digits, target, precision):
    """Oracle: the reference model, run on the recorded tensors."""
    import torch

    goldens = read_bundle(deployed.out / f"{target}-{precision}").goldens()
    assert len(goldens) == 3
    for golden in goldens:
        assert golden.decoded.shape == (8, 8, 3)
        assert golden.resized.shape == (64, 64, 3)
        with torch.inference_mode():
            logits = digits.model(torch.from_numpy(golden.tensor.copy())[None]).logits[0].numpy()
        np.testing.assert_allclose(golden.reference_logits, logits, atol=1e-4)
        assert golden.artifact_logits.argmax() == logits.argmax()


def test_scales_are_the_same_on_every_target(deployed):
    """Oracle: the calibration of the first target."""
    manifests = [read_bundle(deployed.out / f"{target}-w8a8").manifest for target in TARGETS]
    first = manifests[0]["quantization"]
    assert first["images"] == 128
    assert all(manifest["quantization"] == first for manifest in manifests)


@pytest.mark.parametrize("target", TARGETS)
def test_int8_rows_are_int8(deployed, target):
    """Oracle: what is known of the model: its convolutions and Linear layers hold nearly all
    weights and most of the work.
    """
    row = deployed.row(target, "w8a8")
    assert row.int8.mac_fraction > 0.9
    assert row.size_bytes < 0.45 * deployed.row(target, "fp32").size_bytes
    assert deployed.row(target, "fp16").size_bytes < 0.65 * deployed.row(target, "fp32").size_bytes


@cell
def test_the_audit_is_in_the_manifest_with_a_reason_for_all_that_is_float(
    deployed, target, precision
):
    """Oracles: the precision's row; the row of the report; all work is that of the fp32 file."""
    audit = deployed.row(target, precision).audit
    manifest = read_bundle(deployed.out / f"{target}-{precision}").manifest
    assert manifest["artifact"]["audit"] == audit.to_dict()
    whole = deployed.row(target, "fp32").audit.macs
    assert sum(audit.macs.values()) == whole["float32"] == sum(whole.values())
    reasons = PRECISIONS[precision].why_float
    assert {one.kind: one.reason for one in audit.left_float} == reasons
    assert audit.needless == 0


def test_int8_targets_agree_with_each_other(deployed, digits, digits_images):
    """Oracle: one quantized program, so the targets' accuracies are one image apart at most."""
    tops = [deployed.row(target, "w8a8").accuracy.top1 for target in TARGETS]
    assert max(tops) - min(tops) <= 0.01 + 1e-9
    pairs = [one for one in deployed.report.disagreements if one.precision == "w8a8"]
    assert {one.targets for one in pairs} == set(combinations(TARGETS, 2))
    assert all(one.fraction <= 0.01 + 1e-9 and one.n == 100 for one in pairs)


def test_disagreement_is_of_images_that_get_another_class():
    """Oracle: classes written by hand, and a precision that only one target has."""
    rows = [("onnx", "fp32"), ("onnx", "w8a8"), ("tflite", "w8a8"), ("coreml", "w8a8")]
    classes = ([0, 0, 0, 0], [0, 1, 2, 3], [0, 1, 2, 0], [3, 2, 1, 0])
    found = disagreements(
        [
            Verified(row=Row(target=t, precision=p, status="ok"), classes=np.array(c))
            for (t, p), c in zip(rows, classes, strict=True)
        ]
    )
    assert [(one.targets, one.fraction, one.n) for one in found] == [
        (("onnx", "tflite"), 0.25, 4),
        (("onnx", "coreml"), 1.0, 4),
        (("tflite", "coreml"), 0.75, 4),
    ]
    assert {one.precision for one in found} == {"w8a8"}


def test_latency_is_of_the_host_and_complete(deployed):
    """Oracle: order statistics, and that a real runtime ran."""
    for target in ("onnx", "executorch", "tflite"):
        for precision in DEPLOYED_PRECISIONS:
            if (target, precision) in REFUSED:
                continue
            latency = deployed.row(target, precision).latency
            assert 0 < latency.p50_ms <= latency.p90_ms <= latency.p99_ms
            assert (latency.runs, latency.threads, latency.device_kind) == (10, 1, "host")
            assert latency.load_ms > 0
            assert latency.peak_rss_mb > 10


def test_only_integer_arithmetic_has_to_be_faster(deployed):
    """Oracle: `w8` is for size; its row is called int8 all the same, for its weights are."""
    for target in ("onnx", "tflite"):
        row = deployed.row(target, "w8")
        assert not any("not faster" in note for note in row.notes)
        assert row.int8.mac_fraction == 0
        assert row.int8.weight_bytes_fraction > 0.8
    assert deployed.row("coreml", "w4g32").int8 is None


def test_core_ml_says_how_it_was_checked(deployed):
    """Oracle: this host either has Core ML or has not."""
    import sys

    row = deployed.row("coreml", "fp32")
    on_mac = sys.platform == "darwin"
    assert row.evaluation == ("predicted" if on_mac else "reference-evaluated")
    assert (row.latency is not None) == on_mac


def test_executorch_fp32_is_one_partition(deployed):
    """Oracle: the saved program."""
    details = deployed.row("executorch", "fp32").details
    assert details["partitions"] == 1


def test_the_report_reads_back(deployed):
    """Oracle: the report that was written."""
    assert read_report(deployed.out).to_dict() == deployed.report.to_dict()
    html = (deployed.out / "report.html").read_text()
    assert all(target in html for target in TARGETS)


@pytest.mark.slow
def test_a_second_run_gives_the_same_bytes(deployed, digits_images, tmp_path):
    """Oracle: the first run's artifact and manifest, where the target says it is reproducible."""
    request = DeployRequest(
        weights="digits",
        data=digits_images / "heldout",
        targets=("onnx", "coreml"),
        precisions=("fp32",),
        out=tmp_path,
        runs=1,
        limit=100,
        command=("tinyvit-edge", "deploy"),
    )
    for row in deploy(request).rows:
        first = deployed.row(row.target, row.precision)
        assert first.reproducible
        assert row.sha256 == first.sha256
        name = f"{row.bundle}/manifest.json"
        assert (tmp_path / name).read_bytes() == (deployed.out / name).read_bytes()


def test_photos_without_labels_have_no_accuracy(digits_images, tmp_path):
    """Oracle: a flat folder; agreement with float32 stands for accuracy."""
    flat = tmp_path / "flat"
    flat.mkdir()
    for path in sorted((digits_images / "heldout").glob("*/*.png"))[::40]:
        (flat / f"{path.parent.name}-{path.name}").write_bytes(path.read_bytes())
    request = DeployRequest(
        weights="digits",
        data=flat,
        targets=("onnx",),
        precisions=("fp32",),
        out=tmp_path / "out",
        runs=1,
    )
    report = deploy(request)
    (row,) = report.rows
    assert (row.status, row.accuracy, report.reference) == ("ok", None, None)
    assert "quantization top-1 agreement" in {gate.name for gate in row.gates}


def test_plan_builds_nothing(tmp_path):
    """Oracle: the table of targets; the folder stays absent."""
    out = tmp_path / "out"
    request = DeployRequest(
        weights="absent",
        data=Path("absent"),
        calib=Path("absent"),
        targets=("onnx", "coreml"),
        precisions=("w8-dynamic", "w8a8"),
        out=out,
    )
    cells, refused = plan(request)
    assert [cell.name for cell in cells] == ["onnx-w8-dynamic", "onnx-w8a8", "coreml-w8a8"]
    assert [(row.target, row.status) for row in refused] == [("coreml", "unsupported")]
    assert not out.exists()


def test_a_calibrated_precision_needs_photos(tmp_path):
    """Oracle: `w8a8` cannot choose ranges without --calib."""
    request = DeployRequest(
        weights="digits",
        data=tmp_path,
        targets=("onnx",),
        precisions=("w8a8",),
        out=tmp_path / "out",
    )
    with pytest.raises(InputError, match="--calib"):
        plan(request)
    # ranges do not say how to round weights
    few_bits = replace(
        request, targets=("coreml",), precisions=("w4-lut",), calibration=tmp_path / "ranges.json"
    )
    with pytest.raises(
        InputError, match="coreml-w4-lut needs photos to calibrate on: give --calib"
    ):
        plan(few_bits)
    both = replace(
        few_bits, targets=("onnx", "coreml"), precisions=("w8a8", "w4-lut"), calib=tmp_path
    )
    cells, _ = plan(both)  # ranges for the one, photos for the other
    assert [cell.name for cell in cells] == ["onnx-w8a8", "coreml-w8a8", "coreml-w4-lut"]
    with pytest.raises(InputError, match="not both"):
        plan(replace(both, precisions=("w8a8",)))


def test_the_reference_accuracy_is_of_the_same_images(deployed, digits, digits_images):
    """Oracle: the reference model, run here on the same subset."""
    import torch

    dataset = scan_folder(digits_images / "heldout", digits.labels).subset(100)
    right = 0
    for images, labels in load_batches(dataset, digits.preprocessing, 25):
        with torch.inference_mode():
            right += int(
                (digits.model(torch.from_numpy(images)).logits.argmax(1).numpy() == labels).sum()
            )
    assert deployed.report.reference.top1 == pytest.approx(right / 100)
    written = json.loads((deployed.out / "report.json").read_text())
    assert written["reference"]["accuracy"]["n"] == 100
