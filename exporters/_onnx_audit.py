"""What a saved ONNX file stores, and what it computes in which type."""

from __future__ import annotations

from collections import Counter
from math import prod
from typing import Any

from tinyvit_edge.exporters import Audit

__all__ = ["audit"]

_PRODUCTS = ("Conv", "Gemm", "MatMul", "MatMulInteger")
_EIGHT_BITS = ("int8", "uint8")
_CONVERSIONS = ("QuantizeLinear", "DequantizeLinear")


def audit(model: Any) -> Audit:
    """Audit an `onnx.ModelProto` whose shapes have been inferred.

    Zero points count with their scales, in the scales' type: int8 bytes are those of weights.
    """
    tensors = _tensors(model.graph)
    constants = {tensor.name for tensor in model.graph.initializer}
    weight_bytes: Counter[str] = Counter()
    scales = _scales(model.graph)
    for name in constants:
        dtype, shape = tensors[name]
        weight_bytes[tensors[scales.get(name, name)][0].name] += dtype.itemsize * prod(shape)
    makers = {output: node for node in model.graph.node for output in node.output}
    int8_macs = total_macs = 0
    for node in model.graph.node:
        if node.op_type in _PRODUCTS:
            macs = _macs(node, tensors)
            total_macs += macs
            stored = [_stored(name, makers) for name in node.input[:2]]
            if stored[1] in constants and all(
                tensors[name][0].name in _EIGHT_BITS for name in stored
            ):
                int8_macs += macs
    return Audit(
        weight_bytes=dict(sorted(weight_bytes.items())), int8_macs=int8_macs, total_macs=total_macs
    )


def _tensors(graph: Any) -> dict[str, tuple[Any, tuple[int, ...]]]:
    """NumPy dtype and shape of every value, by name."""
    import onnx

    to_numpy = onnx.helper.tensor_dtype_to_np_dtype
    tensors = {}
    for value in (*graph.input, *graph.value_info, *graph.output):
        tensor = value.type.tensor_type
        shape = tuple(size.dim_value for size in tensor.shape.dim)
        tensors[value.name] = (to_numpy(tensor.elem_type), shape)
    for constant in graph.initializer:
        tensors[constant.name] = (to_numpy(constant.data_type), tuple(constant.dims))
    return tensors


def _scales(graph: Any) -> dict[str, str]:
    """The scale of every zero point."""
    nodes = (node for node in graph.node if node.op_type in _CONVERSIONS)
    return {node.input[2]: node.input[1] for node in nodes if len(node.input) > 2}


def _macs(node: Any, tensors: dict[str, tuple[Any, tuple[int, ...]]]) -> int:
    """Multiply-accumulates of a product: outputs times terms in the sum of each."""
    left, right = (tensors[name][1] for name in node.input[:2])
    terms = prod(right[1:]) if node.op_type == "Conv" else left[-1]
    return prod(tensors[node.output[0]][1]) * terms


def _stored(name: str, makers: dict[str, Any]) -> str:
    """The integer tensor behind a dequantized value; the value itself if there is none."""
    maker = makers.get(name)
    if maker is not None and maker.op_type == "DequantizeLinear":
        return str(maker.input[0])
    return name
