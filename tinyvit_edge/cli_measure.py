"""The commands that measure what exists: parity, bench, eval and report."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any

import typer

from tinyvit_edge.cli_common import (
    DataOption,
    JsonOption,
    LimitOption,
    PresetOption,
    QuietOption,
    SizeOption,
    ThreadsOption,
    emit,
    preset_name,
)
from tinyvit_edge.cli_lint import show_report_findings
from tinyvit_edge.errors import InputError

__all__ = ["register", "show_facts", "write_page"]


def register(app: typer.Typer) -> None:
    """Add the commands to the application."""
    app.command()(parity)
    app.command()(bench)
    app.command("eval")(evaluate)
    app.command()(report)


def show_facts(facts: Mapping[str, Any]) -> None:
    """Print a value a line, for people."""
    width = max(map(len, facts))
    for name, value in facts.items():
        typer.echo(f"{name:<{width}}  {_readable(value)}")


def _readable(value: Any) -> str:
    if value is None:
        return "-"
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, float):
        return f"{value:.4g}"
    if isinstance(value, Mapping):
        return ", ".join(f"{key}={_readable(inner)}" for key, inner in value.items())
    if isinstance(value, Sequence) and not isinstance(value, str):
        return ", ".join(map(_readable, value))
    return str(value)


def parity(
    bundle: Annotated[Path, typer.Argument(help="A bundle that deploy or export wrote.")],
    weights: Annotated[
        str | None, typer.Option(help="The weights it was made from; needed with --data.")
    ] = None,
    data: Annotated[
        Path | None, typer.Option(help="Photos; without them the golden vectors are checked.")
    ] = None,
    limit: LimitOption = None,
    json: JsonOption = None,
    quiet: QuietOption = False,
) -> None:
    """Judge a bundle's artifact against PyTorch, or against its own golden vectors."""
    from tinyvit_edge.console import make_display
    from tinyvit_edge.parity import check_goldens, check_photos

    display = make_display(quiet=quiet)
    if data is None:
        row = check_goldens(bundle)
    else:
        row = check_photos(bundle, weights=weights, data=data, limit=limit, display=display)
    if emit(row.to_dict(), json):
        for gate in row.gates:
            measured = "not finite" if gate.measured is None else f"{gate.measured:.6g}"
            sign = "<=" if gate.direction == "max" else ">="
            state = "ok  " if gate.passed else "FAIL"
            typer.echo(f"{state} {gate.name}: {measured} (must be {sign} {gate.bound:.6g})")
            if not gate.passed and gate.reason:
                typer.echo(f"     {gate.reason}")
    if row.status != "ok":
        raise typer.Exit(1)


def bench(
    bundles: Annotated[list[Path], typer.Argument(help="Bundles to time against each other.")],
    threads: ThreadsOption = 1,
    runs: Annotated[int, typer.Option(min=1, help="Timed runs of each artifact.")] = 50,
    warmup: Annotated[int, typer.Option(min=0, help="Untimed runs before.")] = 5,
    json: JsonOption = None,
    quiet: QuietOption = False,
) -> None:
    """Time bundles in interleaved rounds, each in a process of its own."""
    from tinyvit_edge.console import make_display
    from tinyvit_edge.parity import time_bundles

    rows = time_bundles(
        bundles, threads=threads, runs=runs, warmup=warmup, display=make_display(quiet=quiet)
    )
    if emit(rows, json):
        _print_latencies(rows)


def evaluate(
    model: Annotated[str, typer.Argument(metavar="WEIGHTS_OR_BUNDLE")],
    data: DataOption,
    limit: LimitOption = None,
    threads: ThreadsOption = 1,
    image_size: SizeOption = None,
    preprocessing: PresetOption = None,
    json: JsonOption = None,
    quiet: QuietOption = False,
) -> None:
    """Measure top-1 and top-5 accuracy of a checkpoint or of a bundle's artifact."""
    from tinyvit_edge.console import make_display
    from tinyvit_edge.evaluate import evaluate_accuracy

    display = make_display(quiet=quiet)
    facts = evaluate_accuracy(
        model,
        data=data,
        limit=limit,
        threads=threads,
        image_size=image_size,
        preprocessing=preset_name(preprocessing),
        display=display,
    )
    if emit(facts, json):
        typer.echo(f"top-1 {facts['top1']:.4f}  top-5 {facts['top5']:.4f}  n {facts['n']}")


def report(
    path: Annotated[
        Path,
        typer.Argument(
            help="report.json, the folder it is in, the folder of a training, or an app's report."
        ),
    ],
    markdown: Annotated[bool, typer.Option("--markdown", help="Print a GitHub table.")] = False,
    html: Annotated[
        Path | None, typer.Option(help="Write the self-contained page to this file.")
    ] = None,
    json: JsonOption = None,
) -> None:
    """Show a report again, and exit as the run that wrote it did; or the curves of a training."""
    from tinyvit_edge.device_report import is_device_report
    from tinyvit_edge.training.log import is_run

    if is_device_report(path):
        if html is not None:
            raise InputError("--html is for reports of deploy; an app's has --markdown and --json")
        _report_device(path, json)

    if is_run(path):
        if markdown:
            raise InputError(
                "--markdown is for reports of deploy; a training has --html and --json"
            )
        _report_training(path, html, json)
        return
    from rich.console import Console

    from tinyvit_edge.report import read_report, render_markdown, render_table
    from tinyvit_edge.report_html import render_html

    loaded = read_report(path)
    if html is not None:
        write_page(html, render_html(loaded))
    if emit(loaded.to_dict(), json):
        if markdown:
            typer.echo(render_markdown(loaded))
        else:
            render_table(loaded, Console())
            show_report_findings(loaded)
    raise typer.Exit(loaded.exit_code)


def _report_device(path: Path, json: str | None) -> None:
    from tinyvit_edge.device_report import read_device_report, render_lines

    loaded = read_device_report(path)
    if emit(dict(loaded.data), json):
        typer.echo("\n".join(render_lines(loaded)))  # Markdown that reads well in a terminal, too
    raise typer.Exit(loaded.exit_code)


def _report_training(path: Path, html: Path | None, json: str | None) -> None:
    from rich.console import Console

    from tinyvit_edge.report_table import print_whole
    from tinyvit_edge.training.curves import render_html, render_table
    from tinyvit_edge.training.log import read_run

    log = read_run(path)
    if html is not None:
        write_page(html, render_html(log))
    if emit(log.to_dict(), json):
        print_whole(render_table(log), Console(highlight=False))


def write_page(path: Path, page: str) -> None:
    """Write an HTML page, whole or not at all."""
    from tinyvit_edge.files import atomic_file

    with atomic_file(path) as temporary:
        temporary.write_text(page, encoding="utf-8")


def _print_latencies(rows: list[dict[str, Any]]) -> None:
    from rich import box
    from rich.console import Console
    from rich.table import Table

    from tinyvit_edge.report_table import print_whole

    console = Console(highlight=False)
    table = Table(box=box.SIMPLE)
    titles = ("bundle", "p50 ms", "p90 ms", "p99 ms", "vs fp32", "load ms", "peak MB", "cpu/wall")
    for title in titles:
        table.add_column(title, justify="left" if title == "bundle" else "right", no_wrap=True)
    paths = [Path(row["bundle"]).resolve() for row in rows]
    folder = os.path.commonpath([path.parent for path in paths])
    for row, path in zip(rows, paths, strict=True):
        latency = row["latency"]
        speedup = latency["speedup_vs_fp32"]
        table.add_row(
            str(path.relative_to(folder)),
            *(f"{latency[key]:.2f}" for key in ("p50_ms", "p90_ms", "p99_ms")),
            "-" if speedup is None else f"{speedup:.2f}x",
            *(f"{latency[key]:.0f}" for key in ("load_ms", "peak_rss_mb")),
            f"{latency['cpu_over_wall']:.2f}",
        )
    print_whole(table, console)
    for row in rows:
        for note in row["notes"]:
            console.print(f"{row['target']}-{row['precision']}: {note}", soft_wrap=True)
