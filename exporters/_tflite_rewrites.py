"""Rewrites of a converted TFLite model, before the one write: each edits the object in place."""

from __future__ import annotations

import copy
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from ai_edge_litert import schema_py_generated as schema
from numpy.typing import NDArray

from tinyvit_edge.errors import ConversionError
from tinyvit_edge.exporters._tflite_edit import (
    make_int8,
    new_operator,
    opcode,
    run_first,
    stored_apart,
)
from tinyvit_edge.exporters._tflite_file import (
    KERNELS,
    MOVEMENT,
    TYPE,
    add_buffer,
    constant,
    operator_name,
)

__all__ = [
    "IntegerWeight",
    "quantize_fully_connected",
    "restore_float_compute",
    "restore_float_io",
    "store_half",
    "store_int8",
]

_OP = schema.BuiltinOperator
_CONVERSIONS = frozenset({"QUANTIZE", "DEQUANTIZE"})
# The op versions that first take these types (tensorflow/lite/tools/versioning/op_version.cc): a
# runtime that is too old refuses the file, where it would otherwise compute nonsense.
_DEQUANTIZE_INT8, _DEQUANTIZE_HALF, _DEQUANTIZE_CHANNELS = 2, 3, 5
# integer types of inputs and outputs, with the versions of QUANTIZE and DEQUANTIZE that know them
_INTEGER_IO = ((TYPE.INT8, 1, _DEQUANTIZE_INT8), (TYPE.INT16, 2, 3))
_HYBRID_PER_CHANNEL = 12


@dataclass(frozen=True, slots=True, kw_only=True)
class IntegerWeight:
    """A layer's weight in the order of the file."""

    real: NDArray[np.float32]
    """What the float file holds, bit for bit."""
    integers: NDArray[np.int8]
    """Of the same shape."""
    scale: NDArray[np.float32]
    """(out,)."""
    axis: int
    """That `scale` is along."""


def quantize_fully_connected(model: Any, weights: Mapping[str, IntegerWeight]) -> None:
    """Store FULLY_CONNECTED weights as int8, so that the kernel quantizes its input at run time.

    Args:
        model: a float model; it is changed.
        weights: by layer.

    Raises:
        ConversionError: a layer's weight is not in the file.
    """
    tensors = model.subgraphs[0].tensors
    for operator, weight in _users(model, weights, frozenset({"FULLY_CONNECTED"})):
        _make_int8(model, tensors[operator.inputs[1]], weight)
        # for kernels outside the delegate, whose own default is symmetric
        operator.builtinOptions.asymmetricQuantizeInputs = True
        operator.opcodeIndex = opcode(model, _OP.FULLY_CONNECTED, _HYBRID_PER_CHANNEL)


def store_int8(model: Any, weights: Mapping[str, IntegerWeight]) -> None:
    """Store kernels' weights as int8, widened by a DEQUANTIZE, for arithmetic in float.

    Args:
        model: a float model; it is changed.
        weights: by layer.

    Raises:
        ConversionError: a layer's weight is not in the file.
    """
    widened = {}
    for operator, weight in _users(model, weights, KERNELS):
        index = int(operator.inputs[1])
        if index not in widened:
            stored, widened[index] = stored_apart(model, index, b"_int8", _DEQUANTIZE_CHANNELS)
            _make_int8(model, stored, weight)
    run_first(model, widened.values())


def _users(
    model: Any, weights: Mapping[str, IntegerWeight], kernels: frozenset[str]
) -> list[tuple[Any, IntegerWeight]]:
    """The operators of some kinds that read each weight."""
    graph = model.subgraphs[0]
    by_value: dict[bytes, list[Any]] = {}
    for operator in graph.operators:
        if operator_name(model, operator) in kernels:
            data = model.buffers[graph.tensors[operator.inputs[1]].buffer].data
            by_value.setdefault(b"" if data is None else data.tobytes(), []).append(operator)
    found = []
    for name, weight in weights.items():
        operators = by_value.get(weight.real.tobytes())
        if not operators:
            raise ConversionError(
                f"layer {name}: its weight is not in the TFLite converter's graph as it was, so "
                "that it cannot be stored as int8; report this model, or export w8a8"
            )
        found += [(operator, weight) for operator in operators]
    return found


def _make_int8(model: Any, tensor: Any, weight: IntegerWeight) -> None:
    tensor.buffer = add_buffer(model, weight.integers.tobytes())
    make_int8(tensor, weight.scale, axis=weight.axis)


def store_half(model: Any) -> None:
    """Store float32 constants as float16, widened by a DEQUANTIZE that delegates fold away.

    Scalars (an epsilon) stay float32.

    Raises:
        ConversionError: a value that float16 does not hold exactly.
    """
    widened = []
    for index, tensor in enumerate(list(model.subgraphs[0].tensors)):
        values = constant(model, tensor)
        if values is None or tensor.type != TYPE.FLOAT32 or values.size == 1:
            continue
        half = values.astype(np.float16)
        if not np.array_equal(half.astype(np.float32), values):
            raise ConversionError(
                f"the TFLite converter moved constant {tensor.name.decode()} off the float16 grid"
            )
        stored, operator = stored_apart(model, index, b"_half", _DEQUANTIZE_HALF)
        stored.type, stored.buffer = TYPE.FLOAT16, add_buffer(model, half.tobytes())
        widened.append(operator)
    run_first(model, widened)


def restore_float_compute(model: Any) -> None:
    """Give operators that the converter made int8 without being asked their float form back.

    The converter also quantizes a GELU or an add that stands between two quantized layers. The
    recipes keep those float, as the reference does, and XNNPACK runs no int8 GELU.
    """
    graph = model.subgraphs[0]
    operators = []
    for operator in graph.operators:
        if operator_name(model, operator) in KERNELS | MOVEMENT | _CONVERSIONS:
            operators.append(operator)
            continue
        before, after = [], []
        for position, index in _of_type(graph, operator.inputs, TYPE.INT8):
            operator.inputs[position] = real = _float_twin(graph, index)
            before.append(new_operator(model, _OP.DEQUANTIZE, index, real, _DEQUANTIZE_INT8))
        for position, index in _of_type(graph, operator.outputs, TYPE.INT8):
            operator.outputs[position] = real = _float_twin(graph, index)
            after.append(new_operator(model, _OP.QUANTIZE, real, index))
        operators += [*before, operator, *after]
    graph.operators = operators


def restore_float_io(model: Any) -> None:
    """Make an integer input and output float32, by a QUANTIZE before and a DEQUANTIZE after."""
    graph, signature = model.subgraphs[0], model.signatureDefs[0]
    for type_, quantize, dequantize in _INTEGER_IO:
        for position, index in _of_type(graph, graph.inputs, type_):
            graph.inputs[position] = real = _float_twin(graph, index)
            signature.inputs[position].tensorIndex = real
            graph.operators.insert(0, new_operator(model, _OP.QUANTIZE, real, index, quantize))
        for position, index in _of_type(graph, graph.outputs, type_):
            graph.outputs[position] = real = _float_twin(graph, index)
            signature.outputs[position].tensorIndex = real
            graph.operators.append(new_operator(model, _OP.DEQUANTIZE, index, real, dequantize))


def _of_type(graph: Any, indices: NDArray[Any], type_: int) -> Iterator[tuple[int, int]]:
    """Positions and indices of the tensors of a type among some (-1: an absent optional one)."""
    for position, index in enumerate(indices.tolist()):
        if index >= 0 and graph.tensors[index].type == type_:
            yield position, index


def _float_twin(graph: Any, index: int) -> int:
    """Add a float32 tensor of the same shape as another and return its index."""
    tensor = copy.copy(graph.tensors[index])
    tensor.type, tensor.quantization, tensor.buffer = TYPE.FLOAT32, None, 0
    tensor.name += b"_float"
    graph.tensors.append(tensor)
    return len(graph.tensors) - 1
