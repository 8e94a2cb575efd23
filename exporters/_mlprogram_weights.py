"""Constants of a saved ML program: immediate values, ``weight.bin`` blobs, compressed weights.

Storage follows coremltools' MILBlob: a 64-byte file header, then one 64-byte record a blob (u32
sentinel, u32 type code, u64 bytes, u64 offset of the data, u64 padding bits), little-endian.
Elements narrower than a byte are packed with the least significant bit first. The ``constexpr``
operators follow the operator reference of coremltools 9.0 (iOS16 and iOS18 forms); they run
once, when a program is loaded.
"""

from __future__ import annotations

import math
import struct
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

__all__ = [
    "CONSTEXPR",
    "DTYPES",
    "SHORT_NAMES",
    "Constant",
    "Constants",
    "FormatError",
    "TensorType",
    "constant_bytes",
    "tensor_type",
]

Array = NDArray[Any]
Constant = Array | str | list[str]

_SENTINEL = 0xDEADBEEF
_RECORD = struct.Struct("<IIQQQ")


class FormatError(Exception):
    """What is read is not what the format says; the caller adds the package's name."""


@dataclass(frozen=True, slots=True, kw_only=True)
class DType:
    """How one MIL data type is stored."""

    numpy: type[np.generic]
    bits: int
    blob_code: int | None = None
    """Type code in ``weight.bin``; None where the format keeps no such blobs."""

    @property
    def signed(self) -> bool:
        """Whether packed elements carry a sign."""
        return issubclass(self.numpy, np.signedinteger)


DTYPES: Mapping[str, DType] = {
    "bool": DType(numpy=np.bool_, bits=8),
    "string": DType(numpy=np.str_, bits=8),
    "float16": DType(numpy=np.float16, bits=16, blob_code=1),
    "float32": DType(numpy=np.float32, bits=32, blob_code=2),
    "float64": DType(numpy=np.float64, bits=64),
    "uint8": DType(numpy=np.uint8, bits=8, blob_code=3),
    "int8": DType(numpy=np.int8, bits=8, blob_code=4),
    "int16": DType(numpy=np.int16, bits=16, blob_code=6),
    "uint16": DType(numpy=np.uint16, bits=16, blob_code=7),
    "int4": DType(numpy=np.int8, bits=4, blob_code=8),
    "uint1": DType(numpy=np.uint8, bits=1, blob_code=9),
    "uint2": DType(numpy=np.uint8, bits=2, blob_code=10),
    "uint4": DType(numpy=np.uint8, bits=4, blob_code=11),
    "uint3": DType(numpy=np.uint8, bits=3, blob_code=12),
    "uint6": DType(numpy=np.uint8, bits=6, blob_code=13),
    "int32": DType(numpy=np.int32, bits=32, blob_code=14),
    "uint32": DType(numpy=np.uint32, bits=32, blob_code=15),
    "int64": DType(numpy=np.int64, bits=64),
}

SHORT_NAMES = {"fp16": "float16", "fp32": "float32"}
"""Names that operators' string parameters use, where they differ from the type's own."""


@dataclass(frozen=True, slots=True)
class TensorType:
    """Declared type of one tensor."""

    dtype: str
    shape: tuple[int, ...]

    @property
    def size(self) -> int:
        """Number of elements."""
        return math.prod(self.shape)


def tensor_type(value_type: Any, dtype_name: Callable[[int], str]) -> TensorType:
    """Read a MILSpec ``ValueType`` that must be a tensor of static shape.

    Args:
        value_type: the protobuf message.
        dtype_name: ``MIL_pb2.DataType.Name``.

    Raises:
        FormatError: not a tensor, an unknown dtype, or a dimension that is not constant.
    """
    kind = value_type.WhichOneof("type")
    if kind != "tensorType":
        raise FormatError(f"a value of kind {kind} where a tensor was expected")
    tensor = value_type.tensorType
    dtype = dtype_name(tensor.dataType).lower()
    if dtype not in DTYPES:
        raise FormatError(f"data type {dtype}")
    if any(not dim.HasField("constant") for dim in tensor.dimensions):
        raise FormatError("a flexible shape")
    return TensorType(dtype, tuple(dim.constant.size for dim in tensor.dimensions))


class Constants:
    """Reads the constants of one program."""

    def __init__(self, folder: Path, dtype_name: Callable[[int], str]) -> None:
        """Args:
        folder: the folder of ``model.mlmodel``, which blob names start from.
        dtype_name: ``MIL_pb2.DataType.Name``.
        """
        self._folder = folder.resolve()
        self._dtype_name = dtype_name
        self._files: dict[str, bytes] = {}

    def read(self, value: Any) -> Constant:
        """Read a MILSpec ``Value``: an array of the declared shape, a string, or strings.

        Elements narrower than a byte come as uint8 or int8.

        Raises:
            FormatError: the value disagrees with its declared type, or its blob is damaged.
        """
        immediate = value.immediateValue
        if value.type.WhichOneof("type") == "listType":
            return [item.immediateValue.tensor.strings.values[0] for item in immediate.list.values]
        declared = tensor_type(value.type, self._dtype_name)
        if value.WhichOneof("value") == "blobFileValue":
            return self._blob(value.blobFileValue, declared)
        field = immediate.tensor.WhichOneof("value")
        values = getattr(immediate.tensor, field).values
        if field == "strings":
            return str(values[0]) if declared.shape == () else [str(item) for item in values]
        if field == "bytes":
            return _decode(values, declared)
        array = np.asarray(values, DTYPES[declared.dtype].numpy)
        if array.size != declared.size:
            raise FormatError(f"{array.size} values for a tensor of shape {declared.shape}")
        return array.reshape(declared.shape)

    def _blob(self, reference: Any, declared: TensorType) -> Array:
        content = self._file(reference.fileName)
        if reference.offset + _RECORD.size > len(content):
            raise FormatError(f"a blob beyond the end of {reference.fileName}")
        sentinel, code, size, start, _ = _RECORD.unpack_from(content, reference.offset)
        row = DTYPES[declared.dtype]
        if sentinel != _SENTINEL or code != row.blob_code or start + size > len(content):
            raise FormatError(
                f"no {declared.dtype} blob at offset {reference.offset} of {reference.fileName}"
            )
        return _decode(content[start : start + size], declared)

    def _file(self, name: str) -> bytes:
        if name not in self._files:
            path = (self._folder / name.removeprefix("@model_path/")).resolve()
            if not path.is_relative_to(self._folder) or not path.is_file():
                raise FormatError(f"weights file {name} is missing")
            self._files[name] = path.read_bytes()
        return self._files[name]


def constant_bytes(declared: TensorType) -> int:
    """Bytes that a constant of this type takes in the file."""
    return math.ceil(declared.size * DTYPES[declared.dtype].bits / 8)


def _decode(content: bytes, declared: TensorType) -> Array:
    row = DTYPES[declared.dtype]
    if len(content) < constant_bytes(declared):
        raise FormatError(f"{len(content)} bytes for a {declared.dtype} of {declared.shape}")
    if row.bits < 8:
        packed = np.frombuffer(content, np.uint8)
        return _unpack(packed, row.bits, declared.size, row.signed).reshape(declared.shape)
    return np.frombuffer(content, row.numpy, declared.size).reshape(declared.shape)


def _unpack(packed: Array, bits: int, count: int, signed: bool = False) -> Array:
    """Bytes to `count` integers of `bits` bits, the least significant bit first."""
    stream = np.unpackbits(packed.view(np.uint8), bitorder="little")[: bits * count]
    digits = stream.reshape(count, bits).astype(np.int16)  # (count, bits)
    place = 1 << np.arange(bits, dtype=np.int16)
    if signed:
        place[-1] = -place[-1]  # two's complement
    return (digits @ place).astype(np.int8 if signed else np.uint8)


def _along(axis: Array, parameter: Array, rank: int) -> Array:
    """Shape a scalar or vector to broadcast along one axis of a tensor of this rank."""
    if parameter.ndim == 0:
        return parameter
    shape = [1] * rank
    shape[int(axis)] = -1
    return parameter.reshape(shape)


def _blockwise(parameter: Array, shape: tuple[int, ...]) -> Array:
    """Repeat a parameter over the blocks of a tensor of this shape."""
    for axis, (count, size) in enumerate(zip(parameter.shape, shape, strict=True)):
        parameter = np.repeat(parameter, size // count, axis)
    return parameter


def _affine_dequantize(
    quantized_data: Array, zero_point: Array, scale: Array, axis: Array
) -> Array:
    rank = quantized_data.ndim
    shifted = quantized_data.astype(np.float32) - _along(axis, zero_point, rank).astype(np.float32)
    out: Array = (shifted * _along(axis, scale, rank).astype(np.float32)).astype(scale.dtype)
    return out


def _cast(source_val: Array, output_dtype: str) -> Array:
    return source_val.astype(DTYPES[SHORT_NAMES[output_dtype]].numpy)


def _shift_scale(data: Array, scale: Array, offset: Array | None = None) -> Array:
    values = data.astype(np.float32)
    if offset is not None:
        values = values - _blockwise(offset, data.shape).astype(np.float32)
    out: Array = (values * _blockwise(scale, data.shape).astype(np.float32)).astype(scale.dtype)
    return out


def _lut_to_dense(
    indices: Array, lut: Array, shape: Array | None = None, vector_axis: Array | None = None
) -> Array:
    if shape is not None:  # iOS16: packed bytes and one table
        count = int(np.prod(shape))
        bits = int(math.log2(lut.size))
        flat: Array = lut[_unpack(indices, bits, count)]
        return flat.reshape(tuple(int(size) for size in shape))
    *groups, palettes, vector = lut.shape
    group = np.zeros(indices.shape, np.intp)  # which table each element reads
    for axis, (count, size) in enumerate(zip(groups, indices.shape, strict=True)):
        group = group * count + _along(np.array(axis), np.arange(size) * count // size, len(groups))
    picked = lut.reshape(-1, palettes, vector)[group, indices]  # (*indices.shape, vector)
    if vector == 1:
        return picked[..., 0]
    if vector_axis is None:
        raise FormatError("a vector look-up table without vector_axis")
    axis = int(vector_axis) % indices.ndim
    expanded = list(indices.shape)
    expanded[axis] *= vector
    return np.moveaxis(picked, -1, axis + 1).reshape(expanded)


def _sparse_to_dense(nonzero_data: Array, mask: Array, shape: Array | None = None) -> Array:
    if shape is not None:  # iOS16: packed bits
        size = tuple(int(item) for item in shape)
        mask = _unpack(mask, 1, math.prod(size)).reshape(size)
    dense: Array = np.zeros(mask.shape, nonzero_data.dtype)
    dense[mask != 0] = nonzero_data
    return dense


def _lut_to_sparse(
    indices_mask: Array,
    indices_nonzero_data: Array,
    lut: Array,
    vector_axis: Array | None = None,
) -> tuple[Array, Array]:
    indices = _sparse_to_dense(indices_nonzero_data, indices_mask)
    dense = _lut_to_dense(indices, lut, vector_axis=vector_axis)
    mask = indices_mask
    if lut.shape[-1] > 1 and vector_axis is not None:
        mask = np.repeat(mask, lut.shape[-1], int(vector_axis))
    return mask, dense[mask != 0]


def _sparse_shift_scale(
    data_mask: Array, nonzero_data: Array, scale: Array, offset: Array | None = None
) -> tuple[Array, Array]:
    dense = _shift_scale(_sparse_to_dense(nonzero_data, data_mask), scale, offset)
    return data_mask, dense[data_mask != 0]


CONSTEXPR: Mapping[str, Callable[..., Array | tuple[Array, Array]]] = {
    "constexpr_affine_dequantize": _affine_dequantize,
    "constexpr_blockwise_shift_scale": _shift_scale,
    "constexpr_cast": _cast,
    "constexpr_lut_to_dense": _lut_to_dense,
    "constexpr_lut_to_sparse": _lut_to_sparse,
    "constexpr_sparse_blockwise_shift_scale": _sparse_shift_scale,
    "constexpr_sparse_to_dense": _sparse_to_dense,
}
"""Operator -> function of its parameters by name."""
