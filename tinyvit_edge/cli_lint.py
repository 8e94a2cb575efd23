"""The ``lint`` command, and ``--lint`` of others."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from tinyvit_edge.cli_common import JsonOption, emit

if TYPE_CHECKING:
    from tinyvit_edge.report import Report

__all__ = ["LintOption", "register", "show_findings", "show_report_findings"]

LintOption = Annotated[
    bool, typer.Option("--lint", help="Say what speaks against it on GPUs and NPUs.")
]


def register(app: typer.Typer) -> None:
    """Add the command."""
    app.command()(lint)


def lint(
    artifacts: Annotated[
        list[Path], typer.Argument(metavar="BUNDLE_OR_ARTIFACT...", help="What to judge.")
    ],
    json: JsonOption = None,
) -> None:
    """Say what speaks against an artifact on phones' GPUs and NPUs: advice, not a gate."""
    from tinyvit_edge.lint import lint_bundle

    found = {str(path): [one.to_dict() for one in lint_bundle(path)] for path in artifacts}
    if emit(found, json):
        for name, rows in found.items():
            typer.echo(name)
            show_findings(rows)


def show_findings(findings: Iterable[Mapping[str, Any]]) -> None:
    """Print a line a finding, and the remedy where its rule is not met.

    Args:
        findings: as `tinyvit_edge.lint.Finding` gives them to JSON.
    """
    for one in findings:
        head = "ok  " if one["passed"] else "note"
        typer.echo(f"  {head} {one['device']}, {one['rule']}: {one['found']}")
        if not one["passed"] and one["remedy"]:
            typer.echo(f"       {one['remedy']}")


def show_report_findings(report: Report) -> None:
    """Print what a run with ``--lint`` found, artifact by artifact."""
    for row in report.rows:
        if row.lint:
            typer.echo(f"\n{row.artifact}")
            show_findings(row.lint)
