"""Attention biases of a TFLite model in int8, put together from strips and widened.

The converter sees them as expanded float constants, for it would fold the rest. So each is found
by its value in the converted model, and becomes the result of the operators that make it.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from ai_edge_litert import schema_py_generated as schema
from numpy.typing import NDArray

from tinyvit_edge.errors import ConversionError
from tinyvit_edge.exporters._tflite_edit import (
    like,
    make_int8,
    new_operator,
    run_before_readers,
    stored_apart,
)
from tinyvit_edge.exporters._tflite_file import TYPE, add_buffer

__all__ = ["Table", "store_tables"]

_OP = schema.BuiltinOperator
_DEQUANTIZE_INT8 = 2
_MOVEMENT_INT8 = 2  # the version of SLICE and of CONCATENATION that takes it
_PARTS_AXIS = 1


@dataclass(frozen=True, slots=True, kw_only=True)
class Table:
    """Attention biases of some heads."""

    real: NDArray[np.float32]
    """(heads, N, N): what the converted model holds, bit for bit."""
    integers: NDArray[np.int8]
    """What to store: a strip (heads, rows, columns), or as `real`."""
    scale: float
    columns: tuple[slice, ...]
    """Where each part of `real` is in the strip; one part where it is none."""


def store_tables(model: Any, tables: Mapping[str, Table]) -> None:
    """Store tables as their integers.

    Args:
        model: a converted model; it is changed.
        tables: by name.

    Raises:
        ConversionError: a table is not in the file.
    """
    distinct = {table.real.tobytes(): (name, table) for name, table in tables.items()}
    tensors = model.subgraphs[0].tensors
    for value, (name, table) in distinct.items():
        places = [
            index
            for index, tensor in enumerate(tensors)
            if (data := model.buffers[tensor.buffer].data) is not None and data.tobytes() == value
        ]
        if not places:
            raise ConversionError(
                f"{name}: its table is not in the TFLite converter's graph as it was, so that it "
                "cannot be stored as int8; report this model, or export onnx"
            )
        for index in places:
            stored, dequantize = stored_apart(model, index, b"_int8", _DEQUANTIZE_INT8)
            make_int8(stored, np.array([table.scale], np.float32))
            made = [*_put_together(model, len(tensors) - 1, table), dequantize]
            run_before_readers(model, index, made)


def _put_together(model: Any, index: int, table: Table) -> list[Any]:
    """Give a tensor its values; the operators that put them together are returned."""
    tensors = model.subgraphs[0].tensors
    buffer = add_buffer(model, table.integers.tobytes())
    if len(table.columns) == 1:
        tensors[index].buffer = buffer
        return []
    tensors[index].buffer = 0
    strip = like(model, index, table.integers.shape, b"_strip")
    tensors[strip].buffer = buffer
    heads, rows, _ = table.integers.shape
    shape = (heads, rows, table.real.shape[2])
    size = _integers(model, shape)
    parts, operators = [], []
    for number, columns in enumerate(table.columns):
        begin = _integers(model, (0, 0, columns.start))
        parts.append(like(model, index, shape, b"_part_%d" % number))
        operators.append(
            new_operator(model, _OP.SLICE, (strip, begin, size), parts[-1], _MOVEMENT_INT8)
        )
        operators[-1].builtinOptionsType = schema.BuiltinOptions.SliceOptions
        operators[-1].builtinOptions = schema.SliceOptionsT()
    joined = new_operator(model, _OP.CONCATENATION, parts, index, _MOVEMENT_INT8)
    joined.builtinOptionsType = schema.BuiltinOptions.ConcatenationOptions
    joined.builtinOptions = schema.ConcatenationOptionsT()
    joined.builtinOptions.axis = _PARTS_AXIS
    return [*operators, joined]


def _integers(model: Any, values: tuple[int, ...]) -> int:
    """Add a constant (n,) int32, and give its index."""
    tensor = schema.TensorT()
    content = np.array(values, np.int32)
    tensor.shape, tensor.type = np.array(content.shape, np.int32), TYPE.INT32
    tensor.buffer, tensor.name = add_buffer(model, content.tobytes()), b"%d_%d_%d" % values
    tensors = model.subgraphs[0].tensors
    tensors.append(tensor)
    return len(tensors) - 1
