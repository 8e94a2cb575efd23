"""The TFLite-compatible ONNX profile, and the checker that every exported file passes.

A file inside this profile converts to TFLite without custom operators, and runs as one delegate
there (`tinyvit_edge.exporters._onnx2tf` is the proof by conversion). A rule is a row of `RULES`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tinyvit_edge.errors import InputError
from tinyvit_edge.exporters._quiet import first_line

__all__ = ["MAX_RANK", "OPSET", "RULES", "Rule", "Violation", "check", "inferred"]

OPSET = 20
MAX_RANK = 4

FORBIDDEN: dict[str, str] = {
    "BatchNormalization": "statistics belong in the convolution before it",
    "Einsum": "TFLite has no such operator",
    "GatherND": "stays outside the delegate; attention biases are constants",
    "If": "control flow stays outside the delegate",
    "Loop": "control flow stays outside the delegate",
    "NonZero": "its output shape depends on data",
    "Scan": "control flow stays outside the delegate",
    "Split": "has several outputs, which delegates cut at; q, k and v are separate layers",
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Violation:
    """One breach of the profile."""

    rule: str
    where: str
    """The node or value at fault, by name."""
    found: str
    reason: str

    def __str__(self) -> str:
        return f"{self.where}: {self.found} ({self.rule}: {self.reason})"


Finding = tuple[str, str]
"""Where, and what was found there."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Rule:
    """One rule of the profile: what it finds at fault in a model, and why it exists."""

    name: str
    reason: str
    find: Callable[[Any], Iterator[Finding]]


def check(path: Path) -> list[Violation]:
    """Check a saved file against the profile.

    Returns:
        Every breach, in the order of `RULES`; empty if the file is inside the profile.

    Raises:
        InputError: the file cannot be read as ONNX.
    """
    model = inferred(path)
    return [
        Violation(rule=rule.name, where=where, found=found, reason=rule.reason)
        for rule in RULES
        for where, found in rule.find(model)
    ]


def inferred(path: Path) -> Any:
    """Read a file as an `onnx.ModelProto` with the shapes of all values that can be inferred.

    Raises:
        InputError: the file cannot be read as ONNX.
    """
    import onnx

    try:
        model = onnx.load(path)
        onnx.checker.check_model(model)
        return onnx.shape_inference.infer_shapes(model, data_prop=True)
    except Exception as error:  # protobuf, onnx and the file system each raise their own
        line = first_line(error)
        raise InputError(f"{path} is not a readable ONNX file ({line}): export it again") from error


def _other_opset(model: Any) -> Iterator[Finding]:
    found = {entry.domain: entry.version for entry in model.opset_import}
    if found.get("") != OPSET:
        yield "opset_import", f"opset {found.get('')}"


def _other_domains(model: Any) -> Iterator[Finding]:
    for node in model.graph.node:
        if node.domain not in ("", "ai.onnx"):
            yield node.name, f"{node.op_type} of domain {node.domain}"


def _interface(model: Any) -> Iterator[Finding]:
    constants = {tensor.name for tensor in model.graph.initializer}
    inputs = [value.name for value in model.graph.input if value.name not in constants]
    outputs = [value.name for value in model.graph.output]
    for kind, names in (("inputs", inputs), ("outputs", outputs)):
        if len(names) != 1:
            yield f"graph {kind}", f"{len(names)} {kind}: {', '.join(names)}"


def _other_batch(model: Any) -> Iterator[Finding]:
    for value in (*model.graph.input, *model.graph.output):
        shape = _shape(value)
        if not shape or shape[0] != 1:
            yield value.name, f"shape {_show(shape)}"


def _dynamic_shapes(model: Any) -> Iterator[Finding]:
    for where, shape in _values(model):
        if shape is None or any(not isinstance(size, int) for size in shape):
            yield where, f"shape {_show(shape)}"


def _high_rank(model: Any) -> Iterator[Finding]:
    for where, shape in _values(model):
        if shape is not None and len(shape) > MAX_RANK:
            yield where, f"rank {len(shape)}, shape {_show(shape)}"
    for tensor in model.graph.initializer:
        if len(tensor.dims) > MAX_RANK:
            yield tensor.name, f"rank {len(tensor.dims)}, shape {_show(tuple(tensor.dims))}"


def _forbidden(model: Any) -> Iterator[Finding]:
    for node in model.graph.node:
        if node.op_type in FORBIDDEN:
            yield node.name, f"{node.op_type}, {FORBIDDEN[node.op_type]}"


def _computed_reshape(model: Any) -> Iterator[Finding]:
    constants = {tensor.name for tensor in model.graph.initializer}
    constants |= {n.output[0] for n in model.graph.node if n.op_type == "Constant"}
    for node in model.graph.node:
        if node.op_type == "Reshape" and node.input[1] not in constants:
            yield node.name, "Reshape to a computed shape"


RULES: tuple[Rule, ...] = (
    Rule(
        name="opset",
        reason=f"opset {OPSET} is the first with Gelu as one operator, and all tools read it",
        find=_other_opset,
    ),
    Rule(name="domain", reason="other runtimes know standard operators only", find=_other_domains),
    Rule(name="interface", reason="one image in, one row of logits out", find=_interface),
    Rule(name="batch", reason="phones classify one image at a time", find=_other_batch),
    Rule(
        name="static-shapes",
        reason="delegates plan memory ahead and refuse unknown sizes",
        find=_dynamic_shapes,
    ),
    Rule(
        name="rank",
        reason=f"delegates leave tensors of rank above {MAX_RANK} outside",
        find=_high_rank,
    ),
    Rule(name="operator", reason="no mobile delegate takes it whole", find=_forbidden),
    Rule(
        name="constant-reshape",
        reason="a converter must know the target shape",
        find=_computed_reshape,
    ),
)


def _values(model: Any) -> Iterator[tuple[str, tuple[Any, ...] | None]]:
    """Every value of the graph: what names it in a message, and its shape if it has one."""
    graph = model.graph
    typed = {value.name: value for value in (*graph.input, *graph.value_info, *graph.output)}
    for value in graph.input:
        yield value.name, _shape(value)
    for node in graph.node:
        for name in filter(None, node.output):
            shape = _shape(typed[name]) if name in typed else None
            yield f"{node.name or node.op_type} -> {name}", shape


def _shape(value: Any) -> tuple[Any, ...] | None:
    """Sizes, a name or ``?`` where a size is unknown; None if even the rank is."""
    tensor = value.type.tensor_type
    if not tensor.HasField("shape"):
        return None
    return tuple(
        size.dim_value if size.HasField("dim_value") else size.dim_param or "?"
        for size in tensor.shape.dim
    )


def _show(shape: tuple[Any, ...] | None) -> str:
    return "unknown" if shape is None else "x".join(str(size) for size in shape) or "scalar"
