"""Judge a bundle: its artifact's outputs against PyTorch's, its bytes against its precision."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from itertools import combinations
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from tinyvit_edge.audit import audited
from tinyvit_edge.evaluate import artifact_logits, labels_of
from tinyvit_edge.files import sha256_of, size_of
from tinyvit_edge.gates import judge, judge_coverage
from tinyvit_edge.measure import (
    accuracy,
    conversion_loss,
    int8_of,
    quantization_loss,
    sensitivity,
    torch_logits,
)
from tinyvit_edge.report import Accuracy, Conversion, Disagreement, Gate, Latency, Quantization, Row

if TYPE_CHECKING:
    from tinyvit_edge.build import Built
    from tinyvit_edge.data import ImageDataset
    from tinyvit_edge.exporters import Exporter
    from tinyvit_edge.gates import Sensitivity
    from tinyvit_edge.pixels import Pixels
    from tinyvit_edge.preprocessing import Preprocessing
    from tinyvit_edge.program import Program
    from tinyvit_edge.types import FloatArray

__all__ = [
    "Comparison",
    "Verified",
    "Yardstick",
    "compare_with",
    "disagreements",
    "judged",
    "verify",
]


@dataclass(frozen=True, slots=True, kw_only=True)
class Yardstick:
    """The float32 reference model on every image of a data set."""

    dataset: ImageDataset
    logits: FloatArray
    """(n, classes)."""
    accuracy: Accuracy | None
    """None where the images have no labels."""
    parity_images: int
    """Evenly spaced images of the data set that conversion loss is measured on."""

    def parity_rows(self) -> NDArray[np.intp]:
        """Indices of the parity images in the data set."""
        total, count = len(self.dataset), min(self.parity_images, len(self.dataset))
        return np.array([i * total // count for i in range(count)], np.intp)


@dataclass(frozen=True, slots=True, kw_only=True)
class Verified:
    """A row, and what it does not say of each image."""

    row: Row
    classes: NDArray[np.intp]
    """First class of each image, (n,)."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Comparison:
    """The same-precision PyTorch program on the parity images."""

    logits: FloatArray
    """(parity images, classes)."""
    sensitivity: Sensitivity | None
    name: str


def compare_with(
    program: Program, target: Exporter, yardstick: Yardstick, images: FloatArray
) -> Comparison:
    """Run a program's same-precision reference on the parity images (n, 3, S, S).

    At fp32 that is the reference model itself, so that the rewriting into the deployment form
    counts as conversion loss, too.
    """
    if program.precision.name == "fp32":
        return Comparison(
            logits=yardstick.logits[yardstick.parity_rows()],
            sensitivity=None,
            name="PyTorch reference model, float32",
        )
    logits = torch_logits(program.module, images)
    return Comparison(
        logits=logits,
        sensitivity=sensitivity(program, images, logits, rounding=target.rounding),
        name=f"PyTorch deployment form, {program.precision.name}",
    )


def verify(
    built: Built,
    comparison: Comparison,
    yardstick: Yardstick,
    preprocessing: Preprocessing,
    *,
    out: Path,
    pixels: Pixels | None = None,
    progress: Callable[[int], None] = lambda _: None,
) -> Verified:
    """Run a bundle's artifact on every image and judge it; the row has no latency yet.

    Args:
        built: the bundle.
        comparison: its same-precision reference.
        yardstick: the float32 reference.
        preprocessing: the contract that the bundle carries.
        out: folder that paths in the row are relative to.
        pixels: the data set's images by that contract, where they were decoded before.
        progress: called with the number of images done.

    Raises:
        ConversionError: the runtime crashed.
    """
    cell = built.cell
    logits = artifact_logits(
        cell.target,
        built.artifact,
        yardstick.dataset,
        preprocessing,
        options=cell.options,
        pixels=pixels,
        progress=progress,
    )
    parity = logits[yardstick.parity_rows()]
    conversion = conversion_loss(comparison.logits, parity, name=comparison.name)
    quantization = quantization_loss(yardstick.logits, logits)
    right = accuracy(logits, labels_of(yardstick.dataset))
    gates = _gates(built, comparison, yardstick, conversion, quantization, right)
    row = Row(
        target=cell.target,
        precision=cell.precision.name,
        status="ok",
        bundle=built.root.relative_to(out).as_posix(),
        artifact=built.artifact.relative_to(out).as_posix(),
        size_bytes=size_of(built.artifact),
        sha256=sha256_of(built.artifact),
        conversion=conversion,
        quantization=quantization,
        accuracy=right,
        int8=int8_of(built.audit) if cell.precision.weights == "int8" and built.audit else None,
        audit=None if built.audit is None else audited(built.audit, cell.precision, built.left_out),
        evaluation=cell.exporter.evaluation,
        reproducible=built.exported.reproducible,
        seconds=built.seconds,
        details=built.exported.details,
    )
    return Verified(row=judged(row, gates), classes=logits.argmax(1))


def disagreements(verified: Sequence[Verified]) -> tuple[Disagreement, ...]:
    """Compare every two targets at the same precision, which carry the same program."""
    found = []
    for first, second in combinations(verified, 2):
        if first.row.precision == second.row.precision:
            found.append(
                Disagreement(
                    precision=first.row.precision,
                    targets=(first.row.target, second.row.target),
                    fraction=float((first.classes != second.classes).mean()),
                    n=len(first.classes),
                )
            )
    return tuple(found)


def _gates(
    built: Built,
    comparison: Comparison,
    yardstick: Yardstick,
    conversion: Conversion,
    quantization: Quantization,
    right: Accuracy | None,
) -> tuple[Gate, ...]:
    precision = built.cell.precision
    gates = judge(
        precision.name,
        conversion=conversion,
        quantization=quantization,
        accuracy=right,
        reference=yardstick.accuracy,
        sensitivity=comparison.sensitivity,
    )
    if built.audit is not None:
        gates += judge_coverage(built.audit, built.demand)
    return gates


def judged(row: Row, gates: tuple[Gate, ...]) -> Row:
    """The row with its gates, and the status and reason that follow from them."""
    failed = [gate for gate in gates if not gate.passed]
    if not failed:
        return replace(row, gates=gates)
    reason = "; ".join(_failure(gate) for gate in failed)
    return replace(row, gates=gates, status="gate_failed", reason=reason)


def _failure(gate: Gate) -> str:
    measured = "not finite" if gate.measured is None else f"{gate.measured:.4g}"
    bound = "none" if gate.bound is None else f"{gate.bound:.4g}"
    side = "above" if gate.direction == "max" else "below"
    return f"{gate.name} {measured} is {side} {bound}"


def with_latency(row: Row, latency: Latency | None, notes: tuple[str, ...]) -> Row:
    """The row with its latency and what must be said of it."""
    return replace(row, latency=latency, notes=(*row.notes, *notes))
