"""The ONNX target's audit of saved files, against torch's own counts and the files' nodes."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from audit_samples import asked, failed, with_pair
from onnx_samples import BLOCKS, SIZE, Build
from tinyvit_edge.exporters.onnx import OnnxExporter
from tinyvit_edge.precision import PRECISIONS
from tinyvit_edge.quantization.accounting import integer_demand, layer_macs

onnx = pytest.importorskip("onnx")
pytest.importorskip("onnxscript")

SUPPORTED = [name for name in PRECISIONS if name not in OnnxExporter.unsupported]
QUANTIZED = [name for name in SUPPORTED if PRECISIONS[name].quantized]


@pytest.fixture(scope="module")
def build(onnx_artifacts: Build) -> Build:
    """`build(precision)`: the small program, exported once."""
    return onnx_artifacts


@pytest.mark.parametrize("precision", [name for name in SUPPORTED if name != "w8a8-mixed"])
def test_audit(precision: str, build: Build) -> None:
    """Oracle: torch's own operation counter, run over the float module."""
    audit = OnnxExporter().audit(build(precision).path)
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        build("fp32").program.module(torch.zeros(1, 3, SIZE, SIZE))
    flops = {str(op): count for op, count in counter.get_flop_counts()["Global"].items()}
    convolution = flops["aten.convolution"] // 2
    attention = flops["aten.bmm"] // 2
    linear = sum(flops.values()) // 2 - convolution - attention
    macs = layer_macs(build("fp32").program.module, torch.zeros(1, 3, SIZE, SIZE))
    local = sum(count for name, count in macs.items() if name.endswith("local_conv"))
    kinds = {"attention": attention, "conv": convolution, "linear": linear}
    integer = {"w8-dynamic": {"linear"}, "w8a8": {"linear", "conv"}}.get(precision, set())
    left = {kind: macs for kind, macs in kinds.items() if kind not in integer}
    left |= {"conv": local} if precision == "w8a8" else {}
    assert {kind: share.macs for kind, share in audit.left_float.items()} == left
    int8 = sum(kinds.values()) - sum(left.values())
    wanted = {"float32": sum(kinds.values()) - int8, "int8": int8}
    assert audit.macs == {dtype: macs for dtype, macs in wanted.items() if macs}


@pytest.mark.parametrize("precision", QUANTIZED)
def test_audit_counts_what_the_program_asks_for(precision: str, build: Build) -> None:
    """Oracles: the quantized layers of the torch module; the sizes of the file's constants."""
    built = build(precision)
    demand = integer_demand(built.program.module, built.program.example_input())
    audit = OnnxExporter().audit(built.path)
    assert (audit.weight_bytes["int8"], audit.int8_macs) == (
        demand.weight_bytes["int8"],
        demand.int8_macs,
    )
    stored = sum(onnx.numpy_helper.to_array(t).nbytes for t in built.model().graph.initializer)
    assert sum(audit.weight_bytes.values()) == stored  # zero points too, beside their scales


def test_audit_counts_the_conversions_that_run(build: Build) -> None:
    """Oracles: what torch's layers read and give; the nodes of the file as onnx itself lists them,
    of which each layer takes up a quantize behind it, and a dequantize for each input before it.
    """
    built = build("w8a8")
    audit, wanted = OnnxExporter().audit(built.path), asked(built.program)
    assert (audit.quantize, audit.dequantize) == (wanted.inputs, wanted.rounded)
    graph = built.model().graph
    constants = {tensor.name for tensor in graph.initializer}
    nodes = Counter(n.op_type for n in graph.node if not constants & set(n.input[:1]))
    assert nodes["QuantizeLinear"] == audit.quantize + wanted.rounded
    assert nodes["DequantizeLinear"] == audit.dequantize + wanted.inputs
    dynamic = build("w8-dynamic")
    found = Counter(node.op_type for node in dynamic.model().graph.node)
    audit = OnnxExporter().audit(dynamic.path)
    assert (audit.quantize, audit.dequantize) == (found["DynamicQuantizeLinear"], 0)
    for precision in ("fp32", "fp16", "w8"):
        audit = OnnxExporter().audit(build(precision).path)
        assert (audit.quantize, audit.dequantize, audit.needless) == (0, 0, 0)


@pytest.mark.parametrize("precision", SUPPORTED)
def test_a_whole_file_is_what_its_program_asks_for(precision: str, build: Build) -> None:
    """Oracle: no gate fails."""
    built = build(precision)
    assert failed(OnnxExporter().audit(built.path), built.program) == set()


def test_a_layer_left_float_is_caught(build: Build, tmp_path: Path) -> None:
    """Oracle: the one convolution whose result is not rounded, which no integer kernel takes; and
    the other way round, layers that were to be left in floating point.
    """
    built = build("w8a8")
    model = built.model()
    convolution = next(node for node in model.graph.node if node.op_type == "Conv")
    rounding = next(n for n in model.graph.node if convolution.output[0] in n.input)
    widening = next(n for n in model.graph.node if rounding.output[0] in n.input)
    for node in model.graph.node:
        for place, name in enumerate(node.input):
            if name == widening.output[0]:
                node.input[place] = convolution.output[0]
    model.graph.node.remove(rounding)
    model.graph.node.remove(widening)
    onnx.save(model, tmp_path / "model.onnx")
    audit = OnnxExporter().audit(tmp_path / "model.onnx")
    assert audit.left_float["conv"].count == 1 + BLOCKS
    # its input is rounded and widened for nothing
    caught = {"int8 multiply-accumulates", "needless conversions"}
    assert failed(audit, built.program) == caught
    mixed = build("w8a8-mixed")
    assert "int8 multiply-accumulates" in failed(OnnxExporter().audit(mixed.path), built.program)
    assert failed(OnnxExporter().audit(built.path), mixed.program) >= {"float multiply-accumulates"}


def test_a_pair_that_no_layer_asks_for_is_caught(build: Build, tmp_path: Path) -> None:
    """Oracle: the program with a quantize/dequantize pair before one LayerNorm."""
    program = with_pair(build("w8a8").program)
    OnnxExporter().export(program, tmp_path / "model.onnx")
    audit = OnnxExporter().audit(tmp_path / "model.onnx")
    assert audit.needless == 2
    assert failed(audit, build("w8a8").program) == {"needless conversions"}
