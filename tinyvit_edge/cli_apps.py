"""The command for the sample apps: bundle."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from tinyvit_edge.cli_common import JsonOption, emit

__all__ = ["register"]


def register(app: typer.Typer) -> None:
    """Add the command to the application."""
    app.command()(bundle)


def bundle(
    bundles: Annotated[
        list[Path],
        typer.Argument(
            help="Bundles, or folders that deploy wrote: all in them that the app runs."
        ),
    ],
    app: Annotated[str, typer.Option(help="web, android, ios or native.")],
    out: Annotated[
        Path | None, typer.Option("--out", help="Folder to copy to, if other than the app's own.")
    ] = None,
    json: JsonOption = None,
) -> None:
    """Copy bundles into an app's folder, and write the index that the app reads."""
    from tinyvit_edge.app_bundles import ship

    facts = ship(app, bundles, out)
    if emit(facts, json):
        for entry in facts["bundles"]:
            typer.echo(f"{facts['folder']}/{entry['name']}  {entry['bytes'] / 1e6:.2f} MB")
