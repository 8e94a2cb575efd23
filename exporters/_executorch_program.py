"""Read a saved ``.pte``: what is delegated, what is stored in which type, what runs in int8.

The file is a flatbuffer program (``program.fbs``) with data segments behind it; an XNNPACK delegate
is a header, a second flatbuffer (``schema.fbs``, in ExecuTorch's wheel) and, as named segments of
the file, its constants. ExecuTorch has a reader for the first. For the second it has only a
writer, which runs its bundled ``flatc`` on that schema; here the same ``flatc`` turns the bytes
back into JSON.
"""

from __future__ import annotations

import json
import math
import re
import tempfile
from collections import Counter
from collections.abc import Callable, Collection, Hashable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from importlib.resources import files
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tinyvit_edge.attention import MOST_JOINED
from tinyvit_edge.errors import InputError, UnsupportedError
from tinyvit_edge.exporters import Audit, Product
from tinyvit_edge.exporters._conversions import Role, Step, conversions

if TYPE_CHECKING:
    from tinyvit_edge.precision import ProductKind

__all__ = ["Contents", "audit", "contents", "read_program"]

_XNNPACK = "XnnpackBackend"
_STORAGE = {
    "xnn_datatype_fp32": "float32",
    "xnn_datatype_fp16": "float16",
    "xnn_datatype_qint8": "int8",
    "xnn_datatype_qcint8": "int8",
    "xnn_datatype_qint32": "int32",
    "xnn_datatype_qcint32": "int32",
}
_INT8_WEIGHTS = {"xnn_datatype_qint8", "xnn_datatype_qcint8"}
_INT8_INPUTS = {"xnn_datatype_qint8", "xnn_datatype_qdint8"}
_EIGHT_BITS = {*_INT8_WEIGHTS, *_INT8_INPUTS}
_KINDS: Mapping[str, ProductKind] = {
    "XNNBatchMatrixMultiply": "attention",
    "XNNFullyConnected": "linear",
    "XNNConv2d": "conv",
    "XNNDepthwiseConv2d": "conv",
}
_MOVEMENT = {
    "XNNStaticConstantPad",
    "XNNStaticReshape",
    "XNNStaticSlice",
    "XNNStaticTranspose",
}
_NO_VALUE = 2**32 - 1
_NO_OFFSET = 2**64 - 1


@dataclass(frozen=True, slots=True, kw_only=True)
class Contents:
    """Instructions of a program's ``forward``."""

    delegates: tuple[str, ...]
    """Backend of each delegate call, in order."""
    operators: Mapping[str, int]
    """Operators outside the delegates, with their number of calls."""


def contents(program: Any) -> Contents:
    """Count the delegate calls and the other operators of a flatbuffer program's ``forward``.

    Args:
        program: an `executorch.exir.schema.Program`.
    """
    plan = _forward(program)
    delegates, operators = [], []
    for call in _instructions(plan):
        if hasattr(call, "delegate_index"):
            delegates.append(plan.delegates[call.delegate_index].id)
        elif hasattr(call, "op_index"):
            operators.append(plan.operators[call.op_index].name)
    return Contents(delegates=tuple(delegates), operators=dict(sorted(Counter(operators).items())))


def audit(path: Path) -> Audit:
    """Read constants and multiply-accumulates back from a file.

    Zero points lie in the graph, not among the constants, so that int8 bytes are those of weights.
    Conversions are XNNPACK's convert nodes: its int8 kernels take and give 8-bit values.

    Raises:
        InputError: the file cannot be read as a program.
        UnsupportedError: a delegate other than XNNPACK holds the model.
    """
    file = _read(path)
    plan = _forward(file.program)
    if others := {delegate.id for delegate in plan.delegates} - {_XNNPACK}:
        raise UnsupportedError(
            f"{path} is held by {', '.join(sorted(others))}, whose payload is read by no tool "
            f"here: audit the target of that runtime instead"
        )
    weight_bytes, found = _undelegated(plan)
    steps: list[Step] = []
    constants: set[Hashable] = set()
    for number, delegate in enumerate(plan.delegates):
        payload = file.program.backend_delegate_data[delegate.processed.index].data
        graph = _xnnpack_graph(bytes(payload))
        weight_bytes += _constant_bytes(graph)
        found += [product for _, product in _xnnpack_products(graph)]
        steps += _xnnpack_steps(graph, number)
        constants |= _xnnpack_constants(graph, number, _constant_arguments(plan, number))
    counted = conversions(steps, constants=constants)
    return Audit.of(found, weight_bytes=weight_bytes, conversions=counted)


def read_program(path: Path) -> Any:
    """A saved file's `executorch.exir.schema.Program`.

    Raises:
        InputError: the file cannot be read as a program.
    """
    return _read(path).program


def _read(path: Path) -> Any:
    from executorch.exir._serialize._program import deserialize_pte_binary

    try:
        file = deserialize_pte_binary(path.read_bytes())
        _forward(file.program)
    except Exception as error:  # whatever a flatbuffer that is none leads to
        raise InputError(f"{path} is not a readable ExecuTorch program: export it again") from error
    return file


def _forward(program: Any) -> Any:
    return next(plan for plan in program.execution_plan if plan.name == "forward")


def _instructions(plan: Any) -> Iterator[Any]:
    return (step.instr_args for chain in plan.chains for step in chain.instructions)


# Portable kernel -> kind, and multiply-accumulates from the shapes of its arguments and its result.
_KERNELS: dict[str, tuple[ProductKind, Callable[[Sequence[Any], int], int]]] = {
    "aten::mm": ("linear", lambda shapes, size: size * int(shapes[0][-1])),
    "aten::bmm": ("attention", lambda shapes, size: size * int(shapes[0][-1])),
    "aten::addmm": ("linear", lambda shapes, size: size * int(shapes[1][-1])),
    "aten::linear": ("linear", lambda shapes, size: size * int(shapes[0][-1])),
    "aten::convolution": ("conv", lambda shapes, size: size * math.prod(shapes[1][1:])),
}


def _undelegated(plan: Any) -> tuple[Counter[str], list[Product]]:
    """Constants' bytes by type, and the products, of the operators outside delegates."""
    import torch
    from executorch.exir.tensor import scalar_type_enum

    types = {scalar_type_enum(dtype): dtype for dtype in (torch.float32, torch.float16, torch.int8)}
    shapes = [getattr(value.val, "sizes", None) for value in plan.values]
    constants: dict[int, tuple[str, int]] = {}
    for value in plan.values:
        tensor = value.val
        if _is_constant(tensor):
            dtype = types.get(tensor.scalar_type)
            name = str(dtype).removeprefix("torch.") if dtype else "other"
            width = dtype.itemsize if dtype else 1
            constants[tensor.data_buffer_idx] = (name, width * math.prod(tensor.sizes))
    weight_bytes: Counter[str] = Counter()
    for name, size in constants.values():
        weight_bytes[name] += size
    found = []
    for call in _instructions(plan):
        name = plan.operators[call.op_index].name if hasattr(call, "op_index") else ""
        if name in _KERNELS:
            kind, macs = _KERNELS[name]
            arguments = [shapes[index] for index in call.args]
            dtype = types.get(plan.values[call.args[-1]].val.scalar_type)
            found.append(
                Product(
                    kind=kind,
                    macs=macs(arguments, math.prod(arguments[-1])),
                    dtype=str(dtype).removeprefix("torch.") if dtype else "other",
                )
            )
    return weight_bytes, found


def _xnnpack_graph(payload: bytes) -> Any:
    """The graph of an XNNPACK delegate, as ``schema.fbs`` spells it in JSON."""
    from executorch.backends.xnnpack.serialization.xnnpack_graph_serialize import XNNHeader
    from executorch.exir._serialize._flatbuffer import _flatc_decompile

    header = XNNHeader.from_bytes(payload[: XNNHeader.EXPECTED_LENGTH])
    start = header.flatbuffer_offset
    schema = files("executorch.backends.xnnpack.serialization").joinpath("schema.fbs")
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        (folder / "schema.fbs").write_bytes(schema.read_bytes())
        (folder / "graph.bin").write_bytes(payload[start : start + header.flatbuffer_size])
        _flatc_decompile(
            name, str(folder / "schema.fbs"), str(folder / "graph.bin"), ["--raw-binary"]
        )
        text = (folder / "graph.json").read_text()
    # flatc writes the open bounds of an activation as inf, which JSON does not know
    return json.loads(re.sub(r": (-?)inf\b", r": \1Infinity", text))


def _values(graph: Any) -> dict[int, dict[str, Any]]:
    """Tensors of an XNNPACK graph by id, each with its quantization parameters if it has any."""
    tensors = {}
    for value in graph["xvalues"]:
        union = value["xvalue_union"]
        tensor = {**union.get("tensor_value", union), "quant_params": union.get("quant_params")}
        tensors[tensor["id_out"]] = tensor
    return tensors


def _constant_bytes(graph: Any) -> Counter[str]:
    """Bytes of a graph's constants by storage type; one that is used twice is stored once."""
    entries = graph["constant_data"]
    sizes: dict[Any, tuple[str, int]] = {}

    def add(index: int, storage: str) -> None:
        sizes[_place(entries[index])] = (storage, entries[index]["size"])

    for tensor in _values(graph).values():
        if index := tensor["constant_buffer_idx"]:
            add(index, _STORAGE.get(tensor["datatype"], "other"))
        if index := (tensor["quant_params"] or {}).get("scale_buffer_idx", 0):
            add(index, "float32")
    total: Counter[str] = Counter()
    for storage, size in sizes.values():
        total[storage] += size
    return total


def _xnnpack_products(graph: Any) -> Iterator[tuple[Any, Product]]:
    """Each product, after the number of its result."""
    values = _values(graph)
    rows = _constant_rows(graph, values)
    for node in graph["xnodes"]:
        kind, args = node["xnode_union_type"], node["xnode_union"]
        if kind not in _KINDS:
            continue
        result, source = values[args["output_id"]], values[args["input1_id"]]
        dtype = _STORAGE.get(result["datatype"], "other")
        if kind == "XNNBatchMatrixMultiply":
            depth = source["dims"][-1]
        else:
            weight = values[args["filter_id"]]
            if _stored(graph, weight) in rows:
                continue
            depth = _reduction(kind, args, weight["dims"])
            if _is_int8(source, weight, result):
                dtype = "int8"
        macs = math.prod(result["dims"]) * depth
        yield args["output_id"], Product(kind=_KINDS[kind], macs=macs, dtype=dtype)


def _constant_rows(graph: Any, values: Mapping[int, Any]) -> set[Any]:
    """Where the rows lie that LayerNorm and softmax sum by: such a sum is not a layer.

    One output and no bias tell them; LayerNorm's variance has the row of its mean.
    """
    products = (
        node["xnode_union"]
        for node in graph["xnodes"]
        if node["xnode_union_type"] == "XNNFullyConnected"
    )
    return {
        _stored(graph, values[args["filter_id"]])
        for args in products
        if values[args["filter_id"]]["dims"][0] == 1 and args["bias_id"] == _NO_VALUE
    }


def _stored(graph: Any, tensor: Any) -> Any:
    """Where a constant lies: tensors of one value share the place."""
    return _place(graph["constant_data"][tensor["constant_buffer_idx"]])


def _place(entry: Any) -> Any:
    return entry["named_key"] if entry["offset"] == _NO_OFFSET else entry["offset"]


def _constant_arguments(plan: Any, number: int) -> set[int]:
    """Which arguments of the delegate of a number are constants of the program."""
    return {
        place
        for call in _instructions(plan)
        if getattr(call, "delegate_index", None) == number
        for place, index in enumerate(call.args)
        if _is_constant(plan.values[index].val)
    }


def _is_constant(value: Any) -> bool:
    return bool(getattr(value, "data_buffer_idx", 0)) and value.allocation_info is None


def _xnnpack_constants(graph: Any, number: int, arguments: Collection[int]) -> set[Hashable]:
    """The values of the delegate of a number that are constants, its own or given as arguments."""
    return {
        (number, index)
        for index, value in _values(graph).items()
        if value["constant_buffer_idx"] or value["external_id"] in arguments
    }


def _xnnpack_steps(graph: Any, number: int) -> Iterator[Step]:
    """What the nodes of the delegate of a number do to 8-bit values."""
    values = _values(graph)
    layers = {result for result, product in _xnnpack_products(graph) if product.dtype == "int8"}
    for node in graph["xnodes"]:
        kind, args = node["xnode_union_type"], node["xnode_union"]
        source, result = args.get("input1_id", args.get("input_id")), args.get("output_id")
        sources = [source]
        role: Role | None = None
        if result in layers:
            role = "layer"
        elif kind == "XNNConvert":
            rounds = values[result]["datatype"] in _EIGHT_BITS
            role = "quantize" if rounds else "dequantize"
        elif source in values and values[source]["datatype"] in _EIGHT_BITS:
            if kind.startswith("XNNConcatenate"):
                role, sources = "move", _concatenated(args)
            elif kind in _MOVEMENT:
                role = "move"
        if role is not None:
            for one in sources:
                yield Step(role=role, source=(number, one), result=(number, result))


def _concatenated(args: Any) -> list[int]:
    names = (f"input{place}_id" for place in range(1, MOST_JOINED + 1))
    return [args[name] for name in names if args.get(name, _NO_VALUE) != _NO_VALUE]


def _reduction(kind: str, args: Any, weight: Sequence[int]) -> int:
    """Products in one element of the result."""
    if kind == "XNNFullyConnected":
        return int(weight[-1])
    channels = 1 if kind == "XNNDepthwiseConv2d" else args["group_input_channels"]
    return int(args["kernel_height"] * args["kernel_width"] * channels)


def _is_int8(source: Any, weight: Any, result: Any) -> bool:
    """Whether a kernel multiplies 8-bit by 8-bit, into 8 bits where its ranges are stored."""
    dynamic = source["datatype"] == "xnn_datatype_qdint8"
    return (
        weight["datatype"] in _INT8_WEIGHTS
        and source["datatype"] in _INT8_INPUTS
        and (dynamic or result["datatype"] in _EIGHT_BITS)
    )
