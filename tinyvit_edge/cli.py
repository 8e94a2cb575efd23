"""The command line: `tinyvit-edge`. Each command is a few lines around one function."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from tinyvit_edge.cli_apps import register as register_apps
from tinyvit_edge.cli_common import (
    CalibImagesOption,
    DataOption,
    JsonOption,
    LimitOption,
    MaxDropOption,
    PresetOption,
    QuietOption,
    SizeOption,
    ThreadsOption,
    WeightsOption,
    command_line,
    emit,
    names,
    preset_name,
)
from tinyvit_edge.cli_lint import register as register_lint
from tinyvit_edge.cli_measure import register as register_measuring
from tinyvit_edge.cli_measure import show_facts
from tinyvit_edge.cli_quantize import register as register_quantizing
from tinyvit_edge.cli_train import register as register_training
from tinyvit_edge.precision import MAX_DROP

if TYPE_CHECKING:
    from tinyvit_edge.deploy import DeployRequest
    from tinyvit_edge.report import Report

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

CalibOption = Annotated[
    Path | None,
    typer.Option("--calib", help="Photos to quantize by; keep them apart from --data."),
]
RangesOption = Annotated[
    Path | None,
    typer.Option("--calibration", help="Ranges that 'quantize ptq' wrote, in place of --calib."),
]
OutOption = Annotated[Path, typer.Option("--out", help="Folder to write.")]


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


@app.command()
def deploy(
    weights: WeightsOption,
    data: DataOption,
    out: OutOption,
    calib: CalibOption = None,
    calibration: RangesOption = None,
    targets: Annotated[
        str, typer.Option(help="Comma-separated; see the targets command.")
    ] = "onnx,executorch,tflite,coreml",
    precisions: Annotated[
        str, typer.Option(help="Comma-separated; see the targets command.")
    ] = "fp32,fp16,w8-dynamic,w8a8",
    threads: ThreadsOption = 1,
    runs: Annotated[int, typer.Option(min=1, help="Timed runs of each artifact.")] = 50,
    limit: LimitOption = None,
    parity_images: Annotated[
        int, typer.Option(min=1, help="Photos that conversion loss is measured on.")
    ] = 128,
    calib_images: CalibImagesOption = 128,
    max_drop: MaxDropOption = 100 * MAX_DROP,
    image_size: SizeOption = None,
    preprocessing: PresetOption = None,
    jobs: Annotated[
        int | None, typer.Option(min=1, help="Processes at a time; default: cores, at most 4.")
    ] = None,
    fresh: Annotated[
        bool, typer.Option("--fresh", help="Make anew what an earlier run to --out left, too.")
    ] = False,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Show what would be built, and build nothing.")
    ] = False,
    json: JsonOption = None,
    quiet: QuietOption = False,
) -> None:
    """Convert, verify and time one checkpoint for several targets and precisions."""
    from tinyvit_edge.console import make_display
    from tinyvit_edge.deploy import DeployRequest
    from tinyvit_edge.deploy import deploy as run

    request = DeployRequest(
        weights=weights,
        data=data,
        calib=calib,
        calibration=calibration,
        targets=names(targets),
        precisions=names(precisions),
        out=out,
        threads=threads,
        runs=runs,
        limit=limit,
        parity_images=parity_images,
        calib_images=calib_images,
        max_drop=max_drop / 100,
        image_size=image_size,
        preprocessing=preset_name(preprocessing),
        jobs=jobs,
        fresh=fresh,
        command=command_line(),
    )
    if dry_run:
        _show_plan(request, json)
        return
    _check_json(json)
    _finish(run(request, display=make_display(quiet=quiet)), out, json)


def _check_json(json: str | None) -> None:
    """Before the work, not after it."""
    from tinyvit_edge.files import check_writable

    if json not in (None, "-"):
        check_writable(Path(json).parent)


def _show_plan(request: DeployRequest, json: str | None) -> None:
    from tinyvit_edge.deploy import plan

    cells, refused = plan(request)
    value = {
        "build": [cell.name for cell in cells],
        "refused": [
            {key: getattr(row, key) for key in ("target", "precision", "status", "reason")}
            for row in refused
        ],
    }
    if emit(value, json):
        for cell in cells:
            typer.echo(f"build        {request.out / cell.name}")
        for row in refused:
            typer.echo(f"{row.status:<12} {row.target}-{row.precision}: {row.reason}")


def _finish(report: Report, out: Path, json: str | None) -> None:
    from rich.console import Console

    from tinyvit_edge.report import render_table, write_report

    path = write_report(report, out)
    if emit(report.to_dict(), json):
        render_table(report, Console())
        typer.echo(f"\n{path}\n{path.with_suffix('.html')}")
    raise typer.Exit(report.exit_code)


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
    lint: Annotated[
        bool, typer.Option("--lint", help="Say what speaks against it on GPUs and NPUs.")
    ] = False,
    json: JsonOption = None,
    quiet: QuietOption = False,
) -> None:
    """Convert one checkpoint for one target, as a bundle."""
    from tinyvit_edge.cli_lint import show_findings
    from tinyvit_edge.console import make_display
    from tinyvit_edge.export import ExportRequest
    from tinyvit_edge.export import export as run
    from tinyvit_edge.lint import lint_bundle

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
        command=command_line(),
    )
    facts = run(request, display=make_display(quiet=quiet))
    findings = lint_bundle(Path(facts["bundle"])) if lint else ()
    judged = {"lint": [one.to_dict() for one in findings]} if lint else {}
    if emit(facts | judged, json):
        show_facts(facts)
        show_findings(findings)


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
