"""Attention of the deployment form: groups of heads, and biases from strips."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from tinyvit_edge import layers
from tinyvit_edge.attention import (
    Attention,
    AttentionBias,
    as_strip,
    in_batches,
    strip_columns,
    strip_parts,
)
from tinyvit_edge.configuration import TinyVitConfig
from tinyvit_edge.deployment import FormOptions
from tinyvit_edge.exporters import Exporter
from tinyvit_edge.exporters import exporter as exporter_of
from tinyvit_edge.program import Program
from tinyvit_edge.quantization.accounting import integer_demand
from tinyvit_edge.quantization.qdq import Int8AttentionBias

Sqnr = Callable[[Tensor, Tensor], float]
MakeProgram = Callable[[str, FormOptions], Program]


def expanded(side: int, heads: int = 3) -> Tensor:
    """Biases of windows of a side, by the reference's index."""
    table = torch.randn(heads, side**2, generator=torch.Generator().manual_seed(side))
    return table[:, layers.attention_bias_indices(side)]


def reference(heads: int, side: int, head_dim: int = 4) -> layers.Attention:
    """The reference's attention with random biases."""
    torch.manual_seed(0)
    made = layers.Attention(TinyVitConfig(), heads * head_dim, heads, side)
    with torch.no_grad():
        made.attention_biases.normal_()
        made.norm.weight.normal_(1, 0.2)
    return made.eval()


@pytest.mark.parametrize(
    ("side", "parts"),
    [(7, 1), (11, 1), (12, 12), (13, 13), (14, 14), (16, 16), (17, 1), (24, 12), (32, 16)],
)
def test_strips_hold_every_bias(side: int, parts: int) -> None:
    """Oracle: the expanded biases, and the formula for the size of a strip."""
    biases = expanded(side)
    assert strip_parts(side**2) == parts
    made = AttentionBias(biases).stripped()
    assert torch.equal(made(), biases)
    assert made.values.numel() == biases.numel() * (2 * parts - 1) // parts**2


@pytest.mark.parametrize("parts", [1, 2, 3, 6])
def test_any_divisor_of_the_side_makes_a_strip(parts: int) -> None:
    """Oracle: the rows of the expanded biases, part by part."""
    biases = expanded(6)
    strip = as_strip(biases, parts)
    rows = 36 // parts
    for part, columns in enumerate(strip_columns(strip, parts)):
        assert torch.equal(strip[:, :, columns], biases[:, part * rows : (part + 1) * rows])


def test_int8_biases_are_a_strip_of_the_same_integers() -> None:
    """Oracle: NumPy's rounding of the expanded biases."""
    biases = expanded(14)
    made = Int8AttentionBias(AttentionBias(biases))
    step = np.float32(biases.abs().max() / 127)
    integers = np.rint(biases.numpy() / step)
    assert made.values.numel() < biases.numel() // 7
    np.testing.assert_allclose(made().numpy(), integers * step, rtol=1e-6)


@pytest.mark.parametrize(
    ("heads", "side", "groups"), [(5, 14, 1), (18, 16, 1), (12, 24, 4), (5, 24, 1), (7, 32, 3)]
)
@pytest.mark.parametrize("windows", [1, 2])
def test_groups_of_heads_equal_the_reference(
    heads: int, side: int, groups: int, windows: int, sqnr_db: Sqnr
) -> None:
    """Oracle: the reference's attention; the groups are the rule's, counted by hand."""
    source = reference(heads, side)
    x = torch.randn(windows, side**2, heads * 4, generator=torch.Generator().manual_seed(1))
    with torch.inference_mode():
        expected, _ = source(x)
        made = Attention(source, FormOptions())
        assert len(made.groups) == groups
        assert min(group.heads for group in made.groups) >= 2
        assert torch.equal(made.biases(), source.attention_biases[:, source.attention_bias_idxs])
        assert sqnr_db(expected, made(x.flatten(0, 1)).reshape(x.shape)) >= 110


def test_every_group_asks_for_its_own_conversions() -> None:
    """Oracle: counted by hand: three more groups, each with q, k and v and one result."""
    x = torch.randn(576, 48)
    with torch.no_grad():
        whole = nn.Sequential(Attention(reference(2, 24, 24), FormOptions()))
        grouped = nn.Sequential(Attention(reference(12, 24), FormOptions()))
        without, with_groups = integer_demand(whole, x), integer_demand(grouped, x)
    assert with_groups.quantize - without.quantize == 3
    assert with_groups.dequantize - without.dequantize == 9


def test_batches_keep_every_item_in_order() -> None:
    """Oracle: the list itself, and the limit."""
    batches = in_batches(list(range(14)), 5)
    assert [item for batch in batches for item in batch] == list(range(14))
    assert [len(batch) for batch in batches] == [5, 5, 4]


def check_file(program: Program, path: Path, exporter: Exporter, sqnr_db: Sqnr) -> None:
    """One partition, the strip's bytes, no conversion but the layers', and PyTorch's logits."""
    exported = exporter.export(program, path)
    audit = exporter.audit(path)
    demand = integer_demand(program.module, program.example_input())
    assert audit.weight_bytes["int8"] == demand.weight_bytes["int8"]
    assert audit.needless == 0
    assert audit.quantize <= demand.quantize
    assert audit.dequantize <= demand.dequantize
    counts = {key: value for key, value in exported.details.items() if "partitions" in key}
    assert list(counts.values()) == [1]
    image = torch.randn(1, 3, 112, 112, generator=torch.Generator().manual_seed(2))
    logits = exporter.load(path, threads=1)(image.numpy())
    with torch.inference_mode():
        assert sqnr_db(program.module(image), torch.from_numpy(logits)) >= 25


@pytest.mark.parametrize("precision", ["w8a8", "w8-dynamic"])
@pytest.mark.parametrize(
    ("target", "package"), [("executorch", "executorch"), ("tflite", "litert_torch")]
)
def test_files_move_integers(
    target: str,
    package: str,
    precision: str,
    large_window_program: MakeProgram,
    tmp_path: Path,
    sqnr_db: Sqnr,
) -> None:
    """Oracle: the saved file's bytes and conversions, and PyTorch's logits."""
    pytest.importorskip(package)
    exporter = exporter_of(target)
    program = large_window_program(precision, exporter.form)
    check_file(program, tmp_path / exporter.artifact, exporter, sqnr_db)


def test_executorch_stores_half_biases_as_a_strip(large_window_program: MakeProgram) -> None:
    """Oracle: the program's module: float16 values in a strip, which are the rounded biases."""
    pytest.importorskip("executorch")
    from tinyvit_edge.exporters.executorch import ExecuTorchExporter

    form = ExecuTorchExporter().form
    half, full = large_window_program("fp16", form), large_window_program("fp32", form)

    def biases(program: Program) -> list[AttentionBias]:
        return [one for one in program.module.modules() if isinstance(one, AttentionBias)]

    assert [one.parts for one in biases(half)] == [14, 1]
    for stored, exact in zip(biases(half), biases(full), strict=True):
        assert torch.equal(stored(), exact().half().float())
