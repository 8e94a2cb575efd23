"""What the tests' one deployment is of, and how they look things up in it."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from tinyvit_edge.report import Report, Row

DEPLOYED_PRECISIONS = ("fp32", "fp16", "w8-dynamic", "w8a8", "w8", "w4g32")
"""A precision of each kind: mixed ones take a search, and the other weights of few bits differ in
one operator alone."""


@dataclass(frozen=True)
class Deployed:
    """One `deploy` of the digits to every target."""

    out: Path
    report: Report

    def row(self, target: str, precision: str) -> Row:
        """The row of one cell."""
        cells = {(row.target, row.precision): row for row in self.report.rows}
        return cells[target, precision]
