"""Edits of a converted `onnx.ModelProto` on its way to the file."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from tinyvit_edge.program import Program

__all__ = [
    "describe",
    "own_zero_points",
    "share_constants",
    "store_biases",
    "store_halves",
    "strip",
    "widen_at_load",
]


def strip(model: Any) -> None:
    """Drop stack traces, which carry paths of this machine and outweigh a small model's graph,
    and the recorded shapes, which `describe` infers again from the final nodes.
    """
    graph = model.graph
    for part in (model, graph, *graph.node, *graph.input, *graph.output, *graph.initializer):
        part.ClearField("doc_string")
        part.ClearField("metadata_props")
    graph.ClearField("value_info")


def share_constants(model: Any) -> None:
    """Keep one of equal constants, such as the indices of attention biases.

    torch's exporter does this for small ones only.
    """
    graph = model.graph
    kept: dict[bytes, str] = {}
    instead = {}
    for tensor in graph.initializer:
        name = tensor.name
        tensor.ClearField("name")
        instead[name] = kept.setdefault(tensor.SerializeToString(deterministic=True), name)
        tensor.name = name
    for node in graph.node:
        node.input[:] = [instead.get(name, name) for name in node.input]
    _drop_unused(graph)


def store_halves(model: Any) -> None:
    """Store each float32 constant that float16 holds exactly as float16, behind a Cast."""
    import numpy as np
    from onnx import TensorProto, helper, numpy_helper

    casts = []
    for tensor in model.graph.initializer:
        if tensor.data_type != TensorProto.FLOAT or not tensor.dims:
            continue
        values = numpy_helper.to_array(tensor)
        with np.errstate(over="ignore"):
            halves = values.astype(np.float16)
        if not np.array_equal(halves.astype(np.float32), values):
            continue
        name, stored = tensor.name, f"{tensor.name}.half"
        tensor.CopyFrom(numpy_helper.from_array(halves, stored))
        casts.append(
            helper.make_node("Cast", [stored], [name], name=f"{name}.cast", to=TensorProto.FLOAT)
        )
    nodes = [*casts, *model.graph.node]
    del model.graph.node[:]
    model.graph.node.extend(nodes)


def store_biases(model: Any) -> None:
    """Store biases beside int8 inputs and weights as int32, in units of the product of both scales.

    They are whole multiples of it, so nothing is rounded. Without this ONNX Runtime makes no
    integer kernel of a Gemm with float output. torch's exporter leaves a bias of zeros out; here it
    is put back, for the same reason.
    """
    import numpy as np
    from onnx import helper, numpy_helper

    graph = model.graph
    constants = {tensor.name: tensor for tensor in graph.initializer}
    makers = {output: node for node in graph.node for output in node.output}
    nodes = []
    for node in graph.node:
        sides = [makers[name] for name in node.input[:2] if name in makers]
        integer = [side.op_type for side in sides] == 2 * ["DequantizeLinear"]
        if node.op_type in ("Conv", "Gemm") and integer:
            scales = [numpy_helper.to_array(constants[side.input[1]]) for side in sides]
            unit = np.multiply(*scales)  # (out,) float32
            if len(node.input) > 2:
                name = node.input[2]
                whole = np.rint(numpy_helper.to_array(constants[name]) / unit).astype(np.int32)
            else:
                name = f"{node.input[1]}.bias"
                whole = np.zeros(unit.shape, np.int32)
                node.input.append(name)
            parts = (whole, unit, np.zeros_like(whole))
            names = [f"{name}.{part}" for part in ("int32", "scale", "zero_point")]
            graph.initializer.extend(map(numpy_helper.from_array, parts, names))
            node.input[2] = f"{name}.real"
            nodes.append(
                helper.make_node(
                    "DequantizeLinear", names, [node.input[2]], f"{name}.widen", axis=0
                )
            )
        nodes.append(node)
    del graph.node[:]
    graph.node.extend(nodes)
    _drop_unused(graph)


def widen_at_load(model: Any) -> None:
    """Let ONNX Runtime widen once, when it loads the file, what no integer kernel reads as int8.

    It keeps a DequantizeLinear of a constant and runs it for every image, for the sake of integer
    kernels; a Cast and a Mul, which compute the same bits, it folds.
    """
    import numpy as np
    from onnx import TensorProto, helper, numpy_helper

    graph = model.graph
    constants = {tensor.name: tensor for tensor in graph.initializer}
    makers = {output: node for node in graph.node for output in node.output}
    integer = {
        name
        for node in graph.node
        if node.op_type in ("Conv", "Gemm", "MatMul")
        and all(name in makers for name in node.input[:2])
        and {makers[name].op_type for name in node.input[:2]} == {"DequantizeLinear"}
        for name in node.input
    }
    nodes = []
    for node in graph.node:
        constant = node.op_type == "DequantizeLinear" and node.input[0] in constants
        if not constant or node.output[0] in integer:
            nodes.append(node)
            continue
        stored, scale = node.input[:2]
        values = numpy_helper.to_array(constants[scale])
        if values.size > 1:
            (axis,) = (a.i for a in node.attribute if a.name == "axis")
            shape = [1] * len(constants[stored].dims)
            shape[axis] = values.size
            values = values.reshape(shape)
        name, factor = node.output[0], f"{stored}.scale"
        graph.initializer.append(numpy_helper.from_array(np.ascontiguousarray(values), factor))
        cast = helper.make_node(
            "Cast", [stored], [f"{name}.cast"], f"{name}.cast", to=TensorProto.FLOAT
        )
        nodes += [cast, helper.make_node("Mul", [f"{name}.cast", factor], [name], f"{name}.widen")]
    del graph.node[:]
    graph.node.extend(nodes)
    _drop_unused(graph)


def own_zero_points(model: Any) -> None:
    """Give each int8 weight a zero point of its own.

    torch's exporter merges equal constants. ONNX Runtime fails to load int8 weights that share a
    zero point with ``session.x64quantprecision``, which x86 without VNNI needs.
    """
    graph = model.graph
    constants = {tensor.name: tensor for tensor in graph.initializer}
    for node in graph.node:
        if node.op_type == "DequantizeLinear" and node.input[0] in constants:
            weight, _, zero_point = node.input
            own = graph.initializer.add()
            own.CopyFrom(constants[zero_point])
            own.name = node.input[2] = f"{weight}.zero_point"
    _drop_unused(graph)


def describe(model: Any, program: Program) -> None:
    """Write the program's metadata and the shapes of all values into the model."""
    import onnx

    onnx.helper.set_model_props(
        model,
        {
            "model_name": program.model_name,
            "precision": program.precision.name,
            "preprocessing": json.dumps(program.preprocessing.to_dict()),
            "labels": json.dumps(program.labels, ensure_ascii=False),
            "weights_sha256": program.weights_sha256,
        },
    )
    shaped = onnx.shape_inference.infer_shapes(model, data_prop=True)
    model.graph.value_info.extend(shaped.graph.value_info)


def _drop_unused(graph: Any) -> None:
    used = {name for node in graph.node for name in node.input}
    kept = [tensor for tensor in graph.initializer if tensor.name in used]
    del graph.initializer[:]
    graph.initializer.extend(kept)
