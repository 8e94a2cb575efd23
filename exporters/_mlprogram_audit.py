"""What a loaded ML program stores and computes in which type."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass

from tinyvit_edge.exporters._mlprogram import MlProgram, Operation

__all__ = ["Product", "products"]

_EIGHT_BITS = ("int8", "uint8")


@dataclass(frozen=True, slots=True, kw_only=True)
class Product:
    """One convolution, Linear layer or attention product."""

    name: str
    type: str
    macs: int
    weight_dtype: str | None
    """Storage type of the weight; None for a product of two activations."""
    int8: bool
    """Whether both operands come straight from 8-bit values."""


def products(program: MlProgram) -> Iterator[Product]:
    """List a program's products, in order."""
    int8 = {name for name, dtype in program.stored.items() if dtype in _EIGHT_BITS}
    for operation in program.operations:
        names = {key: name for key, name in operation.arguments.items() if isinstance(name, str)}
        if operation.type == "dequantize":
            source = program.types[names["input"]]
            if source is not None and source.dtype in _EIGHT_BITS:
                int8.update(operation.outputs)
        elif operation.type in _MACS:
            left, right = _OPERANDS[operation.type]
            yield Product(
                name=operation.name,
                type=operation.type,
                macs=_MACS[operation.type](program, operation, names),
                weight_dtype=program.stored.get(names[right]),
                int8=names[left] in int8 and names[right] in int8,
            )


def _shape(program: MlProgram, name: str) -> tuple[int, ...]:
    declared = program.types[name]
    assert declared is not None
    return declared.shape


def _weighted(program: MlProgram, operation: Operation, names: dict[str, str]) -> int:
    outputs = math.prod(_shape(program, operation.name))
    return outputs * math.prod(_shape(program, names["weight"])[1:])


def _matmul(program: MlProgram, operation: Operation, names: dict[str, str]) -> int:
    transposed = "transpose_x" in names and bool(program.constants[names["transpose_x"]])
    inner = _shape(program, names["x"])[-2 if transposed else -1]
    return math.prod(_shape(program, operation.name)) * inner


def _attention(program: MlProgram, operation: Operation, names: dict[str, str]) -> int:
    *batch, queries, depth = _shape(program, names["query"])
    keys, width = _shape(program, names["value"])[-2:]
    return math.prod(batch) * queries * keys * (depth + width)


_MACS = {
    "conv": _weighted,
    "linear": _weighted,
    "matmul": _matmul,
    "scaled_dot_product_attention": _attention,
}
_OPERANDS = {
    "conv": ("x", "weight"),
    "linear": ("x", "weight"),
    "matmul": ("x", "y"),
    "scaled_dot_product_attention": ("query", "key"),
}
