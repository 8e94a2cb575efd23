"""Conversions of activations: graphs written by hand, each step as a letter and two names."""

from __future__ import annotations

import pytest

from tinyvit_edge.exporters._conversions import Conversions, Role, Step, conversions

ROLES: dict[str, Role] = {"L": "layer", "Q": "quantize", "D": "dequantize", "M": "move"}


def steps(text: str) -> list[Step]:
    """``"Qxq Lqy"``: a quantize from x to q, a layer from q to y."""
    return [Step(role=ROLES[word[0]], source=word[1], result=word[2]) for word in text.split()]


@pytest.mark.parametrize(
    ("graph", "found"),
    [
        ("", (0, 0, 0)),
        ("Qxq Lqy Dyz", (1, 1, 0)),
        ("Qxq Mqr Lry Myw Dwz", (1, 1, 0)),
        ("Qxq Lqy Lyw Dwz", (1, 1, 0)),  # a layer right behind another
        ("Qxq Lqy Lqw Dyz Dwv", (1, 2, 0)),  # two layers of one input
        ("Qxq Lqy Dyz Myw Dwv", (1, 2, 0)),  # for the residual add, and for what else reads it
        ("Qxq Lqy Qyr Lrw Dwz", (2, 1, 0)),  # to other ranges
        ("Qxq Dqz", (1, 1, 2)),  # around an operator in floating point
        ("Qxq", (1, 0, 1)),  # into an int8 GELU, say
        ("Dqz", (0, 1, 1)),  # and out of one
        ("Qxq Lqy Dyz Qzr Drw", (2, 2, 2)),
    ],
)
def test_kernels_of_8_bit_values(graph: str, found: tuple[int, int, int]) -> None:
    """Oracle: counted by hand."""
    quantize, dequantize, needless = found
    assert conversions(steps(graph)) == Conversions(
        quantize=quantize, dequantize=dequantize, needless=needless
    )


@pytest.mark.parametrize(
    ("graph", "floats", "found"),
    [
        ("Qxq Dqa Lab Qbr Drz", "z", (1, 1, 0)),
        ("Qxq Mqs Dsa Lab Qbr Mrt Dtz", "z", (1, 1, 0)),
        ("Qxq Dqa Lab Lac Qbr Drz Qcs Dsw", "zw", (1, 2, 0)),
        ("Qxq Dqa Lab Qbr Drz Lzc Qcs Dsw", "w", (1, 1, 0)),  # a layer right behind another
        ("Qxq Dqa Lab Qbr Drz Lzc Qcs Dsw", "zw", (1, 2, 0)),  # and an add that reads it, too
        ("Qxq Lqy", "y", (1, 0, 0)),  # run-time ranges
        ("Qxq Dqa", "a", (1, 1, 2)),
        ("Qxq Dqa Lab Qbr Drz Qzs Dsw", "w", (2, 2, 2)),
        ("Qxq Dqa Lab Qbr Drz", "az", (1, 2, 1)),  # a float operator that reads rounded values
    ],
)
def test_qdq_form(graph: str, floats: str, found: tuple[int, int, int]) -> None:
    """Oracle: counted by hand; a layer takes up the dequantize before and the quantize behind."""
    quantize, dequantize, needless = found
    assert conversions(steps(graph), floats=set(floats), folds=True) == Conversions(
        quantize=quantize, dequantize=dequantize, needless=needless
    )


@pytest.mark.parametrize(
    ("graph", "found"),
    [
        ("Dcz", (0, 0, 0)),
        ("Mcp Mcq Mpz Mqz Dzy", (0, 0, 0)),  # cut from a strip, joined, widened
        ("Mcp Dpz Qxq Lqy Dyw", (1, 1, 0)),
    ],
)
def test_what_becomes_of_constants_does_not_count(graph: str, found: tuple[int, int, int]) -> None:
    """Oracle: counted by hand; c is a constant."""
    quantize, dequantize, needless = found
    assert conversions(steps(graph), constants={"c"}) == Conversions(
        quantize=quantize, dequantize=dequantize, needless=needless
    )
