"""The proof that an ONNX file converts to TFLite, by a real conversion."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

from tinyvit_edge.deployment import FormOptions
from tinyvit_edge.errors import MissingDependencyError, UnsupportedError
from tinyvit_edge.exporters import _onnx2tf
from tinyvit_edge.exporters.onnx import OnnxExporter
from tinyvit_edge.program import Program

for _package in OnnxExporter().requires:
    pytest.importorskip(_package)

Export = Callable[[str], Path]


@pytest.fixture
def export(tmp_path: Path, small_program: Callable[[str, FormOptions], Program]) -> Export:
    """`export(precision)`: the small program as a file."""

    def made(precision: str) -> Path:
        path = tmp_path / f"{precision}.onnx"
        OnnxExporter().export(small_program(precision, OnnxExporter().form), path)
        return path

    return made


@pytest.fixture
def image() -> NDArray[np.float32]:
    return np.random.default_rng(4).standard_normal((1, 3, 64, 64)).astype(np.float32)


def test_refuses_quantized_files(export: Export, image: NDArray[np.float32]) -> None:
    """Oracle: onnx2tf converts no quantized graph; refused before any environment is made."""
    with pytest.raises(UnsupportedError, match=r"w8-dynamic\.onnx is quantized .*target tflite"):
        _onnx2tf.check_tflite(export("w8-dynamic"), image)


def test_names_the_missing_python(
    export: Export,
    image: NDArray[np.float32],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Oracle: an environment without an interpreter, and a host without a suitable one."""
    path, cache = export("fp32"), tmp_path / "cache"
    with pytest.raises(MissingDependencyError, match=r"cache has no bin/python"):
        _onnx2tf.check_tflite(path, image, environment=cache)
    monkeypatch.setattr(_onnx2tf, "PYTHONS", ("2.0",))
    monkeypatch.setenv("XDG_CACHE_HOME", str(cache))
    with pytest.raises(MissingDependencyError, match=r"needs Python 2\.0, and none is on the path"):
        _onnx2tf.check_tflite(path, image)
    assert not cache.exists()


@pytest.mark.slow
@pytest.mark.parametrize("precision", ["fp32", "fp16"])
def test_converts_and_runs(precision: str, export: Export, image: NDArray[np.float32]) -> None:
    """Oracle: ONNX Runtime on the same file and image; onnx2tf in an environment of its own."""
    try:
        _onnx2tf._find_python()
    except MissingDependencyError as error:
        pytest.skip(str(error))
    path = export(precision)
    before = path.read_bytes()
    result = _onnx2tf.check_tflite(path, image)
    assert result.sqnr_db >= 100
    assert result.xnnpack_partitions == 1
    assert result.versions["onnx2tf"] == _onnx2tf.ONNX2TF_VERSION
    assert path.read_bytes() == before
