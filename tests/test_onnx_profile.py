"""The TFLite-compatibility checker, on small graphs that each break one rule."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tinyvit_edge.errors import InputError
from tinyvit_edge.exporters._onnx_profile import FORBIDDEN, RULES, check

onnx = pytest.importorskip("onnx")

IMAGE = (1, 3, 4, 4)


def value(name: str, shape: tuple[Any, ...]) -> Any:
    return onnx.helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, shape)


def node(op_type: str, inputs: str, outputs: str, **attributes: Any) -> Any:
    name = f"the_{op_type.lower()}"
    return onnx.helper.make_node(op_type, inputs.split(), outputs.split(), name=name, **attributes)


def save(
    path: Path,
    *nodes: Any,
    image: tuple[Any, ...] = IMAGE,
    logits: tuple[Any, ...] = IMAGE,
    more_inputs: tuple[Any, ...] = (),
    opset: int = 20,
    constants: dict[str, Any] | None = None,
) -> Path:
    """A file that maps ``image`` to ``logits`` by these nodes."""
    graph = onnx.helper.make_graph(
        nodes or [node("Gelu", "image", "logits")],
        "graph",
        [value("image", image), *more_inputs],
        [value("logits", logits)],
        [onnx.numpy_helper.from_array(np.array(v), k) for k, v in (constants or {}).items()],
    )
    domains = {n.domain for n in nodes} - {""}
    opsets = [onnx.helper.make_opsetid("", opset)]
    opsets += [onnx.helper.make_opsetid(domain, 1) for domain in domains]
    onnx.save(onnx.helper.make_model(graph, opset_imports=opsets, ir_version=10), path)
    return path


def reshape_to_computed(path: Path) -> Path:
    shape = node("Shape", "image", "shape")
    return save(path, shape, node("Reshape", "image shape", "logits"))


def rank_five(path: Path) -> Path:
    high, low = np.array([1, 3, 2, 2, 4]), np.array(IMAGE)
    up = node("Reshape", "image high", "tall")
    down = node("Reshape", "tall low", "logits")
    return save(path, up, down, constants={"high": high, "low": low})


def forbidden(path: Path) -> Path:
    gather = node("GatherND", "image where", "logits")
    return save(path, gather, logits=(1, 4, 4), constants={"where": np.array([[0, 1]])})


def split(path: Path) -> Path:
    halves = node("Split", "image", "left right", axis=3, num_outputs=2)
    return save(path, halves, node("Concat", "left right", "logits", axis=3))


def data_dependent(path: Path) -> Path:
    where = node("NonZero", "image", "where")
    return save(path, where, node("Cast", "where", "logits", to=1), logits=(4, "n"))


def other_domain(path: Path) -> Path:
    fused = node("FusedGelu", "image", "logits", domain="com.microsoft")
    return save(path, fused)


def two_inputs(path: Path) -> Path:
    add = node("Add", "image second", "logits")
    return save(path, add, more_inputs=(value("second", IMAGE),))


def batch_of_two(path: Path) -> Path:
    return save(path, image=(2, 3, 4, 4), logits=(2, 3, 4, 4))


def free_batch(path: Path) -> Path:
    return save(path, image=("n", 3, 4, 4), logits=("n", 3, 4, 4))


def older_opset(path: Path) -> Path:
    return save(path, node("Relu", "image", "logits"), opset=18)


# (file, rule, what the message must name)
BREACHES: list[tuple[Callable[[Path], Path], str, str]] = [
    (older_opset, "opset", "opset 18"),
    (other_domain, "domain", "the_fusedgelu: FusedGelu of domain com.microsoft"),
    (two_inputs, "interface", "2 inputs: image, second"),
    (batch_of_two, "batch", "image: shape 2x3x4x4"),
    (free_batch, "batch", "image: shape nx3x4x4"),
    (free_batch, "static-shapes", "the_gelu -> logits: shape nx3x4x4"),
    (data_dependent, "static-shapes", "the_nonzero -> where"),
    (rank_five, "rank", "the_reshape -> tall: rank 5, shape 1x3x2x2x4"),
    (forbidden, "operator", "the_gathernd: GatherND"),
    (split, "operator", "the_split: Split"),
    (data_dependent, "operator", "the_nonzero: NonZero"),
    (reshape_to_computed, "constant-reshape", "the_reshape: Reshape to a computed shape"),
]


@pytest.mark.parametrize(("make", "rule", "message"), BREACHES)
def test_breach_is_found_and_named(
    make: Callable[[Path], Path], rule: str, message: str, tmp_path: Path
) -> None:
    """Oracle: the graph was built to break this rule at this node."""
    violations = check(make(tmp_path / "model.onnx"))
    found = [violation for violation in violations if violation.rule == rule]
    assert any(message in str(violation) for violation in found), list(map(str, violations))
    assert all("\n" not in str(violation) for violation in violations)


@pytest.mark.parametrize(
    ("make", "only"),
    [(older_opset, "opset"), (two_inputs, "interface"), (rank_five, "rank"), (split, "operator")],
)
def test_one_breach_is_one_rule(make: Callable[[Path], Path], only: str, tmp_path: Path) -> None:
    """Oracle: these graphs break no other rule."""
    assert {violation.rule for violation in check(make(tmp_path / "model.onnx"))} == {only}


def test_every_rule_has_a_breach() -> None:
    """Oracle: the table of rules."""
    assert {rule.name for rule in RULES} == {rule for _, rule, _ in BREACHES}


def test_control_flow_and_multi_output_operators_are_forbidden() -> None:
    """Oracle: the operators that the profile promises to keep out."""
    promised = {"GatherND", "Split", "Loop", "If", "Scan", "Einsum", "NonZero"}
    assert promised | {"BatchNormalization"} == set(FORBIDDEN)


def test_clean_file_has_no_violation(tmp_path: Path) -> None:
    """Oracle: one Gelu on a static image, and a Reshape to a constant."""
    gelu, flat = node("Gelu", "image", "x"), node("Reshape", "x shape", "logits")
    constants = {"shape": np.array([1, 48])}
    path = save(tmp_path / "model.onnx", gelu, flat, logits=(1, 48), constants=constants)
    assert check(path) == []


@pytest.mark.parametrize("content", [None, b"", b"not a model"])
def test_unreadable_file_is_an_input_error(content: bytes | None, tmp_path: Path) -> None:
    """Oracle: no protobuf of a model; one line that names the file."""
    path = tmp_path / "model.onnx"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(InputError, match=r"^\S*model\.onnx is not a readable ONNX file .*again$"):
        check(path)
