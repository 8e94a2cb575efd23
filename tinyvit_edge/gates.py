"""Gates: which measured loss is too much, as rows of data with their reasons.

Two losses are judged apart. *Conversion* loss is the artifact in its runtime against the same
program in PyTorch: it should be rounding, so its bounds are tight. *Quantization* loss is the
artifact against the float32 model: it is the price of the precision, in points of accuracy.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

from tinyvit_edge.report import Accuracy, Conversion, Gate, Quantization

if TYPE_CHECKING:
    from tinyvit_edge.exporters import Audit
    from tinyvit_edge.quantization.accounting import IntegerDemand

__all__ = ["TOLERANCES", "Sensitivity", "Tolerance", "judge", "judge_coverage"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Tolerance:
    """Bounds of one precision."""

    sqnr_db: float
    """Least conversion SQNR in dB."""
    sqnr_reason: str
    agreement: float
    """Least top-1 agreement with the same-precision reference, in 0..1."""
    drop: float
    """Largest loss of top-1 accuracy against float32, in 0..1."""
    drop_reason: str
    float_agreement: float
    """Least top-1 agreement with float32, in 0..1; judged where images have no labels."""


_HALF_ARITHMETIC = (
    "the integers are equal, so only half-precision arithmetic and scales may differ: PyTorch's "
    "own half-precision run of TinyViT is at about 44 dB"
)

TOLERANCES: Mapping[str, Tolerance] = {
    "fp32": Tolerance(
        sqnr_db=90.0,
        sqnr_reason="float32 rounding through some 100 layers costs about 20 of 144 dB; sound "
        "conversions measure 100 dB and more, a wrong operator falls below 60",
        agreement=1.0,
        drop=0.0,
        drop_reason="float32 to float32 may not cost an image",
        float_agreement=1.0,
    ),
    "fp16": Tolerance(
        sqnr_db=35.0,
        sqnr_reason="PyTorch's own half-precision run of TinyViT is at about 44 dB",
        agreement=0.99,
        drop=0.005,
        drop_reason="half precision is taken to be free: half a point is sampling noise",
        float_agreement=0.99,
    ),
    "w8-dynamic": Tolerance(
        sqnr_db=30.0,
        sqnr_reason="the runtime rounds run-time ranges its own way; the weights are equal",
        agreement=0.98,
        drop=0.005,
        drop_reason="the ranges fit each image: more than half a point means a broken layer",
        float_agreement=0.98,
    ),
    "w8a8": Tolerance(
        sqnr_db=30.0,
        sqnr_reason="scales are equal, so only values on a rounding edge may differ",
        agreement=0.98,
        drop=0.01,
        drop_reason="a point is what MLPerf Mobile and device farms flag for int8",
        float_agreement=0.95,
    ),
    "w8a8-mixed": Tolerance(
        sqnr_db=30.0,
        sqnr_reason="scales are equal, so only values on a rounding edge may differ",
        agreement=0.98,
        drop=0.005,
        drop_reason="what layers were left in floating point for; more than half a point is not"
        " a mixed program's worth",
        float_agreement=0.97,
    ),
    "w8": Tolerance(
        sqnr_db=35.0,
        sqnr_reason=_HALF_ARITHMETIC,
        agreement=0.99,
        drop=0.005,
        drop_reason="int8 weights a channel are taken to be free: half a point is sampling noise",
        float_agreement=0.99,
    ),
    "w6-lut": Tolerance(
        sqnr_db=35.0,
        sqnr_reason=_HALF_ARITHMETIC,
        agreement=0.99,
        drop=0.005,
        drop_reason="64 values a layer are taken to be free: half a point is sampling noise",
        float_agreement=0.98,
    ),
    "w4-lut": Tolerance(
        sqnr_db=35.0,
        sqnr_reason=_HALF_ARITHMETIC,
        agreement=0.99,
        drop=0.015,
        drop_reason="the price of an eighth of the size; more than a point and a half is not worth"
        " it where w6-lut costs nothing",
        float_agreement=0.93,
    ),
    "w4g32": Tolerance(
        sqnr_db=35.0,
        sqnr_reason=_HALF_ARITHMETIC,
        agreement=0.99,
        drop=0.015,
        drop_reason="the price of a seventh of the size; more than a point and a half is not worth"
        " it where w6-lut costs nothing",
        float_agreement=0.93,
    ),
}

_SQNR_FLOOR_DB = 10.0
_SQNR_MARGIN_DB = 6.0
_AGREEMENT_MARGIN = 0.05


@dataclass(frozen=True, slots=True, kw_only=True)
class Sensitivity:
    """How far the same-precision reference moves when its arithmetic rounds a little differently.

    Rounding to int8 is a step function: where many activations lie on an edge, as they do with
    untrained weights, no two correct implementations agree better than this.
    """

    rounding: float
    """Noise on the input of every quantized layer, as a fraction of the input's spread."""
    sqnr_db: float
    top1_agreement: float


def judge(
    precision: str,
    *,
    conversion: Conversion,
    quantization: Quantization,
    accuracy: Accuracy | None = None,
    reference: Accuracy | None = None,
    sensitivity: Sensitivity | None = None,
) -> tuple[Gate, ...]:
    """Judge one artifact.

    Args:
        precision: a key of `TOLERANCES`.
        conversion: against the same-precision reference.
        quantization: against float32.
        accuracy: of the artifact; None where images have no labels.
        reference: of the float32 model on the same images.
        sensitivity: of the same-precision reference, for int8 rows.

    Returns:
        One gate a bound, passed or not; a measure that is None fails its gate.
    """
    tolerance = TOLERANCES[precision]
    gates = list(_conversion_gates(tolerance, conversion, sensitivity))
    if accuracy is not None and reference is not None:
        gates.append(_drop_gate(tolerance, accuracy, reference))
    else:
        gates.append(
            _at_least(
                "quantization top-1 agreement",
                quantization.top1_agreement,
                tolerance.float_agreement,
                "images have no labels, so agreement with float32 stands for accuracy",
            )
        )
    return tuple(gates)


_INTEGER = "every layer that the precision quantizes must be so in the saved file"
_FLOAT = "what the precision leaves in floating point must be so in the saved file"
_CONVERSIONS = {
    "quantize operators": "an int8 layer needs its input rounded once, and nothing else is rounded",
    "dequantize operators": "an int8 layer's result is widened at most twice: for a residual add,"
    " and for what else reads it",
    "needless conversions": "a value is rounded for an int8 layer, or widened behind one: pairs"
    " around other operators cost time and accuracy",
}


def judge_coverage(audit: Audit, demand: IntegerDemand) -> tuple[Gate, ...]:
    """Judge whether an artifact stores and computes in integers what its precision says.

    Args:
        audit: what was read back from the saved file.
        demand: what the program that it was made from asks for.
    """
    least = [
        (f"{dtype} weight bytes", audit.weight_bytes.get(dtype, 0), bound, _INTEGER)
        for dtype, bound in demand.weight_bytes.items()
    ]
    if demand.int8_macs:
        least.append(("int8 multiply-accumulates", audit.int8_macs, demand.int8_macs, _INTEGER))
    floats = audit.total_macs - audit.int8_macs
    least.append(("float multiply-accumulates", floats, demand.float_macs, _FLOAT))
    most = zip(
        _CONVERSIONS.items(),
        (audit.quantize, audit.dequantize, audit.needless),
        (demand.quantize, demand.dequantize, 0),
        strict=True,
    )
    return (
        *(_at_least(name, float(measured), bound, why) for name, measured, bound, why in least),
        *(_at_most(name, float(measured), bound, why) for (name, why), measured, bound in most),
    )


def _conversion_gates(
    tolerance: Tolerance, conversion: Conversion, sensitivity: Sensitivity | None
) -> tuple[Gate, ...]:
    sqnr, reason = tolerance.sqnr_db, tolerance.sqnr_reason
    agreement, agreement_reason = tolerance.agreement, "the same program must choose the same class"
    if sensitivity is not None:
        reachable = max(sensitivity.sqnr_db - _SQNR_MARGIN_DB, _SQNR_FLOOR_DB)
        if reachable < sqnr:
            sqnr = reachable
            reason = (
                f"the reference itself moves to {sensitivity.sqnr_db:.1f} dB when each layer's "
                f"input moves by {sensitivity.rounding:g}; {_SQNR_MARGIN_DB:.0f} dB of margin"
            )
        own = sensitivity.top1_agreement
        if own < 1.0 and own - _AGREEMENT_MARGIN < agreement:
            agreement = own - _AGREEMENT_MARGIN
            agreement_reason = (
                f"the reference itself agrees on {own:.1%} of the images when each layer's input "
                f"moves by {sensitivity.rounding:g}; {_AGREEMENT_MARGIN:.0%} of margin"
            )
    return (
        _at_least("conversion SQNR", conversion.sqnr_db, sqnr, reason),
        _at_least(
            "conversion top-1 agreement",
            conversion.top1_agreement,
            agreement,
            agreement_reason,
        ),
    )


def _drop_gate(tolerance: Tolerance, accuracy: Accuracy, reference: Accuracy) -> Gate:
    drop = None
    if accuracy.top1 is not None and reference.top1 is not None:
        drop = reference.top1 - accuracy.top1
    # one image more or less is within any bound: with few images it is many points
    bound = max(tolerance.drop, 1.0 / (accuracy.n or 1))
    return _at_most("top-1 drop", drop, bound, tolerance.drop_reason)


def _at_least(name: str, measured: float | None, bound: float, reason: str) -> Gate:
    return Gate(
        name=name,
        passed=measured is not None and measured >= bound - 1e-9,
        measured=measured,
        bound=bound,
        direction="min",
        reason=reason,
    )


def _at_most(name: str, measured: float | None, bound: float, reason: str) -> Gate:
    return Gate(
        name=name,
        passed=measured is not None and measured <= bound + 1e-9,
        measured=measured,
        bound=bound,
        direction="max",
        reason=reason,
    )
