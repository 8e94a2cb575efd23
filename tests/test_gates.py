"""Gates: every row of tolerances passes and fails where it should."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import pytest

from tinyvit_edge.exporters import Audit
from tinyvit_edge.gates import TOLERANCES, Sensitivity, judge, judge_coverage
from tinyvit_edge.precision import PRECISIONS
from tinyvit_edge.quantization.accounting import IntegerDemand
from tinyvit_edge.report import Accuracy, Conversion, Gate, Quantization

SQNR, AGREEMENT = "conversion SQNR", "conversion top-1 agreement"
DROP, FLOAT_AGREEMENT = "top-1 drop", "quantization top-1 agreement"
# sqnr_db, agreement, drop, agreement with float
BOUNDS = {
    "fp32": (90.0, 1.0, 0.0, 1.0),
    "fp16": (35.0, 0.99, 0.005, 0.99),
    "w8-dynamic": (30.0, 0.98, 0.005, 0.98),
    "w8a8": (30.0, 0.98, 0.01, 0.95),
    "w8a8-mixed": (30.0, 0.98, 0.005, 0.97),
    "w8": (35.0, 0.99, 0.005, 0.99),
    "w6-lut": (35.0, 0.99, 0.005, 0.98),
    "w4-lut": (35.0, 0.99, 0.015, 0.93),
    "w4g32": (35.0, 0.99, 0.015, 0.93),
}
SOUND = Conversion(sqnr_db=120.0, top1_agreement=1.0)
SAME = Quantization(top1_agreement=1.0)
MANY = 10_000


def judged(precision: str, **changes: object) -> dict[str, Gate]:
    arguments = {"conversion": SOUND, "quantization": SAME} | changes
    return {gate.name: gate for gate in judge(precision, **arguments)}  # type: ignore[arg-type]


def test_every_precision_has_a_row_and_every_bound_a_reason() -> None:
    """Oracle: the table of precisions, and the bounds that the field uses."""
    assert TOLERANCES.keys() == PRECISIONS.keys() == BOUNDS.keys()
    for name, row in TOLERANCES.items():
        assert (row.sqnr_db, row.agreement, row.drop, row.float_agreement) == BOUNDS[name]
        assert row.sqnr_reason
        assert row.drop_reason
        both = judge(name, conversion=SOUND, quantization=SAME)
        labelled = judge(
            name,
            conversion=SOUND,
            quantization=SAME,
            accuracy=Accuracy(top1=1.0, n=9),
            reference=Accuracy(top1=1.0, n=9),
        )
        assert all(gate.passed and gate.reason for gate in (*both, *labelled))


@pytest.mark.parametrize("precision", BOUNDS)
def test_conversion_sqnr_is_judged_at_its_bound(precision: str) -> None:
    """Oracle: `BOUNDS`; a measure at the bound passes, one a hundredth of a dB below does not."""
    bound = BOUNDS[precision][0]
    for sqnr, passed in ((bound, True), (bound - 0.01, False), (math.inf, True)):
        gates = judged(precision, conversion=Conversion(sqnr_db=sqnr, top1_agreement=1.0))
        assert gates[SQNR].passed is passed
        assert gates[SQNR].bound == bound
        assert gates[SQNR].direction == "min"
        assert gates[AGREEMENT].passed


@pytest.mark.parametrize("precision", BOUNDS)
def test_conversion_agreement_is_judged_at_its_bound(precision: str) -> None:
    """Oracle: `BOUNDS`."""
    bound = BOUNDS[precision][1]
    for agreement, passed in ((bound, True), (bound - 1e-4, False)):
        conversion = Conversion(sqnr_db=120.0, top1_agreement=agreement)
        gates = judged(precision, conversion=conversion)
        assert gates[AGREEMENT].passed is passed
        assert gates[SQNR].passed


@pytest.mark.parametrize("precision", BOUNDS)
def test_drop_is_judged_at_its_bound(precision: str) -> None:
    """Oracle: `BOUNDS`; with ten thousand images one image is a hundredth of a point."""
    bound = max(BOUNDS[precision][2], 1 / MANY)
    for drop, passed in ((bound, True), (bound + 1 / MANY, False), (-0.05, True), (0.0, True)):
        gates = judged(
            precision,
            accuracy=Accuracy(top1=0.8 - drop, n=MANY),
            reference=Accuracy(top1=0.8, n=MANY),
        )
        assert gates[DROP].passed is passed
        assert gates[DROP].measured == pytest.approx(drop)
        assert gates[DROP].bound == pytest.approx(bound)
        assert gates[DROP].direction == "max"
        assert FLOAT_AGREEMENT not in gates


@pytest.mark.parametrize("precision", BOUNDS)
def test_one_image_less_is_within_any_bound_and_two_are_not(precision: str) -> None:
    """Oracle: 50 images, so that one is two points, above every tolerance."""
    reference = Accuracy(top1=45 / 50, n=50)
    for right, passed in ((44, True), (43, False)):
        accuracy = Accuracy(top1=right / 50, n=50)
        assert judged(precision, accuracy=accuracy, reference=reference)[DROP].passed is passed


@pytest.mark.parametrize("precision", BOUNDS)
def test_unlabelled_images_are_judged_by_agreement_with_float(precision: str) -> None:
    """Oracle: `BOUNDS`."""
    bound = BOUNDS[precision][3]
    for agreement, passed in ((bound, True), (bound - 1e-4, False)):
        gates = judged(precision, quantization=Quantization(top1_agreement=agreement))
        assert gates[FLOAT_AGREEMENT].passed is passed
        assert gates[FLOAT_AGREEMENT].bound == bound
        assert DROP not in gates


@pytest.mark.parametrize("nothing", [None, math.nan])
def test_a_measure_that_is_missing_or_not_a_number_fails(nothing: float | None) -> None:
    """Oracle: what was not measured cannot be good."""
    gates = judged(
        "w8a8",
        conversion=Conversion(sqnr_db=nothing, top1_agreement=nothing),
        quantization=Quantization(top1_agreement=nothing),
    )
    assert {name: gate.passed for name, gate in gates.items()} == dict.fromkeys(
        (SQNR, AGREEMENT, FLOAT_AGREEMENT), False
    )
    labelled = judged(
        "w8a8", accuracy=Accuracy(top1=nothing, n=9), reference=Accuracy(top1=0.9, n=9)
    )
    assert not labelled[DROP].passed


@pytest.mark.parametrize(
    ("moved_db", "bound_db"),
    [(20.0, 14.0), (35.9, 29.9), (36.0, 30.0), (60.0, 30.0), (12.0, 10.0), (-5.0, 10.0)],
)
def test_sensitivity_lowers_the_sqnr_bound_down_to_ten(moved_db: float, bound_db: float) -> None:
    """Oracle: 6 dB below what the reference itself moves, within 10..30 dB."""
    moved = Sensitivity(rounding=1e-6, sqnr_db=moved_db, top1_agreement=1.0)
    gate = judged("w8a8", sensitivity=moved)[SQNR]
    assert gate.bound == pytest.approx(bound_db)
    assert gate.reason is not None
    assert ("moves" in gate.reason) == (bound_db < 30.0)
    for sqnr, passed in ((bound_db, True), (bound_db - 0.01, False)):
        conversion = Conversion(sqnr_db=sqnr, top1_agreement=1.0)
        assert judged("w8a8", conversion=conversion, sensitivity=moved)[SQNR].passed is passed


def test_sensitivity_lowers_the_agreement_bound_and_never_raises_it() -> None:
    """Oracle: five points below the reference's agreement with itself, where that is not all."""
    for own, bound in ((1.0, 0.98), (0.99, 0.94), (0.8, 0.75)):
        moved = Sensitivity(rounding=1e-6, sqnr_db=60.0, top1_agreement=own)
        gate = judged("w8a8", sensitivity=moved)[AGREEMENT]
        assert gate.bound == pytest.approx(bound)


def test_sensitivity_leaves_the_price_of_the_precision_alone() -> None:
    """Oracle: quantization loss does not depend on rounding edges."""
    moved = Sensitivity(rounding=1e-6, sqnr_db=12.0, top1_agreement=0.5)
    loss = Quantization(top1_agreement=0.94)
    assert not judged("w8a8", quantization=loss, sensitivity=moved)[FLOAT_AGREEMENT].passed


DEMAND = IntegerDemand(
    weight_bytes={"int8": 1000}, int8_macs=5000, float_macs=700, quantize=9, dequantize=18
)
SOUND_AUDIT = Audit(
    weight_bytes={"int8": 1000, "float32": 7},
    macs={"int8": 5000, "float32": 700},
    left_float={},
    quantize=9,
    dequantize=18,
)


@pytest.mark.parametrize(
    ("changes", "failed"),
    [
        ({}, set()),
        ({"weight_bytes": {"int8": 999}}, {"int8 weight bytes"}),
        ({"weight_bytes": {"int8": 2000}}, set()),
        ({"macs": {"int8": 4999, "float32": 701}}, {"int8 multiply-accumulates"}),
        ({"macs": {"int8": 5001, "float32": 699}}, {"float multiply-accumulates"}),
        ({"macs": {"int8": 5000, "float32": 300, "float16": 400}}, set()),
        (
            {"macs": {"float32": 5700}, "weight_bytes": {"float32": 4000}},
            {"int8 weight bytes", "int8 multiply-accumulates"},
        ),
        ({"quantize": 10}, {"quantize operators"}),
        ({"dequantize": 19}, {"dequantize operators"}),
        ({"quantize": 0, "dequantize": 0}, set()),
        ({"needless": 1}, {"needless conversions"}),
    ],
)
def test_coverage_is_what_the_program_asks(changes: dict[str, Any], failed: set[str]) -> None:
    """Oracle: `DEMAND`; a row lists what a saved file has otherwise, and the gates that say so."""
    gates = judge_coverage(replace(SOUND_AUDIT, **changes), DEMAND)
    assert [gate.name for gate in gates] == [
        "int8 weight bytes",
        "int8 multiply-accumulates",
        "float multiply-accumulates",
        "quantize operators",
        "dequantize operators",
        "needless conversions",
    ]
    assert {gate.name for gate in gates if not gate.passed} == failed
    assert all(gate.reason for gate in gates)


def test_coverage_of_weights_alone_asks_for_no_arithmetic() -> None:
    """Oracle: 1000 bytes of a type of fewer bits, and one that another type cannot stand for."""
    demand = IntegerDemand(weight_bytes={"uint4": 1000}, int8_macs=0, float_macs=10)
    for stored, passed in (
        ({"uint4": 1000}, True),
        ({"uint4": 999}, False),
        ({"int8": 10**9}, False),
    ):
        audit = Audit(weight_bytes=stored, macs={"float16": 10}, left_float={})
        gates = {gate.name: gate.passed for gate in judge_coverage(audit, demand)}
        assert gates.pop("uint4 weight bytes") is passed
        assert "int8 multiply-accumulates" not in gates
        assert all(gates.values())
