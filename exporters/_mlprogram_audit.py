"""What a loaded ML program stores and computes in which type."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING

from tinyvit_edge.exporters import Audit
from tinyvit_edge.exporters import Product as Counted
from tinyvit_edge.exporters._conversions import Role, Step, conversions
from tinyvit_edge.exporters._mlprogram import MlProgram, Operation

if TYPE_CHECKING:
    from tinyvit_edge.precision import ProductKind

__all__ = ["Product", "audit", "products"]

_EIGHT_BITS = ("int8", "uint8")
_MOVEMENT = ("expand_dims", "pad", "reshape", "slice_by_index", "squeeze", "transpose")


@dataclass(frozen=True, slots=True, kw_only=True)
class Product:
    """One convolution, Linear layer or attention product."""

    name: str
    type: str
    macs: int
    weight_dtype: str | None
    """Storage type of the weight; None for a product of two activations."""
    int8: bool
    """Whether both operands come straight from 8-bit values, and the result goes into some."""


def audit(program: MlProgram) -> Audit:
    """Audit a loaded program."""
    found = tuple(products(program))
    layers = {product.name for product in found if product.int8}
    steps = [step for item in program.operations if (step := _step(program, item, layers))]
    results = {step.result for step in steps}
    floats = {
        name for item in program.operations if item.name not in results for name in item.operands()
    }
    return Audit.of(
        (_counted(program, product) for product in found),
        weight_bytes=program.stored_bytes,
        conversions=conversions(steps, floats=floats | {*program.outputs}, folds=True),
    )


def products(program: MlProgram) -> Iterator[Product]:
    """List a program's products, in order."""
    int8 = {name for name, dtype in program.stored.items() if dtype in _EIGHT_BITS}
    rounded = _rounded(program)
    for operation in program.operations:
        names = _names(operation)
        if operation.type == "dequantize":
            source = program.types[names["input"]]
            if source is not None and source.dtype in _EIGHT_BITS:
                int8.update(operation.outputs)
        elif operation.type in _MACS:
            left, right = _OPERANDS[operation.type]
            operands = names[left] in int8 and names[right] in int8
            yield Product(
                name=operation.name,
                type=operation.type,
                macs=_MACS[operation.type](program, operation, names),
                weight_dtype=program.stored.get(names[right]),
                int8=operands and operation.name in rounded,
            )


def _names(operation: Operation) -> dict[str, str]:
    return {key: name for key, name in operation.arguments.items() if isinstance(name, str)}


def _rounded(program: MlProgram) -> set[str]:
    """Values that are read to be quantized, and for nothing else."""
    read: set[str] = set()
    otherwise = {*program.outputs}
    for operation in program.operations:
        (read if operation.type == "quantize" else otherwise).update(operation.operands())
    return read - otherwise


def _counted(program: MlProgram, product: Product) -> Counted:
    declared = program.types[product.name]
    assert declared is not None
    return Counted(
        kind="attention" if product.weight_dtype is None else _KINDS[product.type],
        macs=product.macs,
        dtype="int8" if product.int8 else str(declared.dtype),
    )


def _step(program: MlProgram, operation: Operation, layers: set[str]) -> Step | None:
    """What an operator does to 8-bit activations; None if nothing."""
    names = _names(operation)
    source = names.get("input") or names.get("x")
    if source is None or source in program.stored:
        return None
    declared = program.types[source]
    role: Role
    if operation.name in layers:
        role = "layer"
    elif operation.type == "quantize":
        role = "quantize"
    elif operation.type == "dequantize":
        role = "dequantize"
    elif operation.type in _MOVEMENT and declared is not None and declared.dtype in _EIGHT_BITS:
        role = "move"
    else:
        return None
    return Step(role=role, source=source, result=operation.name)


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
_KINDS: dict[str, ProductKind] = {
    "conv": "conv",
    "linear": "linear",
    "matmul": "linear",
    "scaled_dot_product_attention": "attention",
}
_OPERANDS = {
    "conv": ("x", "weight"),
    "linear": ("x", "weight"),
    "matmul": ("x", "y"),
    "scaled_dot_product_attention": ("query", "key"),
}
