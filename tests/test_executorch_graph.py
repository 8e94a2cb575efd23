"""XNNPACK's graph of an ExecuTorch program, without movement that cancels out."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import nullcontext
from pathlib import Path
from typing import Any
from unittest.mock import patch

import pytest
import torch

from executorch_samples import SIZE, images_of
from tinyvit_edge.deployment import FormOptions
from tinyvit_edge.exporters.executorch import ExecuTorchExporter
from tinyvit_edge.program import Program

pytest.importorskip("executorch")

from executorch.backends.xnnpack.serialization import xnnpack_graph_schema as schema

from tinyvit_edge.exporters import _executorch_graph
from tinyvit_edge.exporters._executorch_graph import tidy

INPUT, OUTPUT = 1, 2  # flags of values that cross the graph's border


class Graph:
    """An ``XNNGraph`` in the making: values are numbers, the first one is the input."""

    def __init__(self, *shape: int) -> None:
        self.nodes: list[Any] = []
        self.values: list[Any] = []
        self.value(shape, flags=INPUT)

    def value(self, shape: tuple[int, ...], *, flags: int = 0, scale: float | None = None) -> int:
        number = len(self.values)
        integer = scale is not None
        value: Any = schema.XNNTensorValue(
            datatype=getattr(schema.XNNDatatype, f"xnn_datatype_{'qint8' if integer else 'fp32'}"),
            num_dims=len(shape),
            dims=list(shape),
            constant_buffer_idx=0,
            external_id=number,
            flags=flags,
            id_out=number,
        )
        if scale is not None:
            value = schema.XNNQuantizedTensorValue(value, schema.PerTensorQuant(scale, 0))
        self.values.append(schema.XValue(value))
        return number

    def add(self, make: Callable[..., Any], source: int, target: int, **more: Any) -> int:
        node = make(input_id=source, output_id=target, flags=0, **more)
        self.nodes.append(schema.XNode(node, 0))
        return target

    def transpose(self, source: int, *perm: int, flags: int = 0) -> int:
        shape = self.shape(source)
        target = self.value(tuple(shape[axis] for axis in perm), flags=flags)
        make = schema.XNNStaticTranspose
        return self.add(make, source, target, num_dims=len(perm), perm=list(perm))

    def shape(self, number: int) -> list[int]:
        value = self.values[number].xvalue_union
        dims: list[int] = getattr(value, "tensor_value", value).dims
        return dims

    def tidied(self) -> list[tuple[str, int, int]]:
        """Kind, input and output of what is left."""
        graph = schema.XNNGraph("0", self.nodes, self.values, 2, [0], [], [])
        tidy(graph)
        left = [node.xnode_union for node in graph.xnodes]
        self.nodes = graph.xnodes
        return [(type(one).__name__, one.input_id, one.output_id) for one in left]


def test_a_transposition_and_its_inverse_vanish() -> None:
    """Oracle: by hand: the reader gets what the first one got."""
    graph = Graph(1, 2, 3, 4)
    last = graph.transpose(graph.transpose(0, 0, 3, 1, 2), 0, 2, 3, 1)
    end = graph.add(schema.XNNAbs, last, graph.value((1, 2, 3, 4), flags=OUTPUT))
    assert graph.tidied() == [("XNNAbs", 0, end)]


def test_two_transpositions_become_the_one_that_numpy_says() -> None:
    """Oracle: PyTorch's permutations of a tensor with four different sides."""
    graph = Graph(2, 3, 4, 5)
    end = graph.transpose(graph.transpose(0, 0, 3, 1, 2), 1, 0, 3, 2, flags=OUTPUT)
    assert graph.tidied() == [("XNNStaticTranspose", 0, end)]
    x = torch.randn(2, 3, 4, 5)
    expected = x.permute(0, 3, 1, 2).permute(1, 0, 3, 2)
    assert torch.equal(x.permute(*graph.nodes[0].xnode_union.perm), expected)


def test_a_transposition_with_another_reader_stays() -> None:
    """Oracle: by hand: one reader wants the middle, the other the end."""
    graph = Graph(1, 2, 3, 4)
    middle = graph.transpose(0, 0, 3, 1, 2)
    last = graph.transpose(middle, 0, 2, 3, 1)
    one = graph.add(schema.XNNAbs, middle, graph.value((1, 4, 2, 3), flags=OUTPUT))
    two = graph.add(schema.XNNAbs, last, graph.value((1, 2, 3, 4), flags=OUTPUT))
    left = [("XNNStaticTranspose", 0, middle), ("XNNAbs", middle, one), ("XNNAbs", 0, two)]
    assert graph.tidied() == left


def test_the_output_is_not_taken_away() -> None:
    """Oracle: by hand: the graph's own output stays its output, by a transposition in order."""
    graph = Graph(1, 2, 3, 4)
    end = graph.transpose(graph.transpose(0, 0, 3, 1, 2), 0, 2, 3, 1, flags=OUTPUT)
    assert graph.tidied() == [("XNNStaticTranspose", 0, end)]


def test_equal_conversions_become_one_and_others_stay() -> None:
    """Oracle: by hand: two of three have the same scale."""
    graph = Graph(2, 3)
    made = [
        graph.add(schema.XNNConvert, 0, graph.value((2, 3), scale=scale))
        for scale in (0.5, 0.5, 0.25)
    ]
    for one in made:
        graph.add(schema.XNNAbs, one, graph.value((2, 3), flags=OUTPUT))
    left = graph.tidied()
    assert [one for one in left if one[0] == "XNNConvert"] == [
        ("XNNConvert", 0, made[0]),
        ("XNNConvert", 0, made[2]),
    ]
    assert [source for kind, source, _ in left if kind == "XNNAbs"] == [made[0], made[0], made[2]]


@pytest.mark.parametrize("precision", ["fp32", "w8a8"])
def test_a_tidy_file_computes_the_same_bits(
    precision: str, executorch_program: Callable[..., Program], tmp_path: Path
) -> None:
    """Oracle: the file that ExecuTorch writes by itself, which is larger by what was dropped."""
    exporter = ExecuTorchExporter()
    program = executorch_program(precision, FormOptions(layer_norm="linear"))
    tidy_file, plain_file = tmp_path / "tidy.pte", tmp_path / "plain.pte"
    exporter.export(program, tidy_file)
    with patch.object(_executorch_graph, "tidied", nullcontext):
        exporter.export(program, plain_file)
    assert tidy_file.stat().st_size < plain_file.stat().st_size
    for image in images_of(3, size=SIZE):
        got, expected = (
            exporter.load(file, threads=1)(image[None].numpy()) for file in (tidy_file, plain_file)
        )
        assert (got == expected).all()
