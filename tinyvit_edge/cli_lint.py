"""The ``lint`` command, and ``--lint`` of others."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from tinyvit_edge.cli_common import JsonOption, emit

if TYPE_CHECKING:
    from tinyvit_edge.lint import Finding

__all__ = ["register", "show_findings"]


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

    found = {str(path): lint_bundle(path) for path in artifacts}
    if emit({name: [one.to_dict() for one in rows] for name, rows in found.items()}, json):
        for name, rows in found.items():
            typer.echo(name)
            show_findings(rows)


def show_findings(findings: Iterable[Finding]) -> None:
    """Print a line a finding, and the remedy where its rule is not met."""
    for one in findings:
        typer.echo(f"  {'ok  ' if one.passed else 'note'} {one.device}, {one.rule}: {one.found}")
        if not one.passed and one.remedy:
            typer.echo(f"       {one.remedy}")
