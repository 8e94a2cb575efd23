"""A TFLite file as an object: reading and writing its flatbuffer.

The schema is the runtime's own (``ai_edge_litert.schema_py_generated``).
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import flatbuffers  # type: ignore[import-untyped,unused-ignore]
import numpy as np
from ai_edge_litert import schema_py_generated as schema
from numpy.typing import NDArray

from tinyvit_edge.errors import InputError

__all__ = [
    "KERNELS",
    "MOVEMENT",
    "TYPE",
    "add_buffer",
    "constant",
    "integer_weights",
    "largest_rank",
    "name_tensors",
    "operator_name",
    "parse",
    "read",
    "read_metadata",
    "serialise",
    "shape_of",
    "type_name",
    "write_metadata",
]

_IDENTIFIER = b"TFL3"
_ALIGNMENT = 16  # of constants, as the schema demands
_METADATA = b"tinyvit_edge"
# of "Named/tinyvit_edge.deployment.Form_module/tinyvit_edge.deployment.Stage_2/...", whose parts
# are class and name: packages, the whole model, and classes
_NEEDLESS = tuple(map(re.compile, (rb"[\w<>]+\.", rb"Named/\w+_module/", rb"(?<!\w)[A-Z]\w*?_")))
_OPERATORS = {code: name for name, code in vars(schema.BuiltinOperator).items() if name.isupper()}
_TYPES = {code: name.lower() for name, code in vars(schema.TensorType).items() if name.isupper()}
TYPE = schema.TensorType
KERNELS = frozenset({"CONV_2D", "DEPTHWISE_CONV_2D", "FULLY_CONNECTED"})
MOVEMENT = frozenset({"CONCATENATION", "PAD", "RESHAPE", "SLICE", "TRANSPOSE"})


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
    """Parse the bytes of a file into a ``ModelT``; constants behind the flatbuffer come into it.

    Raises:
        ValueError: not a TFLite model, or a truncated one.
    """
    if content[4:8] != _IDENTIFIER:
        raise ValueError("it lacks the TFL3 identifier")
    try:
        model = schema.ModelT.InitFromPackedBuf(bytearray(content), 0)
    except Exception as error:  # the generated parser follows offsets without checking them
        raise ValueError("it is truncated or damaged") from error
    for buffer in model.buffers:
        if buffer.offset > 1:  # behind the flatbuffer; 1 is for "nothing"
            end = buffer.offset + buffer.size
            if end > len(content):
                raise ValueError("it is truncated or damaged")
            buffer.data = np.frombuffer(content[buffer.offset : end], np.uint8)
            buffer.offset = buffer.size = 0
    return model


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
    """A builder that aligns constants as the schema demands; the stock one aligns to the item.

    Equal vectors are written once: every channel has a zero point of 64 bits, and all are zero.
    """

    def __init__(self, size: int) -> None:
        super().__init__(size)
        self._written: dict[tuple[str, bytes], Any] = {}

    def CreateNumpyVector(self, x: NDArray[Any]) -> Any:
        key = (x.dtype.str, x.tobytes())
        if key not in self._written:
            self._written[key] = self._write(x)
        return self._written[key]

    def _write(self, x: NDArray[Any]) -> Any:
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
    return np.frombuffer(data, dtype=name).reshape(shape_of(tensor))


def largest_rank(model: Any) -> int:
    """Largest rank of any tensor."""
    return max(len(shape_of(tensor)) for graph in model.subgraphs for tensor in graph.tensors)


def name_tensors(model: Any, *, image: str, logits: str) -> None:
    """Name the one input and the one output, and shorten the other tensors' names.

    The converter spells every module's Python path out, which is a sixth of a small int8 file.
    """
    graph = model.subgraphs[0]
    for tensor in graph.tensors:
        for pattern in _NEEDLESS:
            tensor.name = pattern.sub(b"", tensor.name)
    for index, name in ((graph.inputs[0], image), (graph.outputs[0], logits)):
        graph.tensors[index].name = name.encode()


def write_metadata(model: Any, values: Mapping[str, object], *, description: str) -> None:
    """Put JSON values into the file, as the metadata entry ``tinyvit_edge``."""
    text = json.dumps(values, sort_keys=True, ensure_ascii=False)
    entry = schema.MetadataT()
    entry.name, entry.buffer = _METADATA, add_buffer(model, text.encode())
    model.metadata = [*(model.metadata or ()), entry]
    model.description = description.encode()


def read_metadata(model: Any) -> dict[str, Any]:
    """The JSON values of the metadata entry ``tinyvit_edge``; empty where there is none."""
    for entry in model.metadata or ():
        if entry.name == _METADATA:
            values: dict[str, Any] = json.loads(bytes(model.buffers[entry.buffer].data))
            return values
    return {}


def integer_weights(model: Any) -> set[bytes]:
    """The int8 constants that a kernel multiplies with an int8 input into an int8 output."""
    graph = model.subgraphs[0]
    found = set()
    for operator in graph.operators:
        if operator_name(model, operator) not in KERNELS:
            continue
        used = [graph.tensors[i] for i in (*operator.inputs[:2], operator.outputs[0])]
        weight = constant(model, used[1])
        if weight is not None and all(tensor.type == TYPE.INT8 for tensor in used):
            found.add(weight.tobytes())
    return found


def add_buffer(model: Any, content: bytes) -> int:
    buffer = schema.BufferT()
    buffer.data = np.frombuffer(content, np.uint8)
    model.buffers.append(buffer)
    return len(model.buffers) - 1


def type_name(tensor: Any) -> str:
    """Type of a tensor's elements, such as ``float32``."""
    name: str = _TYPES[tensor.type]
    return name


def shape_of(tensor: Any) -> tuple[int, ...]:
    """Sizes of a tensor."""
    return () if tensor.shape is None else tuple(int(size) for size in tensor.shape)
