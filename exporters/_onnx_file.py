"""Edits of a converted `onnx.ModelProto` on its way to the file."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from tinyvit_edge.program import Program

__all__ = ["describe", "own_zero_points", "store_biases", "store_halves", "strip"]


def strip(model: Any) -> None:
    """Drop stack traces, which carry paths of this machine and outweigh a small model's graph,
    and the recorded shapes, which `describe` infers again from the final nodes.
    """
    graph = model.graph
    for part in (model, graph, *graph.node, *graph.input, *graph.output, *graph.initializer):
        part.ClearField("doc_string")
        part.ClearField("metadata_props")
    graph.ClearField("value_info")


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
    used = {name for node in nodes for name in node.input}
    kept = [tensor for tensor in graph.initializer if tensor.name in used]
    del graph.initializer[:]
    graph.initializer.extend(kept)


def own_zero_points(model: Any) -> None:
    """Give each int8 weight a zero point of its own.

    torch's exporter merges equal constants. ONNX Runtime fails to load int8 weights that share a
    zero point with ``session.x64quantprecision``, which x86 without VNNI needs.
    """
    graph = model.graph
    constants = {tensor.name: tensor for tensor in graph.initializer}
    shared = set()
    for node in graph.node:
        if node.op_type == "DequantizeLinear" and node.input[0] in constants:
            weight, _, zero_point = node.input
            shared.add(zero_point)
            own = graph.initializer.add()
            own.CopyFrom(constants[zero_point])
            own.name = node.input[2] = f"{weight}.zero_point"
    used = {name for node in graph.node for name in node.input}
    kept = [tensor for tensor in graph.initializer if tensor.name not in shared - used]
    del graph.initializer[:]
    graph.initializer.extend(kept)


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
