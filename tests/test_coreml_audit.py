"""The Core ML target's audit of saved packages, against torch and coremltools' protobuf."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from pathlib import Path

import pytest

from audit_samples import asked, failed, with_pair
from tinyvit_edge.exporters import Exporter
from tinyvit_edge.exporters._mlprogram_package import read_spec
from tinyvit_edge.exporters.coreml import CoreMlExporter
from tinyvit_edge.program import Program

pytest.importorskip("coremltools")

TARGET: Exporter = CoreMlExporter(package="tensor")
SmallProgram = Callable[..., Program]


@pytest.mark.parametrize("precision", ["w8a8", "w8", "w4g32"])
def test_audit_counts_the_conversions_that_run(
    precision: str, small_program: SmallProgram, tmp_path: Path
) -> None:
    """Oracles: what torch's layers read and give; the operations of coremltools' protobuf, of which
    each layer takes up a quantize behind it, and a dequantize for each input before it.
    """
    program, path = small_program(precision), tmp_path / "model.mlpackage"
    TARGET.export(program, path)
    audit, wanted = TARGET.audit(path), asked(program)
    assert (audit.quantize, audit.dequantize) == (wanted.inputs - wanted.chained, wanted.layers)
    function = read_spec(path).mlProgram.functions["main"]
    block = function.block_specializations[function.opset]
    found = Counter(operation.type for operation in block.operations)
    assert found["quantize"] == audit.quantize + wanted.layers
    assert found["dequantize"] == found["quantize"]  # what widens constants has another name
    assert failed(audit, program) == set()
    assert set(audit.macs) - {"int8"} == {"float16"}


def test_a_layer_left_float_is_caught(small_program: SmallProgram, tmp_path: Path) -> None:
    """Oracle: a program that leaves two layers out."""
    TARGET.export(small_program("w8a8-mixed"), tmp_path / "mixed.mlpackage")
    audit = TARGET.audit(tmp_path / "mixed.mlpackage")
    # and the local convolutions of four blocks
    assert sum(audit.left_float[kind].count for kind in ("linear", "conv")) == 2 + 4
    assert failed(audit, small_program("w8a8-mixed")) == set()
    assert "int8 multiply-accumulates" in failed(audit, small_program("w8a8"))


def test_a_pair_that_no_layer_asks_for_is_caught(
    small_program: SmallProgram, tmp_path: Path
) -> None:
    """Oracle: the program with a quantize/dequantize pair before one LayerNorm."""
    whole = small_program("w8a8")
    TARGET.export(with_pair(whole), tmp_path / "paired.mlpackage")
    audit = TARGET.audit(tmp_path / "paired.mlpackage")
    assert audit.needless == 2
    assert failed(audit, whole) == {"needless conversions"}
    assert "float multiply-accumulates" in failed(audit, small_program("w8a8-mixed"))
