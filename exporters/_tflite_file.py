"""A TFLite file as an object: reading, rewriting and measuring its flatbuffer.

The schema is the runtime's own (``ai_edge_litert.schema_py_generated``). A rewrite edits the
object in place, before the one write.
"""

from __future__ import annotations

import copy
import json
import re
from collections.abc import Iterator, Mapping
from math import prod
from pathlib import Path
from typing import Any

import flatbuffers  # type: ignore[import-untyped,unused-ignore]
import numpy as np
from ai_edge_litert import schema_py_generated as schema
from numpy.typing import NDArray

from tinyvit_edge.errors import ConversionError, InputError
from tinyvit_edge.exporters import Audit

__all__ = [
    "audit",
    "constant",
    "integer_weights",
    "largest_rank",
    "name_tensors",
    "operator_name",
    "parse",
    "quantize_fully_connected",
    "read",
    "read_metadata",
    "restore_float_compute",
    "restore_float_io",
    "serialise",
    "store_half",
    "write_metadata",
]

_IDENTIFIER = b"TFL3"
_ALIGNMENT = 16  # of constants, as the schema demands
_METADATA = b"tinyvit_edge"
_OPERATORS = {code: name for name, code in vars(schema.BuiltinOperator).items() if name.isupper()}
_TYPES = {code: name.lower() for name, code in vars(schema.TensorType).items() if name.isupper()}
_OP, _TYPE = schema.BuiltinOperator, schema.TensorType
_KERNELS = frozenset({"CONV_2D", "DEPTHWISE_CONV_2D", "FULLY_CONNECTED"})
_MOVEMENT = frozenset({"CONCATENATION", "PAD", "RESHAPE", "SLICE", "TRANSPOSE"})
_CONVERSIONS = frozenset({"QUANTIZE", "DEQUANTIZE"})
# The op versions that first take these types (tensorflow/lite/tools/versioning/op_version.cc): a
# runtime that is too old refuses the file, where it would otherwise compute nonsense.
_DEQUANTIZE_INT8, _DEQUANTIZE_HALF, _HYBRID_PER_CHANNEL = 2, 3, 12


def read(path: Path) -> Any:
    """Read a saved file into a ``ModelT``.

    Raises:
        InputError: the file is missing or no TFLite model.
    """
    try:
        return parse(path.read_bytes())
    except (OSError, ValueError) as error:
        raise InputError(
            f"{path}: not a readable TFLite model ({error}); export it again"
        ) from error


def parse(content: bytes) -> Any:
    """Parse the bytes of a file into a ``ModelT``, whose arrays are views of one copy of them.

    Raises:
        ValueError: not a TFLite model, or a truncated one.
    """
    if content[4:8] != _IDENTIFIER:
        raise ValueError("it lacks the TFL3 identifier")
    try:
        return schema.ModelT.InitFromPackedBuf(bytearray(content), 0)
    except Exception as error:  # the generated parser follows offsets without checking them
        raise ValueError("it is truncated or damaged") from error


def serialise(model: Any) -> bytes:
    """Serialise a ``ModelT``, without the constants that nothing uses any more."""
    used = {tensor.buffer for graph in model.subgraphs for tensor in graph.tensors}
    used |= {entry.buffer for entry in model.metadata or ()}
    for index, buffer in enumerate(model.buffers):
        if index not in used:
            buffer.data = None  # its place stays, because tensors refer to buffers by index
    builder = _AlignedBuilder(1 << 20)
    builder.Finish(model.Pack(builder), _IDENTIFIER)
    return bytes(builder.Output())


class _AlignedBuilder(flatbuffers.Builder):  # type: ignore[misc,unused-ignore]
    """A builder that aligns constants as the schema demands; the stock one aligns to the item."""

    def CreateNumpyVector(self, x: NDArray[Any]) -> Any:
        self.StartVector(x.itemsize, x.size, _ALIGNMENT)
        payload = x.tobytes()
        self.head -= len(payload)
        self.Bytes[self.head : self.head + len(payload)] = payload
        self.vectorNumElems = x.size
        return self.EndVector()


def operator_name(model: Any, operator: Any) -> str:
    """Name of an operator as the schema spells it, such as ``CONV_2D``."""
    code = model.operatorCodes[operator.opcodeIndex]
    # codes above 127 live in the newer field alone
    name: str = _OPERATORS[max(code.builtinCode, code.deprecatedBuiltinCode)]
    return name


def constant(model: Any, tensor: Any) -> NDArray[Any] | None:
    """The constant of a tensor, shaped; None for an activation.

    float32, float16, int8 and int32 are understood; other types come as bytes (n,) uint8.
    """
    data = model.buffers[tensor.buffer].data
    if data is None or not len(data):
        return None
    name = _TYPES[tensor.type]
    if name not in ("float32", "float16", "int8", "int32"):
        return np.asarray(data)
    return np.frombuffer(data, dtype=name).reshape(_shape(tensor))


def largest_rank(model: Any) -> int:
    """Largest rank of any tensor."""
    return max(len(_shape(tensor)) for graph in model.subgraphs for tensor in graph.tensors)


def name_tensors(model: Any, *, image: str, logits: str) -> None:
    """Name the one input and the one output, and shorten the other tensors' names.

    The converter spells every module's Python path out, which is a sixth of a small int8 file.
    """
    graph = model.subgraphs[0]
    for tensor in graph.tensors:
        if b"/" in tensor.name:
            tensor.name = re.sub(rb"[\w<>]+\.", b"", tensor.name)
    for index, name in ((graph.inputs[0], image), (graph.outputs[0], logits)):
        graph.tensors[index].name = name.encode()


def write_metadata(model: Any, values: Mapping[str, object], *, description: str) -> None:
    """Put JSON values into the file, as the metadata entry ``tinyvit_edge``."""
    text = json.dumps(values, sort_keys=True, ensure_ascii=False)
    entry = schema.MetadataT()
    entry.name, entry.buffer = _METADATA, _add_buffer(model, text.encode())
    model.metadata = [*(model.metadata or ()), entry]
    model.description = description.encode()


def read_metadata(model: Any) -> dict[str, Any]:
    """The JSON values of the metadata entry ``tinyvit_edge``; empty where there is none."""
    for entry in model.metadata or ():
        if entry.name == _METADATA:
            values: dict[str, Any] = json.loads(bytes(model.buffers[entry.buffer].data))
            return values
    return {}


def audit(model: Any) -> Audit:
    """Count constants' bytes and multiply-accumulates by type.

    Scales and zero points are attributes of tensors, not constants: int8 bytes are weights'.
    """
    graph = model.subgraphs[0]
    sizes = {
        tensor.buffer: (_TYPES[tensor.type], len(model.buffers[tensor.buffer].data))
        for tensor in graph.tensors
        if constant(model, tensor) is not None
    }
    weight_bytes: dict[str, int] = {}
    for dtype, size in sizes.values():
        weight_bytes[dtype] = weight_bytes.get(dtype, 0) + size
    macs = [_macs(model, operator) for operator in graph.operators]
    return Audit(
        weight_bytes=weight_bytes,
        int8_macs=sum(count for count, int8 in macs if int8),
        total_macs=sum(count for count, _ in macs),
    )


def _macs(model: Any, operator: Any) -> tuple[int, bool]:
    """Multiply-accumulates of an operator, and whether its kernel multiplies int8 by int8.

    A kernel whose weight is int8 quantizes a float input itself, at run time.
    """
    name = operator_name(model, operator)
    if name not in _KERNELS and name != "BATCH_MATMUL":
        return 0, False
    tensors = model.subgraphs[0].tensors
    left, right = (tensors[index] for index in operator.inputs[:2])
    outputs = prod(_shape(tensors[operator.outputs[0]]))
    if name == "BATCH_MATMUL":
        depth = _shape(left)[-2 if operator.builtinOptions.adjX else -1]
    elif name == "DEPTHWISE_CONV_2D":
        depth = prod(_shape(right)[1:3])  # (1, kh, kw, C)
    else:
        depth = prod(_shape(right)[1:])  # (out, kh, kw, in) or (out, in)
    return outputs * depth, right.type == _TYPE.INT8


def integer_weights(model: Any) -> set[bytes]:
    """The int8 constants that a kernel multiplies with an int8 input into an int8 output."""
    graph = model.subgraphs[0]
    found = set()
    for operator in graph.operators:
        if operator_name(model, operator) not in _KERNELS:
            continue
        used = [graph.tensors[i] for i in (*operator.inputs[:2], operator.outputs[0])]
        weight = constant(model, used[1])
        if weight is not None and all(tensor.type == _TYPE.INT8 for tensor in used):
            found.add(weight.tobytes())
    return found


def quantize_fully_connected(
    model: Any, weights: Mapping[str, tuple[NDArray[Any], NDArray[Any], NDArray[Any]]]
) -> None:
    """Store FULLY_CONNECTED weights as int8, so that the kernel quantizes its input at run time.

    Args:
        model: a float model; it is changed.
        weights: layer name to its weight in the file (out, in) float32, the same as int8, and the
            scales (out,) float32. A layer is found by its float weight, bit for bit.

    Raises:
        ConversionError: a layer's weight is not in the file.
    """
    graph = model.subgraphs[0]
    by_value: dict[bytes, list[Any]] = {}
    for operator in graph.operators:
        if operator_name(model, operator) == "FULLY_CONNECTED":
            data = model.buffers[graph.tensors[operator.inputs[1]].buffer].data
            by_value.setdefault(b"" if data is None else data.tobytes(), []).append(operator)
    for name, (real, integers, scale) in weights.items():
        operators = by_value.get(real.tobytes())
        if not operators:
            raise ConversionError(
                f"layer {name}: its weight is not in the TFLite converter's graph as it was, so "
                "that it cannot be stored as int8; report this model, or export w8a8"
            )
        for operator in operators:
            _quantize_weight(model, graph.tensors[operator.inputs[1]], integers, scale)
            # for kernels outside the delegate, whose own default is symmetric
            operator.builtinOptions.asymmetricQuantizeInputs = True
            operator.opcodeIndex = _opcode(model, _OP.FULLY_CONNECTED, _HYBRID_PER_CHANNEL)


def _quantize_weight(model: Any, tensor: Any, integers: NDArray[Any], scale: NDArray[Any]) -> None:
    tensor.type, tensor.buffer = _TYPE.INT8, _add_buffer(model, integers.tobytes())
    tensor.quantization = schema.QuantizationParametersT()
    tensor.quantization.scale = scale
    tensor.quantization.zeroPoint = np.zeros(len(scale), np.int64)


def store_half(model: Any) -> None:
    """Store float32 constants as float16, widened by a DEQUANTIZE that delegates fold away.

    Scalars (an epsilon) stay float32.

    Raises:
        ConversionError: a value that float16 does not hold exactly.
    """
    graph = model.subgraphs[0]
    widened = []
    for index, tensor in enumerate(list(graph.tensors)):
        values = constant(model, tensor)
        if values is None or tensor.type != _TYPE.FLOAT32 or values.size == 1:
            continue
        half = values.astype(np.float16)
        if not np.array_equal(half.astype(np.float32), values):
            raise ConversionError(
                f"the TFLite converter moved constant {tensor.name.decode()} off the float16 grid"
            )
        stored = copy.copy(tensor)
        stored.type, stored.buffer = _TYPE.FLOAT16, _add_buffer(model, half.tobytes())
        stored.name += b"_half"
        tensor.buffer = 0
        graph.tensors.append(stored)
        source = len(graph.tensors) - 1
        widened.append(_operator(model, _OP.DEQUANTIZE, source, index, _DEQUANTIZE_HALF))
    graph.operators = [*widened, *graph.operators]


def restore_float_compute(model: Any) -> None:
    """Give operators that the converter made int8 without being asked their float form back.

    The converter also quantizes a GELU or an add that stands between two quantized layers. The
    recipes keep those float, as the reference does, and XNNPACK runs no int8 GELU.
    """
    graph = model.subgraphs[0]
    operators = []
    for operator in graph.operators:
        if operator_name(model, operator) in _KERNELS | _MOVEMENT | _CONVERSIONS:
            operators.append(operator)
            continue
        before, after = [], []
        for position, index in _int8(graph, operator.inputs):
            operator.inputs[position] = real = _float_twin(graph, index)
            before.append(_operator(model, _OP.DEQUANTIZE, index, real, _DEQUANTIZE_INT8))
        for position, index in _int8(graph, operator.outputs):
            operator.outputs[position] = real = _float_twin(graph, index)
            after.append(_operator(model, _OP.QUANTIZE, real, index))
        operators += [*before, operator, *after]
    graph.operators = operators


def restore_float_io(model: Any) -> None:
    """Make an int8 input and output float32, by a QUANTIZE before and a DEQUANTIZE after."""
    graph, signature = model.subgraphs[0], model.signatureDefs[0]
    for position, index in _int8(graph, graph.inputs):
        graph.inputs[position] = real = _float_twin(graph, index)
        signature.inputs[position].tensorIndex = real
        graph.operators.insert(0, _operator(model, _OP.QUANTIZE, real, index))
    for position, index in _int8(graph, graph.outputs):
        graph.outputs[position] = real = _float_twin(graph, index)
        signature.outputs[position].tensorIndex = real
        graph.operators.append(_operator(model, _OP.DEQUANTIZE, index, real, _DEQUANTIZE_INT8))


def _int8(graph: Any, indices: NDArray[Any]) -> Iterator[tuple[int, int]]:
    """Positions and indices of the int8 tensors among some (-1: an absent optional one)."""
    for position, index in enumerate(indices.tolist()):
        if index >= 0 and graph.tensors[index].type == _TYPE.INT8:
            yield position, index


def _float_twin(graph: Any, index: int) -> int:
    """Add a float32 tensor of the same shape as another and return its index."""
    tensor = copy.copy(graph.tensors[index])
    tensor.type, tensor.quantization, tensor.buffer = _TYPE.FLOAT32, None, 0
    tensor.name += b"_float"
    graph.tensors.append(tensor)
    return len(graph.tensors) - 1


def _operator(model: Any, code: int, source: int, target: int, version: int = 1) -> Any:
    operator = schema.OperatorT()
    operator.opcodeIndex = _opcode(model, code, version)
    operator.inputs = np.array([source], np.int32)
    operator.outputs = np.array([target], np.int32)
    return operator


def _opcode(model: Any, code: int, version: int) -> int:
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


def _add_buffer(model: Any, content: bytes) -> int:
    buffer = schema.BufferT()
    buffer.data = np.frombuffer(content, np.uint8)
    model.buffers.append(buffer)
    return len(model.buffers) - 1


def _shape(tensor: Any) -> tuple[int, ...]:
    return () if tensor.shape is None else tuple(int(size) for size in tensor.shape)
