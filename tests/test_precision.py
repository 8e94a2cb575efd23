"""The rows of precisions, and looking them up."""

from __future__ import annotations

import pytest

from tinyvit_edge.errors import InputError
from tinyvit_edge.precision import PRECISIONS, parse_precision, parse_precisions


def test_rows_mean_what_their_names_say() -> None:
    """Oracle: the grammar in the module's docstring, spelled out."""
    every = ("linear", "conv", "local-conv")
    facts = {
        name: (row.quantized, row.calibrated, row.weights, row.activations, row.layers)
        for name, row in PRECISIONS.items()
    }
    assert facts == {
        "fp32": (False, False, "float32", "float", ()),
        "fp16": (False, False, "float16", "half", ()),
        "w8-dynamic": (True, False, "int8", "dynamic", ("linear",)),
        "w8a8": (True, True, "int8", "static", ("linear", "conv")),
        "w8a8-mixed": (True, True, "int8", "static", ("linear", "conv")),
        "w8": (True, False, "int8", "half", every),
        "w6-lut": (True, False, "uint6", "half", every),
        "w4-lut": (True, False, "uint4", "half", every),
        "w4g32": (True, False, "int4", "half", every),
    }
    rows = PRECISIONS.items()
    assert [name for name, row in rows if row.coded] == ["w6-lut", "w4-lut", "w4g32"]
    assert [name for name, row in rows if row.weight_only] == ["w8", "w6-lut", "w4-lut", "w4g32"]
    assert [row.bits for row in PRECISIONS.values()] == [32, 16, 8, 8, 8, 8, 6, 4, 4]
    assert {name: row.block for name, row in rows if row.block} == {"w4g32": 32}
    assert [name for name, row in PRECISIONS.items() if row.mixed] == ["w8a8-mixed"]
    assert all(row.name == name and row.meaning for name, row in PRECISIONS.items())


@pytest.mark.parametrize("name", PRECISIONS)
def test_a_row_is_found_by_its_name(name: str) -> None:
    """Oracle: the table."""
    assert parse_precision(name) is PRECISIONS[name]


@pytest.mark.parametrize(
    ("given", "near"),
    [("w8-dynamc", "w8-dynamic"), ("fp-16", "fp16"), ("W8A8", "w8a8"), ("int4-super", None)],
)
def test_an_unknown_name_is_refused_in_one_line_with_the_nearest(
    given: str, near: str | None
) -> None:
    """Oracle: the name that a person would have meant, or the whole list."""
    with pytest.raises(InputError) as caught:
        parse_precision(given)
    message = str(caught.value)
    assert "\n" not in message
    assert repr(given) in message
    assert all(name in message for name in PRECISIONS)
    assert ("did you mean" in message) == (near is not None)
    if near:
        assert f"did you mean {near!r}" in message


def test_several_rows_keep_their_order_and_lose_repeats() -> None:
    """Oracle: the order given."""
    rows = parse_precisions(["w8a8", "fp32", "w8a8"])
    assert [row.name for row in rows] == ["w8a8", "fp32"]
    assert parse_precisions([]) == ()
    with pytest.raises(InputError, match="unknown precision 'fp8'"):
        parse_precisions(["fp32", "fp8"])
