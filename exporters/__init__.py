"""Targets: one file each behind one small protocol, listed in one lazy table.

Listing the targets, or asking what they support, imports none of their packages: an exporter's
module imports them inside the functions that need them.
"""

from __future__ import annotations

import difflib
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from importlib import import_module
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, Protocol

from tinyvit_edge.errors import InputError, MissingDependencyError, UnsupportedError

if not __name__.startswith("tinyvit_edge."):
    raise ImportError("import tinyvit_edge.exporters, not exporters")

if TYPE_CHECKING:
    from tinyvit_edge.deployment import FormOptions
    from tinyvit_edge.exporters._conversions import Conversions
    from tinyvit_edge.precision import Precision, ProductKind
    from tinyvit_edge.program import Program
    from tinyvit_edge.types import FloatArray

__all__ = [
    "TARGETS",
    "Audit",
    "Evaluation",
    "Exported",
    "Exporter",
    "Product",
    "Runner",
    "Share",
    "exporter",
    "missing_packages",
    "require",
    "require_precision",
]


Evaluation = Literal["runtime", "reference-evaluated", "predicted"]


class Runner(Protocol):
    """A loaded artifact, ready to classify one image."""

    def __call__(self, image: FloatArray) -> FloatArray:
        """Map a normalised image (1, 3, S, S) float32 to logits (1, classes) float32.

        The result is the caller's own copy.
        """
        ...


@dataclass(frozen=True, slots=True, kw_only=True)
class Product:
    """One product in a saved file: a Linear layer, a convolution, or one of attention's two."""

    kind: ProductKind
    macs: int
    """Multiply-accumulates for one image."""
    dtype: str
    """Type that it is computed in: ``int8`` where both operands are 8-bit and, if the ranges are
    stored, the result is rounded to 8 bits, too."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Share:
    """Products of one kind."""

    count: int
    macs: int

    def plus(self, macs: int) -> Share:
        """With one more product."""
        return Share(count=self.count + 1, macs=self.macs + macs)


@dataclass(frozen=True, slots=True, kw_only=True)
class Audit:
    """What a saved artifact really holds, read back from the file."""

    weight_bytes: Mapping[str, int]
    """Bytes of constant tensors by storage dtype (``float32``, ``float16``, ``int8``, …)."""
    macs: Mapping[str, int]
    """Multiply-accumulates of all Linear, convolution and attention products by the type that
    they are computed in; weights that are only stored in int8 are computed in floating point."""
    left_float: Mapping[ProductKind, Share]
    """What is computed in floating point, by kind."""
    quantize: int = 0
    """Operators that round activations to 8 bits at run time. Where a file writes an int8 layer as
    dequantize, float layer, quantize (ONNX, Core ML), those belong to the layer, because the
    runtime folds them into its kernel, and are not counted; nor are kernels that round their own
    input (TFLite, ``w8-dynamic``)."""
    dequantize: int = 0
    """Operators that widen 8-bit activations at run time, counted likewise; what widens constants
    is not among them."""
    needless: int = 0
    """Those of both that neither bring an int8 layer its input nor take up its result."""

    @classmethod
    def of(
        cls,
        products: Iterable[Product],
        *,
        weight_bytes: Mapping[str, int],
        conversions: Conversions | None = None,
    ) -> Audit:
        """Add up what a file's reader found."""
        macs: Counter[str] = Counter()
        shares: dict[ProductKind, Share] = {}
        for product in products:
            macs[product.dtype] += product.macs
            if product.dtype != "int8":
                share = shares.get(product.kind, Share(count=0, macs=0))
                shares[product.kind] = share.plus(product.macs)
        return cls(
            weight_bytes=dict(sorted(weight_bytes.items())),
            macs=dict(sorted(macs.items())),
            left_float=dict(sorted(shares.items())),
            quantize=conversions.quantize if conversions else 0,
            dequantize=conversions.dequantize if conversions else 0,
            needless=conversions.needless if conversions else 0,
        )

    @property
    def int8_macs(self) -> int:
        """Multiply-accumulates in int8."""
        return self.macs.get("int8", 0)

    @property
    def total_macs(self) -> int:
        """Multiply-accumulates in any type."""
        return sum(self.macs.values())

    @property
    def int8_weight_fraction(self) -> float:
        """Fraction of the constants' bytes that are int8, in 0..1."""
        return self.weight_bytes.get("int8", 0) / (sum(self.weight_bytes.values()) or 1)

    @property
    def int8_mac_fraction(self) -> float:
        """Fraction of the multiply-accumulates that run in int8, in 0..1."""
        return self.int8_macs / (self.total_macs or 1)


@dataclass(frozen=True, slots=True, kw_only=True)
class Exported:
    """What an exporter says of the artifact it has just written."""

    details: Mapping[str, Any] = field(default_factory=dict)
    """Facts for the manifest, as JSON values: opset, partitions, deployment target, …"""
    reproducible: bool = True
    """Whether the same inputs give the same bytes."""
    input: Literal["tensor", "image"] = "tensor"
    """``tensor``: normalised, (1, 3, S, S) float32; ``image``: RGB pixels, normalised inside."""
    outputs: tuple[str, ...] = ("logits",)
    """Names of the artifact's outputs, in its order."""


class Exporter(Protocol):
    """One target. Implementations are frozen dataclasses whose fields are the options."""

    @property
    def name(self) -> str:
        """Target name as the command line spells it."""
        ...

    @property
    def artifact(self) -> str:
        """File or folder name of the artifact inside a bundle, such as ``model.onnx``."""
        ...

    @property
    def requires(self) -> tuple[str, ...]:
        """Distributions that export and runtime need; the extra has the target's name."""
        ...

    @property
    def form(self) -> FormOptions:
        """The deployment form that this target takes best."""
        ...

    @property
    def unsupported(self) -> Mapping[str, str]:
        """Precision name -> reason, for every row that this target cannot do."""
        ...

    @property
    def evaluation(self) -> Evaluation:
        """How outputs are obtained here: ``runtime``, ``reference-evaluated`` or ``predicted``."""
        ...

    @property
    def rounding(self) -> float:
        """Relative rounding of the arithmetic around int8 layers: 1e-6 float32, 1e-3 float16."""
        ...

    @property
    def timed(self) -> bool:
        """Whether a latency measured on this host is a latency of the real runtime."""
        ...

    def export(self, program: Program, path: Path) -> Exported:
        """Write the artifact to `path`, which does not exist yet.

        Raises:
            ConversionError: the converter failed, or its output breaks the target's profile.
        """
        ...

    def load(self, path: Path, *, threads: int) -> Runner:
        """Load a saved artifact into its real runtime (Core ML off macOS: the evaluator).

        Raises:
            InputError: the file is not a readable artifact of this target.
        """
        ...

    def audit(self, path: Path) -> Audit:
        """Read back from the saved file what is stored and computed in which type."""
        ...


TARGETS: dict[str, str] = {
    "onnx": "tinyvit_edge.exporters.onnx:OnnxExporter",
    "executorch": "tinyvit_edge.exporters.executorch:ExecuTorchExporter",
    "tflite": "tinyvit_edge.exporters.tflite:TfliteExporter",
    "coreml": "tinyvit_edge.exporters.coreml:CoreMlExporter",
}


def exporter(name: str, **options: Any) -> Exporter:
    """Make the exporter of a target, with its options.

    Raises:
        InputError: unknown target; the message names the nearest.
    """
    if name not in TARGETS:
        near = difflib.get_close_matches(name, TARGETS, n=1, cutoff=0.4)
        hint = f"did you mean {near[0]!r}? " if near else ""
        raise InputError(f"unknown target {name!r}: {hint}choose from {', '.join(TARGETS)}")
    module, _, attribute = TARGETS[name].partition(":")
    made: Exporter = getattr(import_module(module), attribute)(**options)
    return made


def missing_packages(target: Exporter) -> tuple[str, ...]:
    """Distributions that the target needs and this environment lacks."""
    return tuple(name for name in target.requires if not _installed(name))


def _installed(distribution: str) -> bool:
    try:
        version(distribution)
    except PackageNotFoundError:
        return False
    return True


def require(target: Exporter) -> None:
    """Check that the target's packages are installed.

    Raises:
        MissingDependencyError: names what is missing and the extra that brings it.
    """
    if missing := missing_packages(target):
        raise MissingDependencyError(
            f"target {target.name!r} needs {', '.join(missing)}: "
            f"pip install 'tinyvit-edge[{target.name}]' (see tinyvit-edge doctor)"
        )


def require_precision(target: Exporter, precision: Precision) -> None:
    """Check that the target can do a precision, before any work.

    Raises:
        UnsupportedError: gives the reason and lists what the target can do.
    """
    from tinyvit_edge.precision import PRECISIONS

    if reason := target.unsupported.get(precision.name):
        able = ", ".join(name for name in PRECISIONS if name not in target.unsupported)
        raise UnsupportedError(
            f"target {target.name!r} cannot do {precision.name!r}: {reason}; it can do {able}"
        )
