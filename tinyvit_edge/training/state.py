"""What a run needs to go on exactly where it was: weights, average, optimizer and step."""

from __future__ import annotations

import json
import pickle
from pathlib import Path
from typing import Any

import torch

from tinyvit_edge.errors import InputError
from tinyvit_edge.files import atomic_file

__all__ = ["load_state", "refuse_other_run", "save_state"]


def save_state(path: Path, state: dict[str, Any]) -> None:
    """Write tensors and numbers; a kill leaves the file before it."""
    with atomic_file(path) as temporary:
        torch.save(state, temporary)


def load_state(path: Path, run: dict[str, Any]) -> dict[str, Any] | None:
    """Read a state that `run` wrote; None where there is none.

    Raises:
        InputError: damaged, or of a run with other settings.
    """
    if not path.exists():
        return None
    try:
        state: dict[str, Any] = torch.load(path, map_location="cpu", weights_only=True)
    except (pickle.UnpicklingError, RuntimeError, EOFError, ValueError) as error:
        raise InputError(f"{path}: not a readable state; remove it to begin again") from error
    _refuse_other(path.parent, json.loads(state["run"]), run)
    return state


def refuse_other_run(path: Path, run: dict[str, Any]) -> None:
    """Refuse a folder whose ``run.json`` is of a run with other settings.

    Raises:
        InputError: it is, or it is damaged.
    """
    if not path.exists():
        return
    try:
        before = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise InputError(f"{path}: not readable ({error}); name another folder") from error
    _refuse_other(path.parent, before, run)


def _refuse_other(folder: Path, before: dict[str, Any], run: dict[str, Any]) -> None:
    changed = sorted(key for key in before | run if before.get(key) != run.get(key))
    if changed:
        raise InputError(
            f"{folder}: holds a run that differs in {', '.join(changed)}; go on as it was"
            " begun, or name another folder"
        )
