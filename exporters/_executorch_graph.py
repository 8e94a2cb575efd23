"""XNNPACK's graph of an ExecuTorch program, without movement that cancels out.

ExecuTorch's passes turn every convolution's neighbours to channels last and back, also where a
permutation before or after does the opposite; and they quantize a tensor once for every reader.
Neither has a switch, and there is no place for a pass of one's own, so the graph is put right when
the delegate is about to write it.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import fields
from typing import Any

__all__ = ["tidied", "tidy"]


@contextmanager
def tidied() -> Iterator[None]:
    """Have XNNPACK's graphs tidied before they are written."""
    from executorch.backends.xnnpack import xnnpack_preprocess

    write = xnnpack_preprocess.serialize_xnnpack_binary

    def tidy_and_write(graph: Any, *constants: Any) -> bytes:
        tidy(graph)
        written: bytes = write(graph, *constants)
        return written

    xnnpack_preprocess.serialize_xnnpack_binary = tidy_and_write
    try:
        yield
    finally:
        xnnpack_preprocess.serialize_xnnpack_binary = write


def tidy(graph: Any) -> None:
    """Merge equal quantizations, and transpositions that follow each other; drop what is idle.

    Args:
        graph: an ``XNNGraph``; it is changed.
    """
    _merge_conversions(graph)
    _merge_transpositions(graph)
    _drop_unread(graph)


def _merge_conversions(graph: Any) -> None:
    """Let one conversion of a tensor serve all readers that want it in the same type."""
    values = _values(graph)
    first: dict[Any, int] = {}
    for node in graph.xnodes:
        one = node.xnode_union
        if _kind(node) != "XNNConvert" or _is_external(values[one.output_id]):
            continue
        wanted = values[one.output_id]
        quantization = repr(getattr(wanted.xvalue_union, "quant_params", None))
        key = (one.input_id, _tensor(wanted).datatype, quantization)
        kept = first.setdefault(key, one.output_id)
        if kept != one.output_id:
            _redirect(graph, one.output_id, kept)


def _merge_transpositions(graph: Any) -> None:
    """Make two transpositions in a row one, or none where the second undoes the first."""
    values = _values(graph)
    made: dict[int, Any] = {}
    for node in graph.xnodes:
        if _kind(node) != "XNNStaticTranspose":
            continue
        second = node.xnode_union
        if (first := made.get(second.input_id)) is not None:
            second.perm = [first.perm[axis] for axis in second.perm]
            second.input_id = first.input_id
        in_order = list(second.perm) == sorted(second.perm)
        if in_order and not _is_external(values[second.output_id]):
            _redirect(graph, second.output_id, second.input_id)
        else:
            made[second.output_id] = second


def _drop_unread(graph: Any) -> None:
    """Drop conversions and transpositions that nothing reads any more, and their values."""
    values = _values(graph)
    while True:
        read = Counter(index for node in graph.xnodes for index in _inputs(node))
        unread = [
            node
            for node in graph.xnodes
            if _kind(node) in ("XNNConvert", "XNNStaticTranspose")
            and not read[node.xnode_union.output_id]
            and not _is_external(values[node.xnode_union.output_id])
        ]
        if not unread:
            return
        gone = {id(node) for node in unread}
        graph.xnodes = [node for node in graph.xnodes if id(node) not in gone]
        outputs = {node.xnode_union.output_id for node in unread}
        graph.xvalues = [value for value in graph.xvalues if _tensor(value).id_out not in outputs]


def _values(graph: Any) -> dict[int, Any]:
    return {_tensor(value).id_out: value for value in graph.xvalues}


def _tensor(value: Any) -> Any:
    return getattr(value.xvalue_union, "tensor_value", value.xvalue_union)


def _is_external(value: Any) -> bool:
    """Whether a value is an input or output of the graph."""
    return bool(_tensor(value).flags)


def _kind(node: Any) -> str:
    return type(node.xnode_union).__name__


def _input_fields(node: Any) -> list[str]:
    names = (field.name for field in fields(node.xnode_union))
    return [name for name in names if name.endswith("_id") and name != "output_id"]


def _inputs(node: Any) -> list[int]:
    return [getattr(node.xnode_union, name) for name in _input_fields(node)]


def _redirect(graph: Any, old: int, new: int) -> None:
    """Have every reader of one value read another, of the same shape and type, instead."""
    for node in graph.xnodes:
        for name in _input_fields(node):
            if getattr(node.xnode_union, name) == old:
                setattr(node.xnode_union, name, new)
