"""What all commands share: option types, output, and the way errors end the program."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Annotated, Any

import typer

from tinyvit_edge.errors import InputError

__all__ = [
    "CalibImagesOption",
    "CalibOption",
    "DataOption",
    "JsonOption",
    "LimitOption",
    "MaxDropOption",
    "PresetOption",
    "QuietOption",
    "RangesOption",
    "SizeOption",
    "ThreadsOption",
    "WeightsOption",
    "command_line",
    "emit",
    "names",
    "preset_name",
]

WeightsOption = Annotated[
    str,
    typer.Option(
        "--weights",
        help="Microsoft .pth, timm file or folder, Hugging Face folder or hub id, or a bundled "
        "name such as 'digits'.",
    ),
]
DataOption = Annotated[
    Path, typer.Option("--data", help="ImageFolder of photos, or a flat folder without labels.")
]
CalibOption = Annotated[
    Path | None,
    typer.Option("--calib", help="Photos to quantize by; keep them apart from --data."),
]
RangesOption = Annotated[
    Path | None,
    typer.Option("--calibration", help="Ranges that 'quantize ptq' wrote, in place of --calib."),
]
LimitOption = Annotated[
    int | None,
    typer.Option("--limit", min=1, help="Use this many evenly spaced photos, not all."),
]
CalibImagesOption = Annotated[
    int, typer.Option("--calib-images", min=1, help="Photos of --calib that ranges come from.")
]
MaxDropOption = Annotated[
    float,
    typer.Option(
        "--max-drop",
        min=0.0,
        max=100.0,
        help="Budget of -mixed precisions: points of top-1 (of agreement with float32, without"
        " labels) lost on other photos of --calib. The gate stays at half a point.",
    ),
]
ThreadsOption = Annotated[int, typer.Option("--threads", min=1, help="Threads of each runtime.")]
SizeOption = Annotated[
    int | None,
    typer.Option("--image-size", min=32, help="Side in pixels, if other than the checkpoint's."),
]
PresetOption = Annotated[
    str | None,
    typer.Option(
        "--preprocessing", help="'microsoft' or 'timm', if other than the checkpoint's own."
    ),
]
JsonOption = Annotated[
    str | None,
    typer.Option("--json", metavar="PATH", help="Write the result as JSON; '-' is stdout."),
]
QuietOption = Annotated[bool, typer.Option("--quiet", "-q", help="No progress on stderr.")]


def emit(value: Any, json_path: str | None) -> bool:
    """Write a result as JSON where it was asked for.

    Returns:
        Whether stdout is still free for people.
    """
    from tinyvit_edge.files import write_json

    if json_path == "-":
        print(json.dumps(value, indent=2, allow_nan=False, ensure_ascii=False))
        return False
    if json_path is not None:
        write_json(Path(json_path), value)
    return True


def names(text: str) -> tuple[str, ...]:
    """Split ``a,b,c``."""
    return tuple(part.strip() for part in text.split(",") if part.strip())


def preset_name(text: str | None) -> Any:
    """Check the name of a preprocessing preset.

    Raises:
        InputError: it is not one.
    """
    if text not in (None, "microsoft", "timm"):
        raise InputError(f"unknown preprocessing {text!r}: choose microsoft or timm")
    return text


def command_line() -> tuple[str, ...]:
    """The command as it was typed, for reports and manifests."""
    return ("tinyvit-edge", *sys.argv[1:])
