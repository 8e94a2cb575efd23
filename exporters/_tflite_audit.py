"""What a TFLite file stores, and what it computes in which type."""

from __future__ import annotations

from collections.abc import Iterator
from math import prod
from typing import TYPE_CHECKING, Any

from tinyvit_edge.exporters import Audit, Product
from tinyvit_edge.exporters._conversions import Role, Step, conversions
from tinyvit_edge.exporters._tflite_file import (
    MOVEMENT,
    TYPE,
    constant,
    operator_name,
    shape_of,
    type_name,
)

if TYPE_CHECKING:
    from tinyvit_edge.precision import ProductKind

__all__ = ["audit"]

_KINDS: dict[str, ProductKind] = {
    "BATCH_MATMUL": "attention",
    "CONV_2D": "conv",
    "DEPTHWISE_CONV_2D": "conv",
    "FULLY_CONNECTED": "linear",
}


def audit(model: Any) -> Audit:
    """Count constants' bytes, and multiply-accumulates and conversions by type.

    Scales and zero points are attributes of tensors, not constants: int8 bytes are weights'.
    """
    graph = model.subgraphs[0]
    sizes = {
        tensor.buffer: (type_name(tensor), len(model.buffers[tensor.buffer].data))
        for tensor in graph.tensors
        if constant(model, tensor) is not None
    }
    weight_bytes: dict[str, int] = {}
    for dtype, size in sizes.values():
        weight_bytes[dtype] = weight_bytes.get(dtype, 0) + size
    return Audit.of(
        (product for operator in graph.operators if (product := _product(model, operator))),
        weight_bytes=weight_bytes,
        conversions=conversions(
            _steps(model),
            constants={
                index
                for index, tensor in enumerate(graph.tensors)
                if constant(model, tensor) is not None
            },
        ),
    )


def _product(model: Any, operator: Any) -> Product | None:
    """What an operator multiplies, and in which type; None if it is no product.

    A kernel whose weight is int8 quantizes a float input itself, at run time.
    """
    name = operator_name(model, operator)
    if name not in _KINDS:
        return None
    tensors = model.subgraphs[0].tensors
    left, right = (tensors[index] for index in operator.inputs[:2])
    result = tensors[operator.outputs[0]]
    if name == "BATCH_MATMUL":
        depth = shape_of(left)[-2 if operator.builtinOptions.adjX else -1]
    elif name == "DEPTHWISE_CONV_2D":
        depth = prod(shape_of(right)[1:3])  # (1, kh, kw, C)
    else:
        depth = prod(shape_of(right)[1:])  # (out, kh, kw, in) or (out, in)
    integer = right.type == TYPE.INT8 and left.type == result.type
    return Product(
        kind=_KINDS[name],
        macs=prod(shape_of(result)) * depth,
        dtype="int8" if integer else type_name(result),
    )


def _steps(model: Any) -> Iterator[Step]:
    """What operators do to int8 activations."""
    graph = model.subgraphs[0]
    for operator in graph.operators:
        if not len(operator.inputs):
            continue
        name = operator_name(model, operator)
        source, result = int(operator.inputs[0]), int(operator.outputs[0])
        tensor = graph.tensors[source]
        role: Role
        product = _product(model, operator)
        if name == "QUANTIZE":
            role = "quantize"
        elif tensor.type != TYPE.INT8:
            continue
        elif product is not None and product.dtype == "int8":
            role = "layer"
        elif name == "DEQUANTIZE":
            role = "dequantize"
        elif name in MOVEMENT:
            role = "move"
        else:
            continue
        sources = operator.inputs.tolist() if name == "CONCATENATION" else [source]
        yield from (Step(role=role, source=one, result=result) for one in sources)
