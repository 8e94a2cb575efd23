"""Precisions: what a name means, the same on every target.

A name follows a grammar, and `PRECISIONS` holds the rows that are built:

==============  ==================================================================
``fp32``        weights and arithmetic in float32
``fp16``        weights in float16; arithmetic in float16 where the target's
                runtime computes in half, in float32 elsewhere
``w8-dynamic``  int8 weights of the Linear layers (per output channel, symmetric),
                their inputs quantized to 8 bits at run time
``w8a8``        int8 weights and int8 activations of the Linear and convolution
                layers, activation ranges calibrated on images
``w8a8-mixed``  ``w8a8`` but for the few layers that cost the most accuracy, which are left
                in floating point: as many as a budget for the loss asks for
``w8``          int8 weights of the Linear and convolution layers; arithmetic as in ``fp16``
``w6-lut``      weights are 6-bit indices into a table of 64 values a layer; arithmetic as in
                ``fp16``
``w4-lut``      the same with 4 bits and 16 values
``w4g32``       int4 weights, a scale for every 32 inputs of an output channel; arithmetic as in
                ``fp16``
==============  ==================================================================

Under 8 bits, depthwise convolutions and layers of fewer than 2048 weights stay as in ``fp16``, and
at ``w4g32`` layers whose inputs are no whole number of blocks. Attention biases are int8 in every
row whose weights are integers. ``w8a8`` leaves the local convolutions out, the depthwise ones
between attention and MLP: what goes in and comes out is the sum of all blocks so far, and rounding
it to 8 bits costs accuracy and saves no time on any runtime here.

``w<bits>`` is the weights' width, ``a<bits>`` the activations', ``g<inputs>`` how many weights
share a scale, ``-lut`` says that weights are looked up in a table, ``-dynamic`` that the
activations' ranges are taken at run time, ``-mixed`` that some layers are left out. Softmax, GELU,
LayerNorm, the attention products and the residual adds stay in floating point in every row: no
runtime here delegates them in int8 without losing more time in conversions than it wins, and they
are where a hybrid of convolution and attention loses its accuracy.
"""

from __future__ import annotations

import difflib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal

from tinyvit_edge.errors import InputError

__all__ = [
    "MAX_DROP",
    "PRECISIONS",
    "LayerKind",
    "Precision",
    "parse_precision",
    "parse_precisions",
]

MAX_DROP = 0.003
"""Usual budget of ``-mixed`` rows: loss of top-1 accuracy, in 0..1."""

LayerKind = Literal["linear", "conv", "local-conv"]
"""The last is the depthwise convolution between attention and MLP, on the sum of all that came
before."""
ProductKind = Literal["linear", "conv", "attention"]
"""A layer's product with its weight, or attention's products of two activations."""


_ATTENTION = (
    "no precision quantizes a product of two activations: it loses more time in conversions than it"
    " wins, and it is where a hybrid of convolution and attention loses its accuracy"
)
_LOCAL = (
    "local convolutions take and give the sum of all blocks so far: rounding it to 8 bits costs"
    " accuracy and saves no time"
)
_NAMED = "they cost the most accuracy, so the calibration names them"
_NOTHING_QUANTIZED = "the precision is floating point throughout"
_WEIGHTS_ALONE = "weights alone are integers: it is for size, and kernels compute in floating point"


def _all(reason: str) -> dict[ProductKind, str]:
    return {"linear": reason, "conv": reason, "attention": reason}


@dataclass(frozen=True, slots=True, kw_only=True)
class Precision:
    """One row: what is stored and computed in which type."""

    name: str
    weights: Literal["float32", "float16", "int8", "int4", "uint6", "uint4"]
    """Storage type of the quantized layers' weights; an unsigned one indexes a table."""
    activations: Literal["float", "half", "dynamic", "static"]
    """``float``: float32. ``half``: float16 where the runtime has it. ``dynamic``: int8 ranges
    at run time. ``static``: int8 ranges from calibration."""
    layers: tuple[LayerKind, ...] = ()
    """Kinds of layer that are quantized; the others stay floating point."""
    block: int | None = None
    """Inputs that share a scale, where it is not the whole output channel that does."""
    mixed: bool = False
    """Whether the layers that the calibration names stay in floating point, too."""
    meaning: str
    why_float: Mapping[ProductKind, str] = field(hash=False)
    """What is computed in floating point, and why."""

    @property
    def exception(self) -> str:
        """What to add where the row's arithmetic is described."""
        return "; layers that the calibration names are left out" if self.mixed else ""

    @property
    def quantized(self) -> bool:
        """Whether any layer's weights are integers."""
        return self.weights not in ("float32", "float16")

    @property
    def bits(self) -> int:
        """Width of the quantized layers' weights."""
        return int(self.weights.lstrip("floatuin"))

    @property
    def coded(self) -> bool:
        """Whether weights have fewer than 8 bits, which are rounded with an eye on the inputs."""
        return self.quantized and self.weights != "int8"

    @property
    def weight_only(self) -> bool:
        """Whether weights are integers and the arithmetic is not."""
        return self.quantized and self.activations == "half"

    @property
    def computes_in_integers(self) -> bool:
        """Whether layers multiply integers, which is what makes them faster."""
        return self.quantized and not self.weight_only

    @property
    def calibrated(self) -> bool:
        """Whether images are needed to choose activation ranges."""
        return self.activations == "static"

    @property
    def needs_photos(self) -> bool:
        """Whether anything is chosen by what images do."""
        return self.calibrated or self.coded


_ROWS = (
    Precision(
        name="fp32",
        weights="float32",
        activations="float",
        meaning="weights and arithmetic in float32",
        why_float=_all(_NOTHING_QUANTIZED),
    ),
    Precision(
        name="fp16",
        weights="float16",
        activations="half",
        meaning="weights in float16, arithmetic in float16 where the runtime has it",
        why_float=_all(_NOTHING_QUANTIZED),
    ),
    Precision(
        name="w8-dynamic",
        weights="int8",
        activations="dynamic",
        layers=("linear",),
        meaning="int8 Linear weights per channel, inputs quantized at run time",
        why_float={
            "attention": _ATTENTION,
            "conv": "ranges are taken at run time for Linear layers alone; w8a8 has those of"
            " convolutions from photos",
        },
    ),
    Precision(
        name="w8a8",
        weights="int8",
        activations="static",
        layers=("linear", "conv"),
        meaning="int8 Linear and conv weights per channel, calibrated int8 activations",
        why_float={"attention": _ATTENTION, "conv": _LOCAL},
    ),
    Precision(
        name="w8a8-mixed",
        weights="int8",
        activations="static",
        layers=("linear", "conv"),
        mixed=True,
        meaning="w8a8, but for the few layers that cost the most accuracy, left in floating point",
        why_float={
            "attention": _ATTENTION,
            "linear": _NAMED,
            "conv": f"{_LOCAL}; as for others, {_NAMED}",
        },
    ),
    Precision(
        name="w8",
        weights="int8",
        activations="half",
        layers=("linear", "conv", "local-conv"),
        meaning="int8 Linear and conv weights per channel, arithmetic in floating point",
        why_float=_all(_WEIGHTS_ALONE),
    ),
    Precision(
        name="w6-lut",
        weights="uint6",
        activations="half",
        layers=("linear", "conv", "local-conv"),
        meaning="weights from a table of 64 values a layer, arithmetic in floating point",
        why_float=_all(_WEIGHTS_ALONE),
    ),
    Precision(
        name="w4-lut",
        weights="uint4",
        activations="half",
        layers=("linear", "conv", "local-conv"),
        meaning="weights from a table of 16 values a layer, arithmetic in floating point",
        why_float=_all(_WEIGHTS_ALONE),
    ),
    Precision(
        name="w4g32",
        weights="int4",
        activations="half",
        layers=("linear", "conv", "local-conv"),
        block=32,
        meaning="int4 weights, a scale every 32 inputs, arithmetic in floating point",
        why_float=_all(_WEIGHTS_ALONE),
    ),
)

PRECISIONS: dict[str, Precision] = {row.name: row for row in _ROWS}


def parse_precision(name: str) -> Precision:
    """Look up one row by name.

    Raises:
        InputError: unknown name; the message names the nearest row.
    """
    try:
        return PRECISIONS[name]
    except KeyError:
        near = difflib.get_close_matches(name, PRECISIONS, n=1, cutoff=0.4)
        hint = f"did you mean {near[0]!r}?" if near else "none is near;"
        raise InputError(
            f"unknown precision {name!r}: {hint} choose from {', '.join(PRECISIONS)}"
        ) from None


def parse_precisions(names: Sequence[str]) -> tuple[Precision, ...]:
    """Look up several rows, in the order given, without repeats."""
    return tuple(parse_precision(name) for name in dict.fromkeys(names))
