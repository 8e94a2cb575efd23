"""The command line: `tinyvit-edge`. Each command is a few lines around one function."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from tinyvit_edge.cli_apps import register as register_apps
from tinyvit_edge.cli_common import (
    CalibOption,
    JsonOption,
    PresetOption,
    QuietOption,
    RangesOption,
    SizeOption,
    WeightsOption,
    command_line,
    emit,
    preset_name,
)
from tinyvit_edge.cli_deploy import register as register_deploying
from tinyvit_edge.cli_lint import LintOption, show_findings
from tinyvit_edge.cli_lint import register as register_lint
from tinyvit_edge.cli_measure import register as register_measuring
from tinyvit_edge.cli_measure import show_facts
from tinyvit_edge.cli_quantize import register as register_quantizing
from tinyvit_edge.cli_train import register as register_training

__all__ = ["app"]

_HELP = """From a TinyViT checkpoint to verified Core ML, ExecuTorch, ONNX and TFLite artifacts.

Exit codes: 0 ok, 1 a gate failed, 2 usage or bad input, 3 a missing dependency or an unsupported
host, 4 a conversion failed."""

app = typer.Typer(
    help=_HELP,
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)


def _version(show: bool) -> None:
    if show:
        from tinyvit_edge._version import __version__

        typer.echo(__version__)
        raise typer.Exit


@app.callback()
def _root(
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Print it and exit.")
    ] = False,
) -> None: ...


register_deploying(app)


@app.command("import")
def import_weights(
    weights: WeightsOption,
    out: Annotated[
        Path, typer.Option("--out", help="Folder to write; a file for timm, microsoft.")
    ],
    image_size: SizeOption = None,
    preprocessing: PresetOption = None,
    num_classes: Annotated[
        int | None, typer.Option(min=1, help="Refuse a checkpoint of another class count.")
    ] = None,
    to: Annotated[
        str,
        typer.Option(help="huggingface writes a folder; timm a .safetensors, microsoft a .pth."),
    ] = "huggingface",
    json: JsonOption = None,
) -> None:
    """Read a checkpoint of any format and write it in another."""
    from tinyvit_edge.checkpoint import load_checkpoint, save_checkpoint, save_weights

    checkpoint = load_checkpoint(
        weights,
        image_size=image_size,
        preprocessing=preset_name(preprocessing),
        num_classes=num_classes,
    )
    if to == "huggingface":
        save_checkpoint(checkpoint, out)
    else:
        save_weights(checkpoint, out, to)
    facts = {
        "variant": checkpoint.variant,
        "format": checkpoint.format,
        "classes": len(checkpoint.labels),
        "image_size": checkpoint.preprocessing.size,
        "sha256": checkpoint.sha256,
        "out": str(out),
    }
    if emit(facts, json):
        for name, value in facts.items():
            typer.echo(f"{name:<12} {value}")


@app.command()
def export(
    target: Annotated[str, typer.Argument(help="onnx, executorch, tflite or coreml.")],
    weights: WeightsOption,
    out: Annotated[Path, typer.Option("--out", help="Folder; the bundle is made inside it.")],
    precision: Annotated[str, typer.Option(help="See the targets command.")] = "fp32",
    calib: CalibOption = None,
    calibration: RangesOption = None,
    data: Annotated[
        Path | None, typer.Option(help="Photos for the golden vectors; drawn patterns if absent.")
    ] = None,
    image_size: SizeOption = None,
    preprocessing: PresetOption = None,
    check_tflite: Annotated[
        bool, typer.Option("--check-tflite", help="onnx: prove by converting with onnx2tf.")
    ] = False,
    delegate: Annotated[
        str | None, typer.Option(help="executorch: xnnpack (default), portable or coreml.")
    ] = None,
    package: Annotated[
        str | None, typer.Option(help="coreml: classifier (default) or tensor.")
    ] = None,
    deployment_target: Annotated[
        str | None,
        typer.Option(help="coreml: iOS15 to iOS18; default: iOS17, or what the precision needs."),
    ] = None,
    layout: Annotated[
        str | None,
        typer.Option(help="coreml: rows (default), or ane: channels first, at fp32 and fp16."),
    ] = None,
    lint: LintOption = False,
    json: JsonOption = None,
    quiet: QuietOption = False,
) -> None:
    """Convert one checkpoint for one target, as a bundle."""
    from tinyvit_edge.console import make_display
    from tinyvit_edge.export import ExportRequest
    from tinyvit_edge.export import export as run

    options: dict[str, str | None] = {
        "delegate": delegate,
        "package": package,
        "deployment_target": deployment_target,
        "layout": layout,
    }
    request = ExportRequest(
        target=target,
        weights=weights,
        precision=precision,
        out=out,
        calib=calib,
        calibration=calibration,
        data=data,
        image_size=image_size,
        preprocessing=preset_name(preprocessing),
        options={name: value for name, value in options.items() if value is not None},
        check_tflite=check_tflite,
        lint=lint,
        command=command_line(),
    )
    facts = run(request, display=make_display(quiet=quiet))
    if emit(facts, json):
        show_facts({name: value for name, value in facts.items() if name != "lint"})
        show_findings(facts.get("lint", ()))


@app.command()
def targets(json: JsonOption = None) -> None:
    """Show every target and precision, and what is installed."""
    from tinyvit_edge.doctor import render_targets, target_table

    rows = target_table()
    if emit(rows, json):
        render_targets(rows)


@app.command()
def doctor(json: JsonOption = None) -> None:
    """Check this environment, and say what to install for what is missing."""
    from tinyvit_edge.doctor import diagnose, render_diagnosis

    findings = diagnose()
    if emit(findings, json):
        render_diagnosis(findings)
    if not any(item["available"] for item in findings["targets"]):
        raise typer.Exit(3)


register_quantizing(app)
register_measuring(app)
register_lint(app)
register_apps(app)
register_training(app)
