"""From a checkpoint and a cell of the plan to a bundle on disk."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, get_args

import numpy as np
from PIL import Image

from tinyvit_edge.audit import left_out
from tinyvit_edge.bundle import Bundle, GoldenImage, golden_images, write_bundle
from tinyvit_edge.checkpoint import Checkpoint, PresetName
from tinyvit_edge.data import ImageDataset
from tinyvit_edge.errors import InputError, UnsupportedError
from tinyvit_edge.evaluate import reference_module
from tinyvit_edge.exporters import Audit, Exported, Exporter, exporter
from tinyvit_edge.files import atomic_directory
from tinyvit_edge.measure import torch_logits
from tinyvit_edge.precision import Precision, parse_precision
from tinyvit_edge.preprocessing import decode, preset
from tinyvit_edge.program import Program, build_program
from tinyvit_edge.quantization.accounting import IntegerDemand, integer_demand
from tinyvit_edge.quantization.calibration import Calibration
from tinyvit_edge.quantization.moments import Moments
from tinyvit_edge.worker import TargetProcess

__all__ = [
    "GOLDENS",
    "Built",
    "Cell",
    "Source",
    "audit_of",
    "build",
    "goldens_from",
    "goldens_of",
    "ranges_of",
    "reopen",
]

GOLDENS = 3
"""Photos of the data set that a bundle carries."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Cell:
    """One target at one precision."""

    target: str
    precision: Precision
    options: Mapping[str, Any] = field(default_factory=dict)
    """Fields of the exporter that differ from their defaults."""

    @property
    def name(self) -> str:
        """Folder name of its bundle."""
        return f"{self.target}-{self.precision.name}"

    @property
    def exporter(self) -> Exporter:
        """The exporter with this cell's options."""
        return exporter(self.target, **self.options)


@dataclass(frozen=True, slots=True, kw_only=True)
class Source:
    """What every cell of a run is made from."""

    checkpoint: Checkpoint
    goldens: tuple[GoldenImage, ...]
    """With the float32 reference logits."""
    calibration: Calibration | None
    moments: Moments | None
    command: tuple[str, ...]
    packages: Mapping[str, str]


@dataclass(frozen=True, slots=True, kw_only=True)
class Built:
    """A bundle that was written, with what its measurement is compared with."""

    cell: Cell
    root: Path
    exported: Exported
    audit: Audit | None
    """None where the file's format can be read on its own platform only."""
    demand: IntegerDemand
    left_out: Mapping[str, str]
    """Layers that the calibration leaves in floating point, and why; empty where none is."""
    seconds: float | None
    """Wall time of the conversion; None for a bundle that was made before."""

    @property
    def artifact(self) -> Path:
        """Path of the artifact."""
        return self.root / self.cell.exporter.artifact


def build(cell: Cell, source: Source, out: Path, process: TargetProcess) -> tuple[Built, Program]:
    """Convert one cell in `process` and write its bundle to ``out/<target>-<precision>``.

    Returns:
        The bundle, and the program that it was made from: its same-precision reference.

    Raises:
        ConversionError: the converter failed or crashed; an earlier bundle stays as it was.
    """
    target, root = cell.exporter, out / cell.name
    calibration = ranges_of(cell, source.calibration)
    program = build_program(
        source.checkpoint,
        cell.precision,
        form=target.form,
        calibration=calibration,
        moments=source.moments,
    )
    with atomic_directory(root) as folder:
        artifact = folder / target.artifact
        start = time.perf_counter()
        exported = process.export(program, artifact)
        seconds = time.perf_counter() - start
        audit = audit_of(process, artifact)
        write_bundle(
            folder,
            target=target,
            program=program,
            exported=exported,
            audit=audit,
            options=cell.options,
            calibration=calibration,
            moments=source.moments,
            goldens=_with_artifact_logits(source.goldens, process, artifact),
            source=_origin(source.checkpoint),
            command=source.command,
            packages=source.packages,
        )
    built = Built(
        cell=cell,
        root=root,
        exported=exported,
        audit=audit,
        demand=integer_demand(program.module, program.example_input()),
        left_out=left_out(cell.precision, calibration),
        seconds=seconds,
    )
    return built, program


def ranges_of(cell: Cell, calibration: Calibration | None) -> Calibration | None:
    """The part of a calibration that a cell is made by; None where it needs none."""
    if calibration is None or not cell.precision.calibrated:
        return None
    mine = calibration.on(cell.target)
    return mine if cell.precision.mixed else replace(mine, left_float=None)


def audit_of(process: TargetProcess, artifact: Path) -> Audit | None:
    """What a file holds; None where it can be read on its own platform only."""
    try:
        return process.audit(artifact)
    except UnsupportedError:
        return None


def _with_artifact_logits(
    goldens: Sequence[GoldenImage], process: TargetProcess, artifact: Path
) -> tuple[GoldenImage, ...]:
    """Add what the artifact gives, where its runtime exists on this host."""
    try:
        process.load(artifact)
    except UnsupportedError:
        return tuple(goldens)
    logits = process.run(np.stack([golden.tensor for golden in goldens]))
    return tuple(
        replace(golden, artifact_logits=row) for golden, row in zip(goldens, logits, strict=True)
    )


def goldens_of(checkpoint: Checkpoint, dataset: ImageDataset) -> tuple[GoldenImage, ...]:
    """Three golden images of a data set, with the float32 reference logits."""
    samples = dataset.subset(GOLDENS).samples
    photos = [(_golden_name(sample.path, dataset.root), decode(sample.path)) for sample in samples]
    return goldens_from(checkpoint, photos)


def goldens_from(
    checkpoint: Checkpoint, photos: Sequence[tuple[str, Image.Image]]
) -> tuple[GoldenImage, ...]:
    """Golden images of named upright RGB photos, with the float32 reference logits."""
    goldens = golden_images(photos, checkpoint.preprocessing)
    module = reference_module(checkpoint.model)
    logits = torch_logits(module, np.stack([golden.tensor for golden in goldens]))
    return tuple(
        replace(golden, reference_logits=row) for golden, row in zip(goldens, logits, strict=True)
    )


def reopen(bundle: Bundle, checkpoint: Checkpoint, audit: Audit | None) -> tuple[Built, Program]:
    """Take up a bundle again, with the program that it was made from.

    Raises:
        InputError: it was made from other weights, or its own rounded weights are damaged.
    """
    manifest = bundle.manifest
    made_from = manifest["source"]["sha256"]
    if made_from != checkpoint.sha256:
        raise InputError(
            f"{bundle.root}: made from weights {made_from[:12]}, not from {checkpoint.source} "
            f"({checkpoint.sha256[:12]}): give the weights that the manifest names"
        )
    cell = Cell(
        target=bundle.target,
        precision=parse_precision(bundle.precision),
        options=manifest["options"],
    )
    calibration = bundle.ranges()
    program = build_program(
        checkpoint,
        cell.precision,
        form=cell.exporter.form,
        calibration=calibration,
        coded=bundle.coded() if cell.precision.coded else None,
    )
    artifact = manifest["artifact"]
    built = Built(
        cell=cell,
        root=bundle.root,
        exported=Exported(details=artifact["details"], reproducible=artifact["reproducible"]),
        audit=audit,
        demand=integer_demand(program.module, program.example_input()),
        left_out=left_out(cell.precision, calibration),
        seconds=None,
    )
    return built, program


def _golden_name(path: Path, root: Path) -> str:
    return path.relative_to(root).as_posix() if path.is_relative_to(root) else path.name


def _origin(checkpoint: Checkpoint) -> dict[str, Any]:
    """What `load_checkpoint` needs to give the same model with the same contract again."""
    contract = checkpoint.preprocessing
    presets = (name for name in get_args(PresetName) if preset(name, contract.size) == contract)
    return {
        "checkpoint": checkpoint.source,
        "format": checkpoint.format,
        "variant": checkpoint.variant,
        "sha256": checkpoint.sha256,
        "image_size": contract.size,
        "preprocessing": next(presets, None),
    }
