"""What this environment can do: targets, precisions, packages and the host."""

from __future__ import annotations

import platform
import sys
from collections.abc import Iterable
from typing import Any

from tinyvit_edge.exporters import TARGETS, exporter, missing_packages
from tinyvit_edge.precision import PRECISIONS

__all__ = ["diagnose", "render_diagnosis", "render_targets", "target_table"]

# (system, machine) pairs that every target's packages have wheels for
_TRIED_HOSTS = {("Linux", "x86_64"), ("Darwin", "arm64")}
# distribution -> the oldest Python that the releases asked for in pyproject.toml have wheels for
_OLDEST_PYTHON = {"onnxruntime": (3, 11)}


def target_table() -> list[dict[str, Any]]:
    """One row a target: whether it is installed, and what each precision is there."""
    rows = []
    for name in TARGETS:
        target = exporter(name)
        missing = missing_packages(target)
        rows.append(
            {
                "target": name,
                "artifact": target.artifact,
                "installed": not missing,
                "missing": list(missing),
                "remedy": _remedy(name, missing) if missing else None,
                "evaluation": target.evaluation,
                "timed": target.timed,
                "precisions": {row: target.unsupported.get(row, "supported") for row in PRECISIONS},
            }
        )
    return rows


def _too_new(missing: Iterable[str]) -> dict[str, tuple[int, int]]:
    """Of the missing distributions, those without a wheel for this Python -> the Python needed."""
    return {
        name: _OLDEST_PYTHON[name]
        for name in missing
        if sys.version_info[:2] < _OLDEST_PYTHON.get(name, (0, 0))
    }


def _remedy(target: str, missing: Iterable[str]) -> str:
    """What brings the target's missing distributions here: a newer Python, or its extra."""
    if too_new := _too_new(missing):
        major, minor = max(too_new.values())
        return f"use Python {major}.{minor} or newer"
    return f"pip install 'tinyvit-edge[{target}]'"


def render_targets(rows: list[dict[str, Any]]) -> None:
    """Print `target_table` for people."""
    from rich import box
    from rich.console import Console
    from rich.table import Table

    from tinyvit_edge.report_table import print_whole

    console = Console(highlight=False)
    table = Table(box=box.SIMPLE)
    for title in ("target", *PRECISIONS, "installed", "checked"):
        table.add_column(title, no_wrap=True)
    for row in rows:
        cells = ["yes" if what == "supported" else "no" for what in row["precisions"].values()]
        installed = "yes" if row["installed"] else "no"
        table.add_row(row["target"], *cells, installed, row["evaluation"])
    print_whole(table, console)
    for row in rows:
        if row["missing"]:
            console.print(f"{row['target']} needs {', '.join(row['missing'])}: {row['remedy']}")
        for precision, what in row["precisions"].items():
            if what != "supported":
                console.print(f"{row['target']} {precision}: {what}", soft_wrap=True, markup=False)


def diagnose() -> dict[str, Any]:
    """Host, packages, and whether each target is available, with a remedy where it is not."""
    from tinyvit_edge.host import host_info

    host = (platform.system(), platform.machine())
    findings = []
    for row in target_table():
        reason = None
        if row["missing"]:
            reason = f"{', '.join(row['missing'])} missing"
            if too_new := _too_new(row["missing"]):
                python = ".".join(map(str, sys.version_info[:2]))
                reason += f"; {', '.join(too_new)} has no wheel for Python {python}"
            if host not in _TRIED_HOSTS:
                reason += f"; there may be no wheel for {' '.join(host)}"
        findings.append(
            {
                "target": row["target"],
                "available": row["installed"],
                "reason": reason,
                "remedy": row["remedy"],
            }
        )
    return {
        "host": host_info(),
        "python_supported": (3, 10) <= sys.version_info[:2] <= (3, 13),
        "host_tried": host in _TRIED_HOSTS,
        "targets": findings,
    }


def render_diagnosis(findings: dict[str, Any]) -> None:
    """Print `diagnose` for people."""
    host = findings["host"]
    print(f"host      {host['os']}, {host['cpu']}, {host['logical_cores']} cores")
    print(f"python    {host['python']}{'' if findings['python_supported'] else ' (use 3.10-3.13)'}")
    if not findings["host_tried"]:
        print("          this kind of host has not been tried; Linux x86-64 and macOS arm64 have")
    for name, version in host["packages"].items():
        print(f"package   {name} {version}")
    for item in findings["targets"]:
        state = "available" if item["available"] else f"{item['reason']}: {item['remedy']}"
        print(f"target    {item['target']}: {state}")
