"""TFLite: what the saved file holds, and how it is rewritten."""

from __future__ import annotations

import copy
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

pytest.importorskip("litert_torch")
pytest.importorskip("ai_edge_litert")

from ai_edge_litert import schema_py_generated as schema

from audit_samples import asked, failed
from tinyvit_edge.errors import ConversionError, InputError
from tinyvit_edge.exporters import (
    _tflite_audit,
    _tflite_edit,
    _tflite_file,
    _tflite_rewrites,
    _tflite_tables,
)
from tinyvit_edge.exporters.tflite import TfliteExporter
from tinyvit_edge.precision import PRECISIONS
from tinyvit_edge.quantization.accounting import integer_demand, layer_macs
from tinyvit_edge.quantization.qdq import DynamicLinear, Int8AttentionBias, StaticLayer

EXPORTER = TfliteExporter()
SUPPORTED = [name for name in PRECISIONS if name not in EXPORTER.unsupported]


def operators(model: Any, *names: str) -> list[Any]:
    found = model.subgraphs[0].operators
    return [one for one in found if _tflite_file.operator_name(model, one) in names]


def weight_tensor(model: Any, operator: Any) -> Any:
    return model.subgraphs[0].tensors[operator.inputs[1]]


@pytest.mark.parametrize("precision", SUPPORTED)
def test_metadata_is_read_back(precision: str, tflite_artifacts: Callable[[str], Any]) -> None:
    """Oracle: the program's own fields."""
    artifact = tflite_artifacts(precision)
    program = artifact.program
    assert _tflite_file.read_metadata(artifact.model) == {
        "model_name": "small",
        "precision": precision,
        "labels": list(program.labels),
        "preprocessing": program.preprocessing.to_dict(),
        "weights_sha256": program.weights_sha256,
    }
    assert artifact.model.description == f"small {precision}".encode()


@pytest.mark.parametrize("precision", SUPPORTED)
def test_constants_are_aligned(precision: str, tflite_artifacts: Callable[[str], Any]) -> None:
    """Oracle: ``force_align: 16`` of Buffer.data in the schema."""
    packed = schema.Model.GetRootAs(tflite_artifacts(precision).path.read_bytes())
    tables = [packed.Buffers(index)._tab for index in range(packed.BuffersLength())]
    starts = [table.Vector(table.Offset(4)) for table in tables if table.Offset(4)]
    assert len(starts) > 10
    assert all(start % 16 == 0 for start in starts)


def test_zero_points_of_zero_are_written_once(tflite_artifacts: Callable[[str], Any]) -> None:
    """Oracle: places in the file: channels' zero points of one length share theirs."""
    graph = schema.Model.GetRootAs(tflite_artifacts("w8a8").path.read_bytes()).Subgraphs(0)
    places: dict[int, set[int]] = {}
    tensors = 0
    for index in range(graph.TensorsLength()):
        quantization = graph.Tensors(index).Quantization()
        if quantization is None or quantization.ZeroPointLength() < 2:
            continue
        assert not quantization.ZeroPointAsNumpy().any()
        table, tensors = quantization._tab, tensors + 1
        place = table.Vector(table.Offset(10))
        places.setdefault(quantization.ZeroPointLength(), set()).add(place)
    assert tensors > len(places)
    assert all(len(places[length]) == 1 for length in places)


def test_fp16_stores_every_tensor_in_half(tflite_artifacts: Callable[[str], Any]) -> None:
    """Oracle: the byte count of the module's parameters and buffers at two bytes each."""
    artifact = tflite_artifacts("fp16")
    stored = EXPORTER.audit(artifact.path).weight_bytes
    module = artifact.program.module
    expected = 2 * sum(t.numel() for t in (*module.parameters(), *module.buffers()))
    assert stored["float16"] == pytest.approx(expected, rel=0.01)
    assert stored["float32"] <= 16  # the epsilon of LayerNorm
    assert EXPORTER.audit(artifact.path).int8_macs == 0


def test_dynamic_weights_and_scales_are_those_of_the_module(
    tflite_artifacts: Callable[[str], Any],
) -> None:
    """Oracle: every `DynamicLinear`'s int8 weight and scales, bit for bit."""
    artifact = tflite_artifacts("w8-dynamic")
    stored = {}
    for operator in operators(artifact.model, "FULLY_CONNECTED"):
        tensor = weight_tensor(artifact.model, operator)
        assert tensor.quantization.quantizedDimension == 0
        assert not tensor.quantization.zeroPoint.any()
        weight = _tflite_file.constant(artifact.model, tensor)
        assert weight is not None
        stored[weight.tobytes()] = tensor.quantization.scale
    layers = [m for m in artifact.program.module.modules() if isinstance(m, DynamicLinear)]
    assert len(layers) == len(stored) == 7  # q, k, v, proj, fc1, fc2, classifier
    for layer in layers:
        np.testing.assert_array_equal(
            stored[layer.weight.numpy().tobytes()], layer.weight_scale.numpy()
        )


def test_static_layers_carry_the_calibrated_parameters(
    tflite_artifacts: Callable[[str], Any],
) -> None:
    """Oracle: every `StaticLayer`'s weight scales, and input and output scale and zero point."""
    artifact = tflite_artifacts("w8a8")
    tensors = artifact.model.subgraphs[0].tensors
    stored = {}
    kernels = operators(artifact.model, "CONV_2D", "DEPTHWISE_CONV_2D", "FULLY_CONNECTED")
    integer = [one for one in kernels if tensors[one.inputs[1]].type == schema.TensorType.INT8]
    assert len(kernels) - len(integer) == 1  # the local convolution
    for operator in integer:
        used = [tensors[i] for i in (*operator.inputs[:2], operator.outputs[0])]
        assert [tensor.type for tensor in used] == [schema.TensorType.INT8] * 3
        source, weight, target = (tensor.quantization for tensor in used)
        stored[weight.scale.tobytes()] = tuple(
            (float(one.scale[0]), int(one.zeroPoint[0])) for one in (source, target)
        )
    layers = [m for m in artifact.program.module.modules() if isinstance(m, StaticLayer)]
    assert len(layers) == len(stored) == 15  # 2 stem, 3 MBConv, 3 merge, 7 Linear
    for layer in layers:
        expected = tuple(
            (params.scale, params.zero_point)
            for params in (layer.input_params, layer.output_params)
        )
        assert stored[layer.weight_scale.numpy().tobytes()] == expected


def test_attention_biases_are_those_of_the_module(tflite_artifacts: Callable[[str], Any]) -> None:
    """Oracle: the `Int8AttentionBias`'s integers and scale, bit for bit, at every int8 row."""
    for precision in ("w8-dynamic", "w8", "w8a8"):
        artifact = tflite_artifacts(precision)
        modules = artifact.program.module.modules()
        (bias,) = [one for one in modules if isinstance(one, Int8AttentionBias)]
        integers = bias.values.numpy().tobytes()
        stored = []
        for tensor in artifact.model.subgraphs[0].tensors:
            values = _tflite_file.constant(artifact.model, tensor)
            if values is not None and values.tobytes() == integers:
                stored.append(tensor.quantization.scale)
        assert [scale.tolist() for scale in stored] == [[bias.scale]]


def test_static_file_computes_the_rest_in_float(tflite_artifacts: Callable[[str], Any]) -> None:
    """Oracle: the precision's row: GELU, softmax, LayerNorm, attention and adds stay float32."""
    model = tflite_artifacts("w8a8").model
    names = ("GELU", "SOFTMAX", "ADD", "MUL", "RSQRT", "BATCH_MATMUL", "MEAN")
    assert {_tflite_file.operator_name(model, one) for one in operators(model, *names)} == {*names}
    for operator in operators(model, *names):
        target = model.subgraphs[0].tensors[operator.outputs[0]]
        assert target.type == schema.TensorType.FLOAT32


def test_audit_counts_what_torch_counts(tflite_artifacts: Callable[[str], Any]) -> None:
    """Oracle: torch's own FLOP counter (two FLOPs a multiply-accumulate) on the float module."""
    module = tflite_artifacts("fp32").program.module
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        module(tflite_artifacts("fp32").input())
    flops = {str(op): count for op, count in counter.get_flop_counts()["Global"].items()}
    linear = sum(
        count for op, count in flops.items() if op in ("aten.addmm", "aten.mm", "aten.linear")
    )
    total, attention = sum(flops.values()), flops["aten.bmm"]
    macs = layer_macs(module, tflite_artifacts("fp32").input())
    local = 2 * sum(count for name, count in macs.items() if name.endswith("local_conv"))
    expected = {"fp32": 0, "fp16": 0, "w8-dynamic": linear, "w8a8": total - attention - local}
    for precision, int8 in expected.items():
        audit = EXPORTER.audit(tflite_artifacts(precision).path)
        assert 2 * audit.total_macs == total
        assert 2 * audit.int8_macs == int8
    assert linear > 0


def test_audit_counts_the_conversions_that_run(tflite_artifacts: Callable[[str], Any]) -> None:
    """Oracles: what torch's layers read and give; the operators of the packed file, by the schema's
    own readers, of which some widen constants.
    """
    for precision in SUPPORTED:
        artifact = tflite_artifacts(precision)
        audit = EXPORTER.audit(artifact.path)
        packed = schema.Model.GetRootAs(artifact.path.read_bytes())
        graph, found = packed.Subgraphs(0), {"QUANTIZE": 0, "DEQUANTIZE": 0}
        for index in range(graph.OperatorsLength()):
            operator = graph.Operators(index)
            code = packed.OperatorCodes(operator.OpcodeIndex())
            for name in found:
                if code.DeprecatedBuiltinCode() == getattr(schema.BuiltinOperator, name):
                    buffer = graph.Tensors(operator.Inputs(0)).Buffer()
                    found[name] += packed.Buffers(buffer).DataIsNone()
        assert found == {"QUANTIZE": audit.quantize, "DEQUANTIZE": audit.dequantize}
        assert failed(audit, artifact.program) == set()
    wanted = asked(tflite_artifacts("w8a8").program)
    audit = EXPORTER.audit(tflite_artifacts("w8a8").path)
    assert audit.quantize == wanted.inputs - wanted.chained
    assert wanted.layers <= audit.dequantize <= 2 * wanted.layers


def test_audit_catches_a_layer_left_float(tflite_artifacts: Callable[[str], Any]) -> None:
    """Oracle: the file of a program that leaves two layers out, and the other way round; the local
    convolution is left at w8a8, too.
    """
    whole, mixed = tflite_artifacts("w8a8"), tflite_artifacts("w8a8-mixed")
    audit = EXPORTER.audit(mixed.path)
    assert {kind: share.count for kind, share in audit.left_float.items()} == {
        "attention": 2,
        "conv": 2,
        "linear": 1,
    }
    assert "int8 multiply-accumulates" in failed(audit, whole.program)
    assert "float multiply-accumulates" in failed(EXPORTER.audit(whole.path), mixed.program)


def test_audit_catches_a_pair_that_no_layer_asks_for(
    tflite_artifacts: Callable[[str], Any], tmp_path: Path
) -> None:
    """Oracle: the saved file with its first GELU between a QUANTIZE and a DEQUANTIZE."""
    artifact = tflite_artifacts("w8a8")
    model = _tflite_file.read(artifact.path)
    graph = model.subgraphs[0]
    (gelu,) = operators(model, "GELU")[:1]
    (source,) = gelu.inputs.tolist()
    tensors = [copy.copy(graph.tensors[source]) for _ in range(2)]
    tensors[0].type = schema.TensorType.INT8
    graph.tensors += tensors
    rounded, real = len(graph.tensors) - 2, len(graph.tensors) - 1
    place = graph.operators.index(gelu)
    graph.operators[place:place] = [
        _tflite_edit.new_operator(model, schema.BuiltinOperator.QUANTIZE, source, rounded),
        _tflite_edit.new_operator(model, schema.BuiltinOperator.DEQUANTIZE, rounded, real, 2),
    ]
    gelu.inputs[0] = real
    path = tmp_path / "paired.tflite"
    path.write_bytes(_tflite_file.serialise(model))
    audit = EXPORTER.audit(path)
    assert audit.needless == 2
    assert "needless conversions" in failed(audit, artifact.program)


def test_audit_counts_constant_bytes(tflite_artifacts: Callable[[str], Any]) -> None:
    """Oracle: the module's quantized layers."""
    for precision in ("w8-dynamic", "w8", "w8a8-mixed", "w8a8"):
        artifact = tflite_artifacts(precision)
        demand = integer_demand(artifact.program.module, artifact.input())
        audit = EXPORTER.audit(artifact.path)
        stored = audit.weight_bytes
        assert (stored["int8"], audit.int8_macs) == (demand.weight_bytes["int8"], demand.int8_macs)
    # of float32, only the local convolution, factors and LayerNorm's epsilon are left
    rest = sum(one.numel() * 4 for name, one in left_in_float(artifact.program.module))
    assert stored["float32"] == pytest.approx(rest, abs=64)


def left_in_float(module: nn.Module) -> list[tuple[str, Tensor]]:
    ends = ("local_conv.weight", "local_conv.bias", "norm.factor")
    return [(name, one) for name, one in module.state_dict().items() if name.endswith(ends)]


def test_weights_alone_ask_for_a_runtime_that_knows_scales_a_channel(
    tflite_artifacts: Callable[[str], Any],
) -> None:
    """Oracle: TensorFlow's op_version.cc: DEQUANTIZE of scales a channel is version 5."""

    def versions(precision: str) -> set[int]:
        model = tflite_artifacts(precision).model
        return {
            model.operatorCodes[one.opcodeIndex].version for one in operators(model, "DEQUANTIZE")
        }

    assert versions("w8") == {5}  # also for the attention biases: it is in the file already
    assert versions("w8-dynamic") == {2}
    assert versions("fp16") == {2, 3}  # attention biases are int8


def test_constants_behind_the_flatbuffer_are_read(
    tflite_artifacts: Callable[[str], Any], tmp_path: Path
) -> None:
    """Oracle: the file with its constants inside; the audit of both, and the runtime's logits."""
    artifact = tflite_artifacts("w8a8")
    model = _tflite_file.read(artifact.path)
    behind = [buffer for buffer in model.buffers if buffer.data is not None]
    constants = [buffer.data.tobytes() for buffer in behind]
    for buffer in behind:
        buffer.data, buffer.offset, buffer.size = None, 2**40, 2**40  # kept in the table as such
    graph = _tflite_file.serialise(model)
    path, places = tmp_path / "behind.tflite", []
    content = graph
    for constant in constants:
        content += bytes(-len(content) % 16)
        places.append((len(content), len(constant)))
        content += constant
    for buffer, (offset, size) in zip(behind, places, strict=True):
        buffer.offset, buffer.size = offset, size
    moved = _tflite_file.serialise(model)
    assert len(moved) == len(graph)
    path.write_bytes(moved + content[len(graph) :])
    again = _tflite_file.read(path)
    assert _tflite_audit.audit(again) == _tflite_audit.audit(artifact.model)
    image = artifact.input().numpy()
    wanted = EXPORTER.load(artifact.path, threads=1)(image)
    np.testing.assert_array_equal(EXPORTER.load(path, threads=1)(image), wanted)
    path.write_bytes(_tflite_file.serialise(again))
    np.testing.assert_array_equal(EXPORTER.load(path, threads=1)(image), wanted)
    path.write_bytes((moved + content[len(graph) :])[:-16])
    with pytest.raises(InputError, match="truncated"):
        _tflite_file.read(path)


def test_a_layer_that_the_converter_changed_is_named(
    tflite_artifacts: Callable[[str], Any],
) -> None:
    """Oracle: the name of the one layer whose weight is not in the file."""
    model = _tflite_file.read(tflite_artifacts("fp32").path)
    absent = np.ones((4, 4), np.float32)
    weight = _tflite_rewrites.IntegerWeight(
        real=absent, integers=absent.astype(np.int8), scale=absent[0], axis=0
    )
    table = _tflite_tables.Table(
        real=absent[None], integers=weight.integers[None], scale=1.0, columns=(slice(0, 4),)
    )
    with pytest.raises(ConversionError, match=r"stages\.9\.bias: its table"):
        _tflite_tables.store_tables(model, {"stages.9.bias": table})
    for rewrite in (_tflite_rewrites.quantize_fully_connected, _tflite_rewrites.store_int8):
        with pytest.raises(ConversionError, match=r"layer stages\.9\.q: "):
            rewrite(model, {"stages.9.q": weight})


def test_store_half_refuses_what_half_cannot_hold(tflite_artifacts: Callable[[str], Any]) -> None:
    """Oracle: randomised float32 weights have more bits than float16 has."""
    with pytest.raises(ConversionError, match="float16 grid"):
        _tflite_rewrites.store_half(_tflite_file.read(tflite_artifacts("fp32").path))
