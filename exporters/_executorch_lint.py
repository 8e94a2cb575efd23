"""An ExecuTorch program by what its delegates have taken."""

from __future__ import annotations

from pathlib import Path

from tinyvit_edge.exporters._executorch_program import contents, read_program
from tinyvit_edge.lint import Finding

__all__ = ["lint"]


def lint(path: Path) -> tuple[Finding, ...]:
    """Judge a ``.pte`` file.

    Raises:
        InputError: the file is not readable.
    """
    found = contents(read_program(path))
    outside = ", ".join(f"{name} x{calls}" for name, calls in found.operators.items())
    backends = sorted(set(found.delegates))
    return (
        Finding(
            rule="one partition",
            device=", ".join(backends) or "no delegate",
            passed=len(found.delegates) == 1,
            found=f"{len(found.delegates)} partitions",
            remedy="use this target's deployment form, and a precision that its delegate takes",
        ),
        Finding(
            rule="operators",
            device=", ".join(backends) or "no delegate",
            passed=not found.operators,
            found=f"{sum(found.operators.values())} operators on portable kernels"
            + (f": {outside}" if outside else ""),
            remedy="portable kernels are slow: rewrite what the delegate leaves",
        ),
    )
