"""Proof that an ONNX file is TFLite-compatible: convert it with onnx2tf and run the result.

onnx2tf pins versions of numpy, onnx and ai-edge-litert that no other target here can live with,
and needs a newer Python than this package, so it gets an environment of its own: made on first
use, under the user's cache folder, about 700 MB.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tinyvit_edge.errors import (
    ConversionError,
    GateError,
    MissingDependencyError,
    UnsupportedError,
)

if TYPE_CHECKING:
    from tinyvit_edge.types import FloatArray

__all__ = ["MIN_SQNR_DB", "ONNX2TF_VERSION", "PYTHONS", "Onnx2TfResult", "check_tflite"]

ONNX2TF_VERSION = "2.6.9"
PYTHONS = ("3.12", "3.13")
"""Versions of Python that it and everything it pins have wheels for."""
MIN_SQNR_DB = 90.0
"""Both files compute in float32, so they differ by the order of sums only."""

_QUANTIZED_OPS = frozenset({"DequantizeLinear", "DynamicQuantizeLinear", "QuantizeLinear"})
_INSTALL_SECONDS = 1800
_CONVERT_SECONDS = 900

# Runs in the other environment. TFLite wants the image channels-last, which the converter does
# unless the model never looks at it as an image.
_RUN_TFLITE = """
import json, sys
from importlib.metadata import version
import numpy as np
from ai_edge_litert.interpreter import Interpreter

model, image_file, logits_file = sys.argv[1:]
interpreter = Interpreter(model_path=model, num_threads=1)
interpreter.allocate_tensors()
source, = interpreter.get_input_details()
sink, = interpreter.get_output_details()
image = np.load(image_file)
if tuple(source["shape"]) != image.shape:
    image = np.ascontiguousarray(image.transpose(0, 2, 3, 1))
interpreter.set_tensor(source["index"], image)
interpreter.invoke()
np.save(logits_file, interpreter.get_tensor(sink["index"]))
listing = getattr(interpreter, "_get_ops_details", None)
partitions = listing and sum(op["op_name"] == "DELEGATE" for op in listing())
versions = {name: version(name) for name in ("onnx2tf", "onnx", "ai-edge-litert", "numpy")}
versions["python"] = sys.version.split()[0]
print(json.dumps({"partitions": partitions, "versions": versions}))
"""


@dataclass(frozen=True, slots=True, kw_only=True)
class Onnx2TfResult:
    """What the converted file does, next to the ONNX file in ONNX Runtime."""

    sqnr_db: float
    """Of the logits, against ONNX Runtime's."""
    max_abs: float
    """Largest absolute difference of one logit."""
    xnnpack_partitions: int | None
    """Delegate calls in the TFLite graph, 1 at best; None if the interpreter does not tell."""
    seconds: float
    """Wall time of conversion and run, without the making of the environment."""
    versions: Mapping[str, str]
    """Of the packages and the Python that did it."""


def check_tflite(
    onnx_path: Path, image: FloatArray, *, environment: Path | None = None
) -> Onnx2TfResult:
    """Convert a copy of an ONNX file to TFLite, run that, and compare it with the ONNX file.

    Args:
        onnx_path: a file in ``fp32`` or ``fp16``; it is not changed.
        image: normalised image (1, 3, S, S) float32 to run both on.
        environment: a virtual environment with onnx2tf; by default one in the user's cache
            folder (``$XDG_CACHE_HOME/tinyvit-edge``), made on first use from the package index.

    Raises:
        InputError: the file cannot be read as ONNX.
        UnsupportedError: the file is quantized.
        MissingDependencyError: no suitable Python, or onnx2tf cannot be installed.
        ConversionError: onnx2tf fails, or its file does not run.
        GateError: the two files' logits are not the same function of the image.
    """
    from tinyvit_edge.exporters.onnx import OnnxExporter
    from tinyvit_edge.metrics import max_abs, sqnr_db

    _require_float(onnx_path)
    reference = OnnxExporter().load(onnx_path, threads=1)(image)
    python = _python_of(environment or _environment())
    started = time.monotonic()
    with tempfile.TemporaryDirectory(prefix="tinyvit-edge-onnx2tf-") as name:
        folder = Path(name)
        model = _convert(python, onnx_path, folder)
        logits, facts = _run(python, model, image, folder)
    result = Onnx2TfResult(
        sqnr_db=sqnr_db(reference, logits),
        max_abs=max_abs(reference, logits),
        xnnpack_partitions=facts["partitions"],
        seconds=time.monotonic() - started,
        versions=facts["versions"],
    )
    if not result.sqnr_db >= MIN_SQNR_DB:
        raise GateError(
            f"onnx2tf's TFLite file of {onnx_path} gives other logits: SQNR "
            f"{result.sqnr_db:.1f} dB, needs {MIN_SQNR_DB:.0f}: the file is not TFLite-compatible"
        )
    return result


def _require_float(onnx_path: Path) -> None:
    from tinyvit_edge.exporters._onnx_profile import inferred

    found = _QUANTIZED_OPS & {node.op_type for node in inferred(onnx_path).graph.node}
    if found:
        raise UnsupportedError(
            f"{onnx_path} is quantized ({', '.join(sorted(found))}), and onnx2tf cannot convert "
            f"quantized graphs: check the fp32 or fp16 file, or use target tflite for int8"
        )


def _convert(python: Path, onnx_path: Path, folder: Path) -> Path:
    """Convert a copy, since onnx2tf rewrites its input; returns the float32 ``.tflite``."""
    copy, out = folder / "model.onnx", folder / "tflite"
    shutil.copyfile(onnx_path, copy)
    # -nuo: without onnxsim; the file must need no simplifier
    command = ["-m", "onnx2tf", "-i", str(copy), "-o", str(out), "-n", "-nuo"]
    finished = _call(python, command, folder, _CONVERT_SECONDS)
    model = out / "model_float32.tflite"
    if finished.returncode or not model.is_file():
        raise ConversionError(f"onnx2tf cannot convert {onnx_path}: {_last_line(finished)}")
    return model


def _run(
    python: Path, model: Path, image: FloatArray, folder: Path
) -> tuple[FloatArray, dict[str, Any]]:
    """Run a ``.tflite`` in the other environment; returns its logits and what it reports."""
    import numpy as np

    image_file, logits_file = folder / "image.npy", folder / "logits.npy"
    np.save(image_file, image)
    arguments = ["-c", _RUN_TFLITE, str(model), str(image_file), str(logits_file)]
    finished = _call(python, arguments, folder, _CONVERT_SECONDS)
    if finished.returncode:
        raise ConversionError(f"the TFLite file of onnx2tf does not run: {_last_line(finished)}")
    facts: dict[str, Any] = json.loads(finished.stdout.splitlines()[-1])
    return np.load(logits_file), facts


def _environment() -> Path:
    """The cached environment, made now if it is not there yet."""
    base = _find_python()
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "tinyvit-edge"
    target = cache / f"onnx2tf-{ONNX2TF_VERSION}-py{_version(base)}"
    if target.is_dir():
        return target
    try:
        cache.mkdir(parents=True, exist_ok=True)
        building = Path(tempfile.mkdtemp(prefix=f".{target.name}-", dir=cache))
    except OSError as error:
        raise MissingDependencyError(
            f"cannot make an environment for onnx2tf in {cache} ({error.strerror}): set "
            f"XDG_CACHE_HOME to a folder that can be written"
        ) from error
    try:
        _install(base, building)
        building.rename(target)
    except OSError:
        if not target.is_dir():  # else another process has just made it
            raise
    finally:
        shutil.rmtree(building, ignore_errors=True)
    return target


def _install(base: Path, folder: Path) -> None:
    pip = ["-m", "pip", "install", "--quiet", "--disable-pip-version-check"]
    steps = (
        (base, ["-m", "venv", str(folder)]),
        (folder / "bin" / "python", [*pip, f"onnx2tf=={ONNX2TF_VERSION}"]),
    )
    for python, command in steps:
        finished = _call(python, command, folder, _INSTALL_SECONDS)
        if finished.returncode:
            raise MissingDependencyError(
                f"cannot install onnx2tf {ONNX2TF_VERSION} ({_last_line(finished)}): make the "
                f"package index reachable, or check without --check-tflite"
            )


def _python_of(environment: Path) -> Path:
    python = environment / "bin" / "python"
    if not python.exists():
        raise MissingDependencyError(
            f"{environment} has no bin/python: give a virtual environment with "
            f"onnx2tf=={ONNX2TF_VERSION}, or remove the folder"
        )
    return python


def _find_python() -> Path:
    """An interpreter of a suitable version: this one, one on the path, or one of pyenv's."""
    for python in _candidates():
        if _version(python) in PYTHONS:
            return python
    raise MissingDependencyError(
        f"onnx2tf {ONNX2TF_VERSION} needs Python {' or '.join(PYTHONS)}, and none is on the path "
        f"or under pyenv: install one, or check without --check-tflite"
    )


def _candidates() -> Iterator[Path]:
    yield Path(sys.executable)
    pyenv = Path(os.environ.get("PYENV_ROOT") or Path.home() / ".pyenv") / "versions"
    for version in PYTHONS:
        if found := shutil.which(f"python{version}"):
            yield Path(found)
        yield from sorted(pyenv.glob(f"{version}.*/bin/python{version}"))


def _version(python: Path) -> str | None:
    """Major and minor version; None if it does not run, as pyenv's shims may not."""
    ask = "import sys; print('%d.%d' % sys.version_info[:2])"
    try:
        finished = _call(python, ["-c", ask], Path.cwd(), 60)
    except OSError:
        return None
    return finished.stdout.strip() if finished.returncode == 0 else None


def _call(
    python: Path, arguments: list[str], cwd: Path, seconds: int
) -> subprocess.CompletedProcess[str]:
    """Run another Python, cut off from this one's environment; a timeout reads as a failure."""
    command = [str(python), "-I", *arguments]
    try:
        return subprocess.run(
            command, cwd=cwd, capture_output=True, text=True, timeout=seconds, check=False
        )
    except subprocess.TimeoutExpired:
        return subprocess.CompletedProcess(command, 1, "", f"timed out after {seconds} s")


def _last_line(finished: subprocess.CompletedProcess[str]) -> str:
    """The last thing a failed process said, without colours and progress bars."""
    text = finished.stderr.strip() or finished.stdout.strip() or f"exit {finished.returncode}"
    last = re.split(r"[\r\n]+", text)[-1]
    return re.sub(r"\x1b\[[0-9;]*m", "", last).strip()
