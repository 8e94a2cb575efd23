"""One cell on its own: what `tinyvit-edge export` does."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any, Literal

import numpy as np
from PIL import Image

from tinyvit_edge.build import Cell, Source, build, goldens_from, goldens_of
from tinyvit_edge.checkpoint import Checkpoint, load_checkpoint
from tinyvit_edge.console import QuietDisplay
from tinyvit_edge.data import scan_folder
from tinyvit_edge.errors import InputError
from tinyvit_edge.exporters import exporter, require, require_precision
from tinyvit_edge.files import check_writable, sha256_of, size_of
from tinyvit_edge.host import host_info
from tinyvit_edge.lint import lint_made
from tinyvit_edge.precision import parse_precision
from tinyvit_edge.quantization.calibration import Calibration
from tinyvit_edge.quantization.choose import (
    ChooseRequest,
    calibration_for,
    moments_for,
    refuse_both,
)
from tinyvit_edge.quantization.moments import Moments
from tinyvit_edge.worker import TargetProcess

__all__ = ["ExportRequest", "export"]


@dataclass(frozen=True, slots=True, kw_only=True)
class ExportRequest:
    """What `export` is asked for."""

    target: str
    weights: str
    precision: str
    out: Path
    calib: Path | None = None
    calibration: Path | None = None
    """Ranges that `tinyvit_edge.quantization.ptq.run` wrote."""
    data: Path | None = None
    """Photos for the golden vectors."""
    image_size: int | None = None
    preprocessing: Literal["microsoft", "timm"] | None = None
    options: Mapping[str, Any] = field(default_factory=dict)
    """Fields of the exporter."""
    check_tflite: bool = False
    lint: bool = False
    """Judge the artifact by what speaks against it on GPUs and NPUs."""
    command: tuple[str, ...] = ()


def export(request: ExportRequest, *, display: QuietDisplay | None = None) -> dict[str, Any]:
    """Convert one checkpoint for one target and write a bundle.

    Returns:
        Facts about the bundle, as JSON values.

    Raises:
        InputError: bad input, or an option that the target does not have.
        UnsupportedError: the target cannot do the precision.
        MissingDependencyError: the target's packages are missing.
        ConversionError: the converter failed.
    """
    display = display or QuietDisplay()
    cell = _cell(request)
    check_writable(request.out)
    checkpoint = load_checkpoint(
        request.weights, image_size=request.image_size, preprocessing=request.preprocessing
    )
    if request.data is None:
        goldens = goldens_from(checkpoint, drawn_patterns(checkpoint.preprocessing.size))
    else:
        goldens = goldens_of(checkpoint, scan_folder(request.data))
    calibration, moments = _from_photos(request, cell, checkpoint, display)
    source = Source(
        checkpoint=checkpoint,
        goldens=goldens,
        calibration=calibration,
        moments=moments,
        command=request.command,
        packages=host_info()["packages"],
    )
    with (
        display.track(f"export {cell.name}", 1) as advance,
        TargetProcess(cell.target, options=cell.options) as process,
    ):
        built, _ = build(cell, source, request.out, process)
        advance(1)
    facts = {
        "bundle": str(built.root),
        "artifact": str(built.artifact),
        "size_bytes": size_of(built.artifact),
        "sha256": sha256_of(built.artifact),
        "reproducible": built.exported.reproducible,
        **{str(key): value for key, value in built.exported.details.items()},
    }
    if request.check_tflite:
        facts["tflite_check"] = _check_tflite(built.artifact, source)
    if request.lint:
        with display.track("lint", 1) as advance:
            found = lint_made(cell.target, {cell.precision.name: built.artifact}, checkpoint)
            advance(1)
        facts["lint"] = [one.to_dict() for one in found[cell.precision.name]]
    return facts


def drawn_patterns(size: int) -> list[tuple[str, Image.Image]]:
    """Three drawn RGB images for golden vectors where there is no photo: ramps, rings, noise."""
    height, width = size * 5 // 4, size * 3 // 2
    y, x = np.mgrid[0:height, 0:width].astype(np.float64)
    ramps = np.stack((x * 255 / width, y * 255 / height, (x + y) * 255 / (width + height)), -1)
    radius = np.hypot(x - width / 2, y - height / 2)
    rings = np.stack([127.5 + 127.5 * np.sin(radius / step) for step in (3.0, 5.0, 9.0)], -1)
    noise = np.random.default_rng(0).integers(0, 256, (height, width, 3))
    named = {"ramps": ramps, "rings": rings, "noise": noise}
    return [(name, Image.fromarray(pixels.astype(np.uint8))) for name, pixels in named.items()]


def _cell(request: ExportRequest) -> Cell:
    precision = parse_precision(request.precision)
    default: Any = exporter(request.target)
    known = [option.name for option in fields(default)]
    for name in request.options:
        if name not in known:
            raise InputError(
                f"target {request.target!r} has no option {name!r}; "
                f"its options: {', '.join(known) or 'none'}"
            )
    target = exporter(request.target, **request.options)
    require_precision(target, precision)
    require(target)
    if request.check_tflite and (request.target != "onnx" or precision.quantized):
        raise InputError(
            f"--check-tflite is for 'onnx' at fp32 and fp16, not for {request.target!r} at "
            f"{precision.name}: onnx2tf's own int8 path does not take this model"
        )
    refuse_both(request.calib, request.calibration)
    if precision.coded and request.calibration is not None:
        raise InputError(
            f"{precision.name} rounds weights by what photos do, not by the ranges of "
            f"{request.calibration}: give --calib DIR"
        )
    return Cell(target=request.target, precision=precision, options=request.options)


def _from_photos(
    request: ExportRequest, cell: Cell, checkpoint: Checkpoint, display: QuietDisplay
) -> tuple[Calibration | None, Moments | None]:
    if not cell.precision.needs_photos:
        if given := request.calib or request.calibration:
            display.say(f"note: {cell.precision.name} needs no ranges: {given} is not used")
        return None, None
    if request.calib is None and request.calibration is None:
        raise InputError(f"{cell.name} needs photos to calibrate on: give --calib DIR")
    photos = (
        None
        if request.calib is None
        else ChooseRequest(photos=request.calib, targets=(request.target,))
    )
    calibration = calibration_for(
        checkpoint, [cell.precision], photos=photos, ranges=request.calibration, display=display
    )
    return calibration, moments_for(checkpoint, [cell.precision], photos=photos, display=display)


def _check_tflite(artifact: Path, source: Source) -> dict[str, Any]:
    from dataclasses import asdict

    from tinyvit_edge.exporters._onnx2tf import check_tflite

    return asdict(check_tflite(artifact, source.goldens[0].tensor[None]))
