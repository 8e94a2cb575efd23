"""New operators, and constants that become results, in a TFLite model object."""

from __future__ import annotations

import copy
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import numpy as np
from ai_edge_litert import schema_py_generated as schema
from numpy.typing import NDArray

from tinyvit_edge.attention import MOST_JOINED, in_batches
from tinyvit_edge.exporters._tflite_file import TYPE, operator_name

__all__ = [
    "join_in_steps",
    "like",
    "make_int8",
    "new_operator",
    "opcode",
    "run_before_readers",
    "run_first",
    "stored_apart",
]


def new_operator(
    model: Any, code: int, inputs: int | Iterable[int], output: int, version: int = 1
) -> Any:
    """An operator between tensors, which is not in the graph yet.

    Args:
        model: gets the operator's code where it lacks it.
        code: of ``schema.BuiltinOperator``.
        inputs: indices of tensors.
        output: index of a tensor.
        version: the operator's lowest.
    """
    operator = schema.OperatorT()
    operator.opcodeIndex = opcode(model, code, version)
    operator.inputs = np.array([inputs] if isinstance(inputs, int) else [*inputs], np.int32)
    operator.outputs = np.array([output], np.int32)
    return operator


def opcode(model: Any, code: int, version: int) -> int:
    """Index of an operator code of a version, or a later one; added where there is none."""
    for index, known in enumerate(model.operatorCodes):
        same = max(known.builtinCode, known.deprecatedBuiltinCode) == code
        if same and known.version >= version:
            return index
    added = schema.OperatorCodeT()
    added.builtinCode, added.version = code, version
    added.deprecatedBuiltinCode = min(code, 127)
    model.operatorCodes.append(added)
    return len(model.operatorCodes) - 1


def like(model: Any, index: int, shape: Sequence[int], suffix: bytes) -> int:
    """Add a tensor of another's type and scale, and give its index."""
    tensors = model.subgraphs[0].tensors
    made = copy.copy(tensors[index])
    made.shape, made.shapeSignature, made.buffer = np.array(shape, np.int32), None, 0
    made.name += suffix
    tensors.append(made)
    return len(tensors) - 1


def stored_apart(model: Any, index: int, suffix: bytes, version: int) -> tuple[Any, Any]:
    """Make a constant the result of a DEQUANTIZE.

    Returns:
        The tensor that will hold what is stored, and the operator.
    """
    tensors = model.subgraphs[0].tensors
    stored = copy.copy(tensors[index])
    stored.name += suffix
    tensors[index].buffer = 0
    tensors.append(stored)
    dequantize = schema.BuiltinOperator.DEQUANTIZE
    return stored, new_operator(model, dequantize, len(tensors) - 1, index, version)


def make_int8(tensor: Any, scale: NDArray[np.float32], *, axis: int = 0) -> None:
    """Give a tensor the type int8, symmetric; scales (n,) are along an axis where n is not 1."""
    tensor.type, tensor.quantization = TYPE.INT8, schema.QuantizationParametersT()
    tensor.quantization.scale = scale
    tensor.quantization.zeroPoint = np.zeros(len(scale), np.int64)
    tensor.quantization.quantizedDimension = axis


def run_first(model: Any, operators: Iterable[Any]) -> None:
    """Put operators before all others."""
    graph = model.subgraphs[0]
    graph.operators = [*operators, *graph.operators]


def run_before_readers(model: Any, index: int, operators: Iterable[Any]) -> None:
    """Put operators before the first that reads a tensor, so that it is not held for long."""
    graph = model.subgraphs[0]
    place = next(
        place for place, operator in enumerate(graph.operators) if index in operator.inputs
    )
    graph.operators[place:place] = operators


def join_in_steps(model: Any) -> None:
    """Cut every CONCATENATION of more tensors than XNNPACK takes into several.

    LiteRT would run it itself, between two parts of the graph. The converter makes one of several,
    so that it must be done here.
    """
    graph = model.subgraphs[0]
    graph.operators = [
        step
        for operator in graph.operators
        for step in (
            _steps(model, operator)
            if operator_name(model, operator) == "CONCATENATION"
            else (operator,)
        )
    ]


def _steps(model: Any, operator: Any) -> Iterator[Any]:
    tensors, axis = model.subgraphs[0].tensors, operator.builtinOptions.axis
    parts = [int(part) for part in operator.inputs]
    while len(parts) > MOST_JOINED:
        joined = []
        for batch in in_batches(parts, MOST_JOINED):
            if len(batch) == 1:
                joined += batch
                continue
            shape = [int(size) for size in tensors[batch[0]].shape]
            shape[axis] = sum(int(tensors[part].shape[axis]) for part in batch)
            joined.append(like(model, batch[0], shape, b"_joined"))
            step = copy.copy(operator)
            step.inputs = np.array(batch, np.int32)
            step.outputs = np.array(joined[-1:], np.int32)
            yield step
        parts = joined
    operator.inputs = np.array(parts, np.int32)
    yield operator
