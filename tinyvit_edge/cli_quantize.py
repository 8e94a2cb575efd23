"""The commands that choose quantization parameters: quantize ptq, qat and sensitivity."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from tinyvit_edge.cli_common import (
    CalibImagesOption,
    JsonOption,
    LimitOption,
    MaxDropOption,
    PresetOption,
    QuietOption,
    SizeOption,
    WeightsOption,
    emit,
    preset_name,
)
from tinyvit_edge.cli_measure import show_facts, write_page
from tinyvit_edge.cli_train import SeedOption, TorchThreadsOption, WorkersOption
from tinyvit_edge.precision import MAX_DROP

if TYPE_CHECKING:
    from tinyvit_edge.quantization.sensitivity import LayerSensitivity

__all__ = ["register"]

MethodOption = Annotated[
    str,
    typer.Option(
        "--method",
        help="min-max, percentile-99.99, percentile-99.999, mse or entropy for all tensors; auto:"
        " the one that harms the logits least, tensor by tensor.",
    ),
]
ConditioningOption = Annotated[
    float | None,
    typer.Option(
        "--conditioning",
        help="Strength of SmoothQuant's factors behind LayerNorm, 0 to 1; none if absent.",
    ),
]


def register(app: typer.Typer) -> None:
    """Add the commands to the application."""
    group = typer.Typer(help="Choose quantization parameters.", no_args_is_help=True)
    group.command()(ptq)
    group.command()(qat)
    group.command()(sensitivity)
    app.add_typer(group, name="quantize")


def ptq(
    weights: WeightsOption,
    calib: Annotated[Path, typer.Option(help="Photos to calibrate on.")],
    out: Annotated[Path, typer.Option("--out", help="JSON file of ranges to write.")],
    precision: Annotated[str, typer.Option(help="w8a8 or w8a8-mixed.")] = "w8a8",
    method: MethodOption = "auto",
    conditioning: ConditioningOption = None,
    max_drop: MaxDropOption = 100 * MAX_DROP,
    data: Annotated[
        Path | None, typer.Option(help="Photos to measure the quantization loss on.")
    ] = None,
    limit: LimitOption = None,
    calib_images: CalibImagesOption = 128,
    image_size: SizeOption = None,
    preprocessing: PresetOption = None,
    json: JsonOption = None,
    quiet: QuietOption = False,
) -> None:
    """Calibrate on photos, write the ranges, and measure the loss in PyTorch."""
    from tinyvit_edge.console import make_display
    from tinyvit_edge.quantization.calibration import CalibrationOptions
    from tinyvit_edge.quantization.ptq import PtqRequest
    from tinyvit_edge.quantization.ptq import run as quantize

    request = PtqRequest(
        weights=weights,
        calib=calib,
        out=out,
        precision=precision,
        data=data,
        limit=limit,
        calib_images=calib_images,
        options=CalibrationOptions(method=method, strength=conditioning),
        max_drop=max_drop / 100,
        image_size=image_size,
        preprocessing=preset_name(preprocessing),
    )
    facts = quantize(request, display=make_display(quiet=quiet))
    if emit(facts, json):
        show_facts(facts)


def qat(
    weights: WeightsOption,
    data: Annotated[Path, typer.Option(help="Photos to train on, and to judge by.")],
    out: Annotated[Path, typer.Option("--out", help="Folder of the run, made or continued.")],
    precision: Annotated[str, typer.Option(help="w8a8 or w8a8-mixed.")] = "w8a8",
    calibration: Annotated[
        Path | None, typer.Option(help="Ranges to start from; absent: chosen on --data.")
    ] = None,
    store: Annotated[
        Path | None,
        typer.Option(help="What teach wrote of --data; absent: the float32 model teaches."),
    ] = None,
    epochs: Annotated[int, typer.Option(min=1, help="Times that each photo is seen.")] = 1,
    images: Annotated[
        int | None, typer.Option(min=1, help="Evenly spaced photos to train on; absent: all.")
    ] = None,
    batch: Annotated[int, typer.Option(min=1, help="Photos a step.")] = 16,
    lr: Annotated[float, typer.Option(help="Peak learning rate.")] = 2e-6,
    hold_out: Annotated[
        int, typer.Option(min=2, help="Every n-th photo is judged by instead of trained on.")
    ] = 20,
    method: MethodOption = "auto",
    conditioning: ConditioningOption = None,
    max_drop: MaxDropOption = 100 * MAX_DROP,
    calib_images: CalibImagesOption = 128,
    image_size: SizeOption = None,
    preprocessing: PresetOption = None,
    seed: SeedOption = 0,
    workers: WorkersOption = 2,
    threads: TorchThreadsOption = None,
    json: JsonOption = None,
    quiet: QuietOption = False,
) -> None:
    """Train the weights for a precision, and keep them if they beat its calibration alone.

    OUT/ranges.json is then what --calibration of deploy and export takes. A run that was stopped
    goes on where it was.
    """
    from tinyvit_edge.console import make_display
    from tinyvit_edge.quantization.calibration import CalibrationOptions
    from tinyvit_edge.quantization.qat import run as train
    from tinyvit_edge.quantization.qat_request import QatRequest, recipe

    request = QatRequest(
        weights=weights,
        data=data,
        out=out,
        precision=precision,
        calibration=calibration,
        store=store,
        recipe=recipe(epochs=epochs, batch=batch, lr=lr, stored=store is not None),
        images=images,
        hold_out=hold_out,
        options=CalibrationOptions(method=method, strength=conditioning),
        max_drop=max_drop / 100,
        calib_images=calib_images,
        image_size=image_size,
        preprocessing=preset_name(preprocessing),
        seed=seed,
        workers=workers,
        threads=threads,
    )
    facts = train(request, display=make_display(quiet=quiet))
    if emit(facts, json):
        show_facts(facts)


def sensitivity(
    weights: WeightsOption,
    calib: Annotated[Path, typer.Option(help="Photos to calibrate and to measure on.")],
    precision: Annotated[str, typer.Option(help="A precision with ranges.")] = "w8a8",
    method: MethodOption = "auto",
    conditioning: ConditioningOption = None,
    calib_images: CalibImagesOption = 128,
    image_size: SizeOption = None,
    preprocessing: PresetOption = None,
    html: Annotated[Path | None, typer.Option(help="Write a page with a plot.")] = None,
    json: JsonOption = None,
    quiet: QuietOption = False,
) -> None:
    """Measure what quantizing each layer costs, alone and among all others."""
    from tinyvit_edge.checkpoint import load_checkpoint
    from tinyvit_edge.console import make_display
    from tinyvit_edge.files import check_writable
    from tinyvit_edge.quantization.calibration import CalibrationOptions
    from tinyvit_edge.quantization.choose import ChooseRequest, sensitivities
    from tinyvit_edge.quantization.ptq import calibrated_precision
    from tinyvit_edge.quantization.sensitivity import ranked
    from tinyvit_edge.sensitivity_page import render_html

    if html is not None:
        check_writable(html.parent)
    row = calibrated_precision(precision)
    display = make_display(quiet=quiet)
    checkpoint = load_checkpoint(
        weights, image_size=image_size, preprocessing=preset_name(preprocessing)
    )
    request = ChooseRequest(
        photos=calib,
        images=calib_images,
        options=CalibrationOptions(method=method, strength=conditioning),
    )
    layers = sensitivities(checkpoint, request, row, display)
    if html is not None:
        write_page(html, render_html(ranked(layers)))
    if emit([layer.to_dict() for layer in layers], json):
        _print_layers(ranked(layers))


def _print_layers(layers: Sequence[LayerSensitivity]) -> None:
    from rich import box
    from rich.console import Console
    from rich.table import Table

    from tinyvit_edge.report_table import print_whole
    from tinyvit_edge.sensitivity_page import TITLES, cells

    console = Console(highlight=False)
    table = Table(box=box.SIMPLE)
    for number, title in enumerate(TITLES):
        table.add_column(title, justify="left" if number < 2 else "right")
    total = sum(layer.macs for layer in layers)
    for layer in layers:
        table.add_row(*cells(layer, total))
    print_whole(table, console)
    console.print(f"all layers: {layers[0].whole_db:.1f} dB; the best to leave in float32 first")
