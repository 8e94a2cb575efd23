"""The main command, `tinyvit-edge deploy`."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from tinyvit_edge.cli_common import (
    CalibImagesOption,
    CalibOption,
    DataOption,
    JsonOption,
    LimitOption,
    MaxDropOption,
    PresetOption,
    QuietOption,
    RangesOption,
    SizeOption,
    ThreadsOption,
    WeightsOption,
    command_line,
    emit,
    names,
    preset_name,
)
from tinyvit_edge.cli_lint import LintOption, show_report_findings
from tinyvit_edge.precision import MAX_DROP

if TYPE_CHECKING:
    from tinyvit_edge.deploy import DeployRequest
    from tinyvit_edge.report import Report

__all__ = ["register"]

OutOption = Annotated[Path, typer.Option("--out", help="Folder to write.")]
NamesOption = Annotated[str, typer.Option(help="Comma-separated; see the targets command.")]
RunsOption = Annotated[int, typer.Option(min=1, help="Timed runs of each artifact.")]
ParityImagesOption = Annotated[
    int, typer.Option(min=1, help="Photos that conversion loss is measured on.")
]
JobsOption = Annotated[
    int | None, typer.Option(min=1, help="Processes at a time; default: cores, at most 4.")
]
FreshOption = Annotated[
    bool, typer.Option("--fresh", help="Make anew what an earlier run to --out left, too.")
]
DryRunOption = Annotated[
    bool, typer.Option("--dry-run", help="Show what would be built, and build nothing.")
]


def register(app: typer.Typer) -> None:
    """Add the command."""
    app.command()(deploy)


def deploy(
    weights: WeightsOption,
    data: DataOption,
    out: OutOption,
    calib: CalibOption = None,
    calibration: RangesOption = None,
    targets: NamesOption = "onnx,executorch,tflite,coreml",
    precisions: NamesOption = "fp32,fp16,w8-dynamic,w8a8",
    threads: ThreadsOption = 1,
    runs: RunsOption = 50,
    limit: LimitOption = None,
    parity_images: ParityImagesOption = 128,
    calib_images: CalibImagesOption = 128,
    max_drop: MaxDropOption = 100 * MAX_DROP,
    image_size: SizeOption = None,
    preprocessing: PresetOption = None,
    jobs: JobsOption = None,
    fresh: FreshOption = False,
    lint: LintOption = False,
    dry_run: DryRunOption = False,
    json: JsonOption = None,
    quiet: QuietOption = False,
) -> None:
    """Convert, verify and time one checkpoint for several targets and precisions."""
    from tinyvit_edge.deploy import DeployRequest

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
        lint=lint,
        command=command_line(),
    )
    if dry_run:
        _show_plan(request, json)
    else:
        _run(request, json, quiet=quiet)


def _run(request: DeployRequest, json: str | None, *, quiet: bool) -> None:
    from tinyvit_edge.console import make_display
    from tinyvit_edge.deploy import deploy as run

    _check_json(json)
    _finish(run(request, display=make_display(quiet=quiet)), request.out, json)


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
        show_report_findings(report)
        typer.echo(f"\n{path}\n{path.with_suffix('.html')}")
    raise typer.Exit(report.exit_code)
