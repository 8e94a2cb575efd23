"""The native app on bundles: what it answers, how it judges and times itself, on x86 and ARM."""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import json
import os
import pty
import re
import shutil
import subprocess
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import native_app
from executorch_samples import SUPPORTED, Written
from tinyvit_edge.bundle import golden_images, read_bundle, write_bundle
from tinyvit_edge.device_report import read_device_report, render_lines
from tinyvit_edge.export import ExportRequest, drawn_patterns, export
from tinyvit_edge.exporters.executorch import ExecuTorchExporter
from tinyvit_edge.files import sha256_of
from tinyvit_edge.preprocessing import decode, preprocess

for _package in ExecuTorchExporter().requires:
    pytest.importorskip(_package)
pytestmark = pytest.mark.slow

Run = Callable[..., "subprocess.CompletedProcess[str]"]
RED = "\x1b[1;31m"
GATES = (
    "resized bytes that differ",
    "input tensor max abs difference",
    "SQNR against recorded logits, dB",
    "top-1 agreement with recorded logits",
    "artifact as in the manifest (1 is yes)",
)


@pytest.fixture(scope="session")
def programs() -> Path:
    """The folder with the programs, built for this host."""
    return native_app.host_programs()


@pytest.fixture(scope="session")
def run(programs: Path) -> Run:
    """`run(*arguments)`: tinyvit-classify, whatever it exits with."""

    def done(*arguments: object) -> subprocess.CompletedProcess[str]:
        command = [programs / "tinyvit-classify", *map(str, arguments)]
        return subprocess.run(command, capture_output=True, text=True, check=False, timeout=60)

    return done


@pytest.fixture(scope="session")
def digits_bundle(digits_images: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The bundled model as an fp32 bundle, with goldens of held-out digits."""
    out = tmp_path_factory.mktemp("native")
    request = ExportRequest(
        target="executorch",
        weights="digits",
        precision="fp32",
        data=digits_images / "heldout",
        out=out,
    )
    return Path(export(request)["bundle"])


@pytest.fixture(scope="session")
def small_bundles(
    executorch_files: Mapping[str, Written], tmp_path_factory: pytest.TempPathFactory
) -> Path:
    """A folder with a bundle of the small program at every precision."""
    folder = tmp_path_factory.mktemp("bundles")
    for name, written in executorch_files.items():
        root = folder / name
        root.mkdir()
        shutil.copy(written.path, root / ExecuTorchExporter.artifact)
        contract = written.program.preprocessing
        goldens = golden_images(drawn_patterns(contract.size), contract)
        logits = written.logits(torch.from_numpy(np.stack([g.tensor for g in goldens]))).numpy()
        write_bundle(
            root,
            target=ExecuTorchExporter(),
            program=written.program,
            exported=written.exported,
            audit=None,
            options={},
            calibration=None,
            moments=None,
            goldens=[
                dataclasses.replace(golden, artifact_logits=row)
                for golden, row in zip(goldens, logits, strict=True)
            ],
            source={},
            command=(),
            packages={},
        )
    return folder


@pytest.fixture
def spoilt(digits_bundle: Path, tmp_path: Path) -> Path:
    """A copy to be damaged."""
    return Path(shutil.copytree(digits_bundle, tmp_path / "spoilt"))


def edit(path: Path, change: Callable[[dict[str, Any]], object]) -> None:
    """Change a JSON file in place."""
    values = json.loads(path.read_text(encoding="utf-8"))
    change(values)
    path.write_text(json.dumps(values), encoding="utf-8")


def on_a_terminal(command: list[str], environment: Mapping[str, str]) -> tuple[int, str]:
    """Exit code of a command and what it writes to a terminal."""
    ours, its = pty.openpty()
    done = subprocess.run(command, stdout=its, env=environment, check=False, timeout=60)
    os.close(its)
    text = b""
    with contextlib.suppress(OSError):  # how Linux says that the other end is closed
        while chunk := os.read(ours, 4096):
            text += chunk
    os.close(ours)
    return done.returncode, text.decode()


def test_answers_are_those_of_pythons_runtime(
    run: Run, digits_bundle: Path, digits_images: Path
) -> None:
    """Oracle: the same file in ExecuTorch's Python runtime, behind `preprocess`; softmax by
    NumPy.
    """
    files = sorted((digits_images / "heldout").rglob("*.png"))[::60]
    bundle = read_bundle(digits_bundle)
    runner = ExecuTorchExporter().load(bundle.artifact, threads=1)
    done = run("--json", "--top", 3, digits_bundle, *files)
    assert done.returncode == 0, done.stderr
    images = json.loads(done.stdout)["images"]
    assert [image["image"] for image in images] == [str(file) for file in files]
    for image, file in zip(images, files, strict=True):
        expected = runner(preprocess(decode(file), bundle.preprocessing)[None])[0]
        np.testing.assert_allclose(image["logits"], expected, rtol=0, atol=1e-5)
        best = np.argsort(-expected, kind="stable")[:3]
        assert [entry["index"] for entry in image["top"]] == best.tolist()
        assert [entry["label"] for entry in image["top"]] == [bundle.labels[i] for i in best]
        powers = np.exp(expected - expected.max())
        found = [entry["probability"] for entry in image["top"]]
        np.testing.assert_allclose(found, powers[best] / powers.sum(), rtol=1e-5)


def test_plain_answers_are_one_line_a_class(
    run: Run, digits_bundle: Path, digits_images: Path
) -> None:
    """Oracle: the folder of the image, which the model reads right; by eye, the layout."""
    file = min((digits_images / "heldout" / "7").iterdir())
    name, *lines = run("--top", 2, digits_bundle, file).stdout.splitlines()
    assert name == str(file)
    assert len(lines) == 2
    chance, sign, label = lines[0].split()
    assert float(chance) > 50
    assert (sign, label) == ("%", "7")


@pytest.mark.parametrize("precision", SUPPORTED)
def test_check_is_green_at_every_precision(run: Run, small_bundles: Path, precision: str) -> None:
    """Oracle: golden vectors that Pillow and ExecuTorch's Python runtime made on this host."""
    done = run("--check", small_bundles / precision)
    assert done.returncode == 0, done.stdout + done.stderr
    assert [line.partition("  ")[0] for line in done.stdout.splitlines()] == ["ok"] * len(GATES)


def _flip(root: Path, stage: str) -> None:
    path = root / "golden" / f"1.{stage}.bin"
    content = bytearray(path.read_bytes())
    content[-1] ^= 0x80  # of a float: its sign
    path.write_bytes(content)


def _shuffle_classes(root: Path) -> None:
    for path in (root / "golden").glob("*.artifact_logits.bin"):
        np.roll(np.fromfile(path, "<f4"), 1).tofile(path)


def _other_digest(root: Path) -> None:
    edit(root / "manifest.json", lambda m: m["artifact"].update(sha256="0" * 64))


@pytest.mark.parametrize(
    ("spoil", "failing"),
    [
        (lambda root: _flip(root, "decoded"), {0, 1}),
        (lambda root: _flip(root, "resized"), {0}),
        (lambda root: _flip(root, "tensor"), {1, 2}),
        (lambda root: _flip(root, "artifact_logits"), {2}),
        (_shuffle_classes, {2, 3}),
        (_other_digest, {4}),
        (lambda root: edit(root / "preprocess.json", lambda p: p.update(mean=[0.5] * 3)), {1}),
        (
            lambda root: edit(
                root / "preprocess.json", lambda p: p.update(interpolation="bilinear")
            ),
            {0, 1},
        ),
    ],
    ids=["decoded", "resized", "tensor", "logits", "classes", "digest", "mean", "filter"],
)
def test_check_fails_on_a_spoilt_bundle(
    run: Run, spoilt: Path, spoil: Callable[[Path], None], failing: set[int]
) -> None:
    """Oracle: which of `GATES` see the damage, by hand."""
    spoil(spoilt)
    done = run("--check", "--json", spoilt)
    gates = json.loads(done.stdout)["gates"]
    assert tuple(gate["name"] for gate in gates) == GATES
    assert {i for i, gate in enumerate(gates) if not gate["passed"]} == failing
    assert done.returncode == 1


def test_a_failed_check_is_red_on_a_terminal_only(programs: Path, spoilt: Path) -> None:
    """Oracle: the escape sequence for bold red, at the line that failed; none in a pipe, and none
    where the user asks so by NO_COLOR.
    """
    _flip(spoilt, "resized")
    command = [str(programs / "tinyvit-classify"), "--check", str(spoilt)]
    plain = {key: value for key, value in os.environ.items() if key != "NO_COLOR"}
    code, text = on_a_terminal(command, plain)
    first, second, *_, last = text.splitlines()
    assert code == 1
    assert first.startswith(f"{RED}FAIL  resized bytes that differ: 1, bound <= 0")
    assert RED not in second
    assert last.startswith(RED)
    assert on_a_terminal(command, plain | {"NO_COLOR": "1"})[1].count("\x1b") == 0
    piped = subprocess.run(command, capture_output=True, text=True, check=False, env=plain)
    assert "\x1b" not in piped.stdout


def test_bench_reports_times_that_belong_together(
    run: Run, digits_bundle: Path, tmp_path: Path
) -> None:
    """Oracle: hashlib, the options given, the apps' schema, and what holds for any times."""
    done = run("--bench", "--runs", 7, "--warmup", 2, "--threads", 1, digits_bundle)
    assert done.returncode == 0, done.stderr
    report = json.loads(done.stdout)
    artifact = digits_bundle / "model.pte"
    assert report["bundle"]["name"] == digits_bundle.name
    assert report["bundle"]["artifact_sha256"] == sha256_of(artifact)
    assert report["bundle"]["artifact_sha256"] == hashlib.sha256(artifact.read_bytes()).hexdigest()
    assert report["bundle"]["artifact_bytes"] == artifact.stat().st_size
    assert (report["backend"], report["threads"]) == ("executorch", 1)
    assert (report["device"]["kind"], report["device"]["machine"]) == ("host", os.uname().machine)
    assert report["parity"]["passed"] is True
    assert report["decodes"] is False
    assert report["latency_ms"]["load"] > 0
    for stage in ("preprocess", "inference"):
        times = report["latency_ms"][stage]
        assert times["count"] == 9
        assert times["first"] > 0
        assert 0 < times["median"] <= times["p90"]
    path = tmp_path / "report.json"
    path.write_text(done.stdout)
    read = read_device_report(path)
    assert (read.exit_code, "parity: 3 golden images" in render_lines(read)[-1]) == (0, True)


def test_bench_of_a_wrong_bundle_says_so(run: Run, spoilt: Path, digits_images: Path) -> None:
    """Oracle: exit code 1 and `parity`, whatever the times; an image is decoded in each run."""
    _flip(spoilt, "resized")
    image = min((digits_images / "heldout" / "0").iterdir())
    done = run("--bench", "--runs", 2, spoilt, image)
    report = json.loads(done.stdout)
    assert done.returncode == 1
    assert report["parity"]["passed"] is False
    assert sum(image["different_bytes"] for image in report["parity"]["images"]) > 0
    assert (report["decodes"], report["image"]) == (True, image.name)


BAD_BUNDLES: dict[str, tuple[Callable[[Path], object], str]] = {
    "no bundle": (shutil.rmtree, r"manifest.json: cannot be read; check the path"),
    "no json": (lambda r: (r / "manifest.json").write_text("{"), r"manifest.json: not as a bundle"),
    "schema": (
        lambda r: edit(r / "manifest.json", lambda m: m.update(schema_version=2)),
        r"schema version is not 1; export",
    ),
    "target": (
        lambda r: edit(r / "manifest.json", lambda m: m.update(target="onnx")),
        r"a bundle of onnx, .* export one of executorch",
    ),
    "artifact": (lambda r: (r / "model.pte").unlink(), r"model.pte: .* missing; export again"),
    "artifact cut": (
        lambda r: os.truncate(r / "model.pte", 5000),
        r"model.pte: ExecuTorch says .*; export again",
    ),
    "labels": (
        lambda r: (r / "labels.txt").write_text("one\n"),
        r"labels.txt: 1 labels for 10 classes; export again",
    ),
    "key": (
        lambda r: edit(r / "preprocess.json", lambda p: p.update(gamma=1)),
        r"preprocess.json: unknown key 'gamma'",
    ),
    "filter": (
        lambda r: edit(r / "preprocess.json", lambda p: p.update(interpolation="box")),
        r"interpolation is 'box'; it must be bicubic or bilinear",
    ),
    "size": (
        lambda r: edit(r / "preprocess.json", lambda p: p.update(size=32)),
        r"0.resized.bin: dtype and shape are not those of the contract; export again",
    ),
    "golden": (
        lambda r: os.truncate(r / "golden" / "2.tensor.bin", 8),
        r"2.tensor.bin: 8 bytes, not 49152; export again",
    ),
    "goldens": (
        lambda r: edit(r / "golden" / "golden.json", lambda g: g.update(images=[])),
        r"no golden vectors; export again",
    ),
}


@pytest.mark.parametrize("case", BAD_BUNDLES)
def test_a_bad_bundle_is_one_line(run: Run, spoilt: Path, case: str) -> None:
    """Oracle: exit code 2 and a line with input and remedy, by hand."""
    spoil, message = BAD_BUNDLES[case]
    spoil(spoilt)
    done = run("--check", spoilt)
    assert (done.returncode, done.stdout) == (2, "")
    (line,) = done.stderr.splitlines()
    assert str(spoilt) in line
    assert re.search(message, line)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((), "no bundle was given; see tinyvit-classify --help"),
        (("bundle",), "0 images were given"),
        (("--check", "bundle", "a.png"), "1 images were given"),
        (("--bench", "bundle", "a.png", "b.png"), "2 images were given"),
        (("--fast", "bundle"), "unknown option --fast"),
        (("--top", "0", "bundle"), "--top is '0'; give a number from 1 to"),
        (("--threads",), "--threads is ''; give a number from 1 to"),
    ],
)
def test_bad_usage_is_one_line(run: Run, arguments: tuple[str, ...], message: str) -> None:
    """Oracle: exit code 2 and the line, by hand."""
    done = run(*arguments)
    assert (done.returncode, done.stdout) == (2, "")
    (line,) = done.stderr.splitlines()
    assert line.startswith(f"tinyvit-classify: {message}")


def test_arm_kernels_choose_the_same_classes(digits_bundle: Path) -> None:
    """Oracle: the logits that the host's kernels gave when the bundle was made: 90 dB by `--check`
    and the same five classes in the same order. The emulator proves results, never times.
    """
    qemu = native_app.tool("qemu-aarch64-static", "apt-get install qemu-user-static")
    native_app.tool("aarch64-linux-gnu-g++", "apt-get install g++-aarch64-linux-gnu")
    toolchain = native_app.APP / "cmake" / "aarch64-linux-gnu.cmake"
    programs = native_app.build(
        "native-aarch64",
        native_app.aarch64_executorch(),
        f"-DCMAKE_TOOLCHAIN_FILE={toolchain}",
        "-DTINYVIT_DECODERS=OFF",
    )
    # A CPU of phones; QEMU's own `max` has extensions that no phone has together.
    command = [qemu, "-cpu", "cortex-a76", "-L", "/usr/aarch64-linux-gnu"]
    command += [str(programs / "tinyvit-classify")]
    done = subprocess.run(
        [*command, "--check", "--json", str(digits_bundle)],
        capture_output=True,
        text=True,
        check=False,
        timeout=110,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    for found, golden in zip(
        json.loads(done.stdout)["logits"], read_bundle(digits_bundle).goldens(), strict=True
    ):
        assert golden.artifact_logits is not None
        assert np.argsort(found)[-5:].tolist() == np.argsort(golden.artifact_logits)[-5:].tolist()
    refused = subprocess.run(
        [*command, str(digits_bundle), str(toolchain)], capture_output=True, text=True, check=False
    )
    assert refused.returncode == 3
    assert "built without decoders; build it with -DTINYVIT_DECODERS=ON" in refused.stderr
