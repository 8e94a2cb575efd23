"""What an artifact will meet on phones' GPUs and NPUs, mostly from the file alone.

Findings are advice: they say what a delegate of that name takes, by its published rules, not what
it gains. No device is needed, and none is asked. Where a runtime has a further delegate that no
artifact here is written for, and the model is at hand, it is lowered for that one, too.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from functools import partial
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tinyvit_edge.errors import InputError, TinyVitEdgeError

if TYPE_CHECKING:
    from tinyvit_edge.checkpoint import Checkpoint
    from tinyvit_edge.program import Program

__all__ = ["LINTERS", "LOWERINGS", "Finding", "lint", "lint_bundle", "lint_lowered", "lint_made"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Finding:
    """What one rule says of an artifact."""

    rule: str
    device: str
    """Who reads the file by this rule: ``GPU delegate``, ``Neural Engine``, …"""
    passed: bool
    found: str
    """What was counted, in a few words."""
    remedy: str | None = None
    """What to do, where the rule is not met."""

    def to_dict(self) -> dict[str, Any]:
        """As JSON values."""
        return asdict(self)


LINTERS: dict[str, str] = {
    "onnx": "tinyvit_edge.exporters._onnx_lint",
    "executorch": "tinyvit_edge.exporters._executorch_lint",
    "tflite": "tinyvit_edge.exporters._tflite_lint",
    "coreml": "tinyvit_edge.exporters._mlprogram_lint",
}
"""Target -> the module whose ``lint(path)`` reads its artifacts."""

LOWERINGS: dict[str, str] = {"executorch": "tinyvit_edge.exporters._executorch_vulkan"}
"""Target -> the module whose ``lint(program)`` lowers a float32 program in the form ``FORM`` for a
delegate that artifacts are not written for."""

_LOWERED = "fp32"


def lint(target: str, path: Path) -> tuple[Finding, ...]:
    """Judge an artifact of a target by the rules of the devices that it is for.

    Raises:
        InputError: the file is not a readable artifact of the target.
    """
    judge: Callable[[Path], tuple[Finding, ...]] = import_module(LINTERS[target]).lint
    return judge(path)


def lint_lowered(target: str, program: Program) -> tuple[Finding, ...]:
    """Judge what the target's further delegate makes of a program; see `LOWERINGS`."""
    judge: Callable[[Program], tuple[Finding, ...]] = import_module(LOWERINGS[target]).lint
    return judge(program)


def lint_made(
    target: str, artifacts: Mapping[str, Path], checkpoint: Checkpoint
) -> dict[str, tuple[Finding, ...]]:
    """Judge artifacts of one target that have just been made, in a process of its own.

    Args:
        target: its name.
        artifacts: path by precision.
        checkpoint: what they were made from. With ``fp32`` it is lowered for what `LOWERINGS`
            names, which takes as long as an export.

    Returns:
        Findings by precision. What cannot be judged is a finding, too: advice costs no artifact.
    """
    from tinyvit_edge.precision import PRECISIONS
    from tinyvit_edge.program import build_program
    from tinyvit_edge.worker import TargetProcess

    with TargetProcess(target) as process:
        found = {
            name: _or_why_not(target, partial(process.lint, path))
            for name, path in artifacts.items()
        }
        if _LOWERED in found and target in LOWERINGS:
            form = import_module(LOWERINGS[target]).FORM
            program = build_program(checkpoint, PRECISIONS[_LOWERED], form=form)
            found[_LOWERED] += _or_why_not(target, partial(process.lint_lowered, program))
    return found


def _or_why_not(target: str, judge: Callable[[], tuple[Finding, ...]]) -> tuple[Finding, ...]:
    try:
        return judge()
    except TinyVitEdgeError as error:
        return (
            Finding(
                rule="can be judged",
                device=target,
                passed=False,
                found=str(error),
                remedy="the artifact is what it is: its gates say whether it is good",
            ),
        )


def lint_bundle(folder: Path) -> tuple[Finding, ...]:
    """Judge the artifact of a bundle, or an artifact named by itself.

    Raises:
        InputError: neither a bundle nor an artifact that is known by its suffix.
    """
    from tinyvit_edge.bundle import read_bundle
    from tinyvit_edge.exporters import TARGETS, exporter

    if (folder / "manifest.json").exists():
        bundle = read_bundle(folder)
        return lint(bundle.target, folder / exporter(bundle.target).artifact)
    for target in TARGETS:
        if folder.suffix == Path(exporter(target).artifact).suffix:
            return lint(target, folder)
    known = ", ".join(Path(exporter(target).artifact).suffix for target in TARGETS)
    raise InputError(f"{folder} is neither a bundle nor an artifact ({known})")
