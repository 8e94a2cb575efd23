"""What a saved artifact will meet on phones' GPUs and NPUs, from the file alone.

Findings are advice: they say what a delegate of that name takes, by its published rules, not what
it gains. No device is needed, and none is asked.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict, dataclass
from importlib import import_module
from pathlib import Path
from typing import Any

from tinyvit_edge.errors import InputError

__all__ = ["LINTERS", "Finding", "lint", "lint_bundle"]


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


def lint(target: str, path: Path) -> tuple[Finding, ...]:
    """Judge an artifact of a target by the rules of the devices that it is for.

    Raises:
        InputError: the file is not a readable artifact of the target.
    """
    judge: Callable[[Path], tuple[Finding, ...]] = import_module(LINTERS[target]).lint
    return judge(path)


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
