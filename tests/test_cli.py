"""The command line: results, exit codes, and one clear line for each bad input."""

from __future__ import annotations

import json
import os
import pickle
import shutil
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from deployment_samples import DEPLOYED_PRECISIONS
from tinyvit_edge.bundle import read_bundle
from tinyvit_edge.checkpoint import export_state_dict, load_checkpoint


def refused(outcome, code: int, *words: str) -> None:
    """The command ended with `code` and one line on stderr that holds every word."""
    status, _, err = outcome
    lines = [line for line in err.splitlines() if line]
    assert status == code, err
    assert len(lines) == 1, err
    assert lines[0].startswith("error: ")
    for word in words:
        assert word in lines[0]


def deploy_arguments(data: Path, out: Path, **changes) -> list[str]:
    """A deployment of ONNX fp32 that would work, with options changed."""
    options = {
        "weights": "digits",
        "data": data,
        "targets": "onnx",
        "precisions": "fp32",
        "runs": 1,
        "limit": 10,
        "out": out,
    } | changes
    return ["deploy", *(part for name, value in options.items() for part in (f"--{name}", value))]


# Bad input: each names what is wrong, and leaves no output behind.


def test_missing_weights(cli, digits_images, tmp_path):
    """Oracle: exit code 2 of bad input; nothing written."""
    out = tmp_path / "out"
    absent = tmp_path / "absent.pth"
    refused(cli(*deploy_arguments(digits_images / "heldout", out, weights=absent)), 2, "absent.pth")
    assert not list(out.glob("*"))


def test_unknown_bundled_weights_suggest_the_nearest(cli, digits_images, tmp_path):
    """Oracle: the bundled name that is one letter away."""
    arguments = deploy_arguments(digits_images / "heldout", tmp_path / "out", weights="digit")
    refused(cli(*arguments), 2, "digit", "digits")


def test_truncated_checkpoint(cli, digits_images, tmp_path):
    """Oracle: half a safetensors file."""
    whole = Path(load_weights_path())
    half = tmp_path / "half.safetensors"
    half.write_bytes(whole.read_bytes()[: whole.stat().st_size // 2])
    arguments = deploy_arguments(digits_images / "heldout", tmp_path / "out", weights=half)
    refused(cli(*arguments), 2, "half.safetensors")


class Bomb:
    """A pickle that would run a command when it is loaded."""

    def __init__(self, proof: Path) -> None:
        self.proof = proof

    def __reduce__(self):
        return os.system, (f"touch {self.proof}",)


@pytest.mark.parametrize("how", ["torch", "pickle"])
def test_a_pickle_with_code_is_refused_and_not_run(cli, digits_images, tmp_path, how):
    """Oracle: the file that its code would make does not exist."""
    proof, path = tmp_path / "proof", tmp_path / "bomb.pth"
    if how == "torch":
        torch.save({"model": Bomb(proof)}, path)
    else:
        path.write_bytes(pickle.dumps({"model": Bomb(proof)}))
    arguments = deploy_arguments(digits_images / "heldout", tmp_path / "out", weights=path)
    refused(cli(*arguments), 2, "bomb.pth")
    assert not proof.exists()


def test_wrong_class_count(cli, tmp_path):
    """Oracle: the digits have ten classes."""
    arguments = ("--weights", "digits", "--num-classes", 12, "--out", tmp_path / "out")
    refused(cli("import", *arguments), 2, "10", "12")
    assert not (tmp_path / "out").exists()


def test_class_folders_that_do_not_fit(cli, tmp_path):
    """Oracle: a folder name that is no label of the model."""
    photo(tmp_path / "data" / "cat" / "1.png")
    refused(cli(*deploy_arguments(tmp_path / "data", tmp_path / "out")), 2, "cat", "10 classes")


def test_a_text_file_among_the_images(cli, tmp_path):
    """Oracle: the name of the file."""
    photo(tmp_path / "data" / "1.png")
    (tmp_path / "data" / "notes.txt").write_text("not an image")
    refused(cli(*deploy_arguments(tmp_path / "data", tmp_path / "out")), 2, "notes.txt")


def test_a_text_file_that_calls_itself_an_image(cli, tmp_path):
    """Oracle: the name of the file; found before anything is converted."""
    photo(tmp_path / "data" / "1.png")
    (tmp_path / "data" / "2.png").write_text("not an image")
    out = tmp_path / "out"
    refused(cli(*deploy_arguments(tmp_path / "data", out), "--quiet"), 2, "2.png")
    assert not list(out.glob("*"))


@pytest.mark.parametrize("make", ["empty", "missing"])
def test_an_empty_or_missing_folder(cli, tmp_path, make):
    """Oracle: the name of the folder."""
    data = tmp_path / "photos"
    if make == "empty":
        data.mkdir()
    refused(cli(*deploy_arguments(data, tmp_path / "out")), 2, "photos")


def test_unknown_target_suggests_the_nearest(cli, digits_images, tmp_path):
    """Oracle: the target that is one letter away."""
    arguments = deploy_arguments(digits_images / "heldout", tmp_path / "out", targets="corem")
    refused(cli(*arguments), 2, "corem", "coreml")


def test_unknown_precision_suggests_the_nearest(cli, digits_images, tmp_path):
    """Oracle: the precision that is one letter away."""
    arguments = deploy_arguments(digits_images / "heldout", tmp_path / "out", precisions="fp61")
    refused(cli(*arguments), 2, "fp61", "fp16")


def test_export_of_an_unsupported_cell_lists_what_is_supported(cli, tmp_path):
    """Oracle: Core ML has no run-time activation quantization; it has fp16."""
    arguments = ("--weights", "digits", "--precision", "w8-dynamic", "--out", tmp_path / "out")
    refused(cli("export", "coreml", *arguments), 2, "w8-dynamic", "fp16")
    assert not (tmp_path / "out").exists()


def test_an_option_of_another_target(cli, tmp_path):
    """Oracle: the delegate is ExecuTorch's."""
    arguments = ("--weights", "digits", "--delegate", "portable", "--out", tmp_path / "out")
    refused(cli("export", "onnx", *arguments), 2, "delegate")


def test_a_missing_extra_is_exit_code_3(cli, monkeypatch, tmp_path):
    """Oracle: the extra that brings the package; installed packages are hidden from the check."""
    monkeypatch.setattr("tinyvit_edge.exporters._installed", lambda name: name != "coremltools")
    arguments = ("--weights", "digits", "--out", tmp_path / "out")
    refused(cli("export", "coreml", *arguments), 3, "coremltools", "tinyvit-edge[coreml]")


def test_a_deployment_with_nothing_installed_is_all_skips_and_exit_code_3(
    cli, monkeypatch, digits_images, tmp_path
):
    """Oracle: a skip has a reason and is no pass."""
    monkeypatch.setattr("tinyvit_edge.exporters._installed", lambda _: False)
    code, out, _ = cli(
        *deploy_arguments(digits_images / "heldout", tmp_path / "out"), "--json", "-"
    )
    (row,) = json.loads(out)["rows"]
    assert (code, row["status"]) == (3, "skipped")
    assert "tinyvit-edge[onnx]" in row["reason"]


@pytest.mark.skipif(not Path("/sys/kernel").is_dir(), reason="needs Linux's read-only /sys")
def test_a_read_only_output(cli, digits_images):
    """Oracle: not even root can make a folder in /sys."""
    arguments = deploy_arguments(digits_images / "heldout", Path("/sys/tinyvit-edge"))
    refused(cli(*arguments), 2, "/sys/tinyvit-edge", "choose another place")


def test_an_output_that_is_a_file(cli, digits_images, tmp_path):
    """Oracle: the file is left as it was."""
    out = tmp_path / "out"
    out.write_text("mine")
    refused(cli(*deploy_arguments(digits_images / "heldout", out)), 2, "out")
    assert out.read_text() == "mine"


def test_a_failed_conversion_is_exit_code_4_and_keeps_the_earlier_bundle(
    cli, digits_images, tmp_path, monkeypatch
):
    """Oracle: the bundle of the run before; the converter's process is made to die."""
    arguments = [*deploy_arguments(digits_images / "heldout", tmp_path / "out"), "--json", "-"]
    assert cli(*arguments)[0] == 0
    before = (tmp_path / "out" / "onnx-fp32" / "manifest.json").read_bytes()
    child = "import os; os.kill(os.getpid(), 9)  # {fd}"
    monkeypatch.setattr("tinyvit_edge.worker._CHILD", child)
    code, out, _ = cli(*arguments, "--fresh")
    (row,) = json.loads(out)["rows"]
    assert (code, row["status"]) == (4, "failed")
    assert "SIGKILL" in row["reason"]
    assert (tmp_path / "out" / "onnx-fp32" / "manifest.json").read_bytes() == before


# What works.


def test_a_one_pixel_image_is_an_image(cli, tmp_path):
    """Oracle: it is resized like any other."""
    photo(tmp_path / "data" / "1.png", size=(1, 1))
    code, out, _ = cli(*deploy_arguments(tmp_path / "data", tmp_path / "out"), "--json", "-")
    (row,) = json.loads(out)["rows"]
    assert (code, row["status"]) == (0, "ok")


def test_dry_run_writes_nothing(cli, tmp_path):
    """Oracle: neither weights nor photos exist, and neither is looked at."""
    arguments = deploy_arguments(Path("absent"), tmp_path / "out", targets="onnx,coreml")
    code, out, _ = cli(*arguments, "--dry-run", "--json", "-")
    assert code == 0
    assert json.loads(out)["build"] == ["onnx-fp32", "coreml-fp32"]
    assert not (tmp_path / "out").exists()


def test_eval_of_weights_and_of_a_bundle_agree(cli, deployed, digits_images):
    """Oracle: the reference model; fp32 conversion costs no image."""
    results = []
    for model in ("digits", deployed.out / "tflite-fp32"):
        code, out, _ = cli(
            "eval", model, "--data", digits_images / "heldout", "--limit", 100, "--json", "-"
        )
        assert code == 0
        results.append(json.loads(out))
    assert results[0] == results[1]
    assert set(results[0]) == {"top1", "top5", "n"}


def test_parity_passes_and_fails_by_exit_code(cli, deployed, digits_images, tmp_path):
    """Oracle: a whole bundle, and one whose labels' order of channels was not touched but whose
    contract was.
    """
    root = deployed.out / "onnx-fp32"
    photos = ("--weights", "digits", "--data", digits_images / "heldout", "--limit", 20)
    assert cli("parity", root, *photos)[0] == 0
    assert cli("parity", root)[0] == 0
    damaged = tmp_path / "onnx-fp32"
    shutil.copytree(root, damaged)
    contract = json.loads((damaged / "preprocess.json").read_text())
    contract["std"] = [1.0, 1.0, 1.0]
    (damaged / "preprocess.json").write_text(json.dumps(contract))
    code, out, _ = cli("parity", damaged)
    assert code == 1
    assert "FAIL" in out


def test_parity_refuses_other_weights(cli, deployed, digits_images, digits, tmp_path):
    """Oracle: the checksum in the manifest."""
    other = tmp_path / "other.pth"
    state = export_state_dict(digits.model, "microsoft")
    torch.save({"model": {name: value * 1.0 for name, value in state.items()}}, other)
    outcome = cli(
        "parity", deployed.out / "onnx-fp32", "--weights", other,
        "--data", digits_images / "heldout", "--quiet",
    )  # fmt: skip
    refused(outcome, 2, "made from weights")


def test_bench_times_bundles_of_one_model_and_of_several(cli, deployed, tmp_path):
    """Oracle: the bundles that were asked for, each on images of its own size, which a runtime
    would refuse otherwise, and each against fp32 of its own model alone.
    """
    code, *_ = cli("export", "onnx", "--weights", "digits", "--image-size", 96, "--out", tmp_path)
    larger = tmp_path / "onnx-fp32"
    assert code == 0
    roots = [deployed.out / "onnx-fp32", larger, deployed.out / "onnx-w8a8"]
    code, out, _ = cli("bench", *roots, "--runs", 5, "--json", "-")
    rows = json.loads(out)
    assert code == 0
    assert [row["bundle"] for row in rows] == [str(root) for root in roots]
    ours, other, int8 = (row["latency"] for row in rows)
    assert ours["speedup_vs_fp32"] == other["speedup_vs_fp32"] == 1.0
    assert int8["speedup_vs_fp32"] == ours["p50_ms"] / int8["p50_ms"]
    refused(cli("bench", larger, tmp_path / "x" / ".." / "onnx-fp32"), 2, "listed twice")


def test_quantize_ptq_ranges_are_what_export_uses(cli, deployed, digits_images, tmp_path):
    """Oracle: the deployment that calibrated by itself, on the same photos."""
    ranges = tmp_path / "ranges.json"
    code, out, _ = cli(
        "quantize", "ptq", "--weights", "digits", "--calib", digits_images / "train",
        "--data", digits_images / "heldout", "--limit", 60, "--out", ranges, "--json", "-",
    )  # fmt: skip
    facts = json.loads(out)
    assert code == 0
    assert facts["top1_quantized"] >= facts["top1_fp32"] - 0.02
    code, out, _ = cli(
        "export", "onnx", "--weights", "digits", "--precision", "w8a8",
        "--calibration", ranges, "--out", tmp_path / "out", "--json", "-",
    )  # fmt: skip
    assert code == 0
    assert json.loads(out)["sha256"] == deployed.row("onnx", "w8a8").sha256
    code, out, _ = cli(
        "deploy", "--weights", "digits", "--data", digits_images / "heldout", "--limit", 20,
        "--calibration", ranges, "--targets", "onnx", "--precisions", "w8a8", "--runs", 1,
        "--out", tmp_path / "deployed", "--json", "-",
    )  # fmt: skip
    assert code == 0
    assert json.loads(out)["rows"][0]["sha256"] == deployed.row("onnx", "w8a8").sha256


def test_import_writes_every_format(cli, digits, tmp_path):
    """Oracle: the reference model, after a round trip through each format."""
    for to, name in (("huggingface", "hf"), ("timm", "t.safetensors"), ("microsoft", "m.pth")):
        path = tmp_path / name
        assert cli("import", "--weights", "digits", "--to", to, "--out", path)[0] == 0
        again = load_checkpoint(path, image_size=64)
        for (key, value), other in zip(
            digits.model.state_dict().items(), again.model.state_dict().values(), strict=True
        ):
            assert torch.equal(value, other), (to, key)


def test_report_shows_a_run_again(cli, deployed, tmp_path):
    """Oracle: the run's own exit code and cells."""
    page = tmp_path / "page.html"
    code, out, _ = cli("report", deployed.out, "--markdown", "--html", page)
    assert code == deployed.report.exit_code
    assert out.count("| onnx") == len(DEPLOYED_PRECISIONS)
    assert page.read_text().startswith("<!")


def test_targets_and_doctor(cli):
    """Oracle: this environment, which has every extra."""
    code, out, _ = cli("targets", "--json", "-")
    table = {row["target"]: row for row in json.loads(out)}
    assert code == 0
    assert table["coreml"]["precisions"]["w8-dynamic"] != "supported"
    assert table["onnx"]["precisions"]["w8a8"] == "supported"
    code, out, _ = cli("doctor", "--json", "-")
    assert code == 0
    assert {item["target"] for item in json.loads(out)["targets"]} == set(table)


@pytest.mark.parametrize("command", ["deploy", "import", "export", "parity", "bench", "eval"])
def test_a_usage_error_is_exit_code_2(cli, command):
    """Oracle: every one of these has a required argument."""
    code, _, err = cli(command)
    assert code == 2
    assert "Missing" in err or "missing" in err


def test_an_interrupted_deployment_leaves_whole_bundles_only(digits_images, tmp_path):
    """Oracle: the folder after SIGTERM in the middle, once the first bundle is there."""
    out = tmp_path / "out"
    arguments = deploy_arguments(digits_images / "heldout", out, precisions="fp32,fp16,w8-dynamic")
    command = [sys.executable, "-m", "tinyvit_edge", *map(str, arguments)]
    running = subprocess.Popen(command, stderr=subprocess.PIPE, text=True)
    deadline = time.monotonic() + 120
    while not (out / "onnx-fp32").exists() and time.monotonic() < deadline:
        time.sleep(0.05)
    running.terminate()
    _, err = running.communicate(timeout=60)
    assert running.returncode == 130
    assert "interrupted" in err
    assert "Traceback" not in err
    assert not list(out.glob(".tmp-*"))
    assert not (out / "report.json").exists()
    for bundle in out.glob("*-*"):
        read_bundle(bundle)


def test_python_dash_m(tmp_path):
    """Oracle: the console script's own version line."""
    for module in (["tinyvit_edge", "--version"], ["tinyvit_edge.quantization.ptq", "--help"]):
        done = subprocess.run(
            [sys.executable, "-m", *module], capture_output=True, text=True, cwd=tmp_path
        )
        assert done.returncode == 0
        assert done.stdout.strip()


def load_weights_path() -> Path:
    """The bundled weight file."""
    import tinyvit_edge

    return Path(tinyvit_edge.__file__).parent / "weights" / "digits" / "model.safetensors"


def photo(path: Path, size: tuple[int, int] = (20, 16)) -> None:
    """Write a small photo-like RGB image."""
    path.parent.mkdir(parents=True, exist_ok=True)
    pixels = np.random.default_rng(0).integers(0, 256, (size[1], size[0], 3), np.uint8)
    Image.fromarray(pixels).save(path)
