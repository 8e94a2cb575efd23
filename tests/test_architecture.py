"""Rules about the package as a whole: what imports what, how long files are, what targets offer."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path

import pytest

import tinyvit_edge
from tinyvit_edge.deployment import FormOptions
from tinyvit_edge.errors import InputError
from tinyvit_edge.exporters import TARGETS, exporter
from tinyvit_edge.precision import PRECISIONS

PACKAGE = Path(tinyvit_edge.__file__).parent
ROOT = PACKAGE.parent
FOLDERS = (PACKAGE, (PACKAGE / "quantization").resolve(), (PACKAGE / "exporters").resolve())
HEAVY = {
    "ai_edge_litert", "coremltools", "executorch", "jax", "litert_torch", "onnx", "onnxruntime",
    "onnxscript", "torch", "transformers",
}  # fmt: skip
MAX_LINES = 400
MAX_HELP_CPU_S = 0.5


def modules_after(statement: str) -> set[str]:
    """Top-level names in `sys.modules` of a fresh interpreter after one statement."""
    code = f"import sys\n{statement}\nprint(*sys.modules)"
    out = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True)
    return {name.partition(".")[0] for name in out.stdout.split()}


@pytest.mark.parametrize(
    "module",
    [
        "tinyvit_edge",
        "tinyvit_edge.errors",
        "tinyvit_edge.precision",
        "tinyvit_edge.exporters",
        "tinyvit_edge.cli",
        *(entry.partition(":")[0] for entry in TARGETS.values()),
    ],
)
def test_importing_stays_light(module: str) -> None:
    """Oracle: `sys.modules` of a fresh interpreter."""
    loaded = modules_after(f"import {module}")
    assert "tinyvit_edge" in loaded
    assert not loaded & HEAVY


def test_listing_the_targets_and_their_limits_stays_light() -> None:
    """Oracle: `sys.modules` after asking every exporter for its packages and limits."""
    loaded = modules_after(
        "from tinyvit_edge.exporters import TARGETS, exporter, missing_packages\n"
        "for name in TARGETS:\n"
        "    target = exporter(name)\n"
        "    missing_packages(target), target.unsupported, target.evaluation, target.timed"
    )
    assert not loaded & HEAVY


def help_cpu_seconds() -> float:
    arguments = [sys.executable, "-m", "tinyvit_edge", "--help"]
    process = subprocess.Popen(arguments, stdout=subprocess.DEVNULL)
    _, status, usage = os.wait4(process.pid, 0)
    process.returncode = os.waitstatus_to_exitcode(status)
    assert process.returncode == 0
    return usage.ru_utime + usage.ru_stime


def test_help_is_quick() -> None:
    """Oracle: CPU time of the child as the kernel counts it; the best of three."""
    assert min(help_cpu_seconds() for _ in range(3)) < MAX_HELP_CPU_S


@pytest.mark.parametrize("name", ["exporters", "quantization"])
def test_the_bare_folder_names_are_no_packages(name: str) -> None:
    """Oracle: importing them from the repository's root would make a second copy of each class."""
    if not (ROOT / name / "__init__.py").is_file():
        pytest.skip("installed without the repository")
    arguments = [sys.executable, "-c", f"import {name}"]
    out = subprocess.run(arguments, cwd=ROOT, capture_output=True, text=True, check=False)
    assert out.returncode == 1
    last = out.stderr.strip().splitlines()[-1]
    assert last == f"ImportError: import tinyvit_edge.{name}, not {name}"


def test_no_file_is_long() -> None:
    """Oracle: the number of lines."""
    files = {file for folder in FOLDERS for file in folder.glob("*.py")}
    assert len(files) > 30
    lengths = {file.name: len(file.read_text("utf-8").splitlines()) for file in files}
    assert {name: lines for name, lines in lengths.items() if lines > MAX_LINES} == {}


@pytest.mark.parametrize("name", TARGETS)
def test_every_target_satisfies_the_protocol(name: str) -> None:
    """Oracle: the attributes of `Exporter`, with the types that it gives."""
    target = exporter(name)
    assert target.name == name
    assert Path(target.artifact).name == target.artifact
    assert target.artifact
    assert isinstance(target.requires, tuple)
    assert target.requires
    assert isinstance(target.form, FormOptions)
    assert isinstance(target.unsupported, Mapping)
    assert set(target.unsupported) <= set(PRECISIONS)
    assert all(target.unsupported.values())
    assert "fp32" not in target.unsupported
    assert target.evaluation in ("runtime", "reference-evaluated", "predicted")
    assert isinstance(target.timed, bool)
    assert all(callable(getattr(target, method)) for method in ("export", "load", "audit"))
    assert exporter(name) == target


def test_artifacts_of_different_targets_have_different_names() -> None:
    """Oracle: two bundles of one model may be unpacked into one app."""
    names = [exporter(name).artifact for name in TARGETS]
    assert len(set(names)) == len(names)


def test_an_unknown_target_is_refused_with_the_nearest() -> None:
    """Oracle: the table."""
    with pytest.raises(InputError, match="did you mean 'tflite'") as caught:
        exporter("tflight")
    assert all(name in str(caught.value) for name in TARGETS)
    with pytest.raises(InputError, match="choose from"):
        exporter("zzz")
