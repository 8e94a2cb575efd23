"""Where a checkpoint's bytes come from: files, folders, the Hugging Face hub, the package itself.

A checkpoint is data: it is read as safetensors, or as a pickle of tensors with `weights_only=True`,
which refuses anything that would run code.
"""

from __future__ import annotations

import difflib
import json
import os
import pickle
import re
import warnings
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from tinyvit_edge.errors import CheckpointError

__all__ = ["CheckpointFiles", "bundled_names", "locate", "read_json", "read_state"]

WEIGHT_NAMES = ("model.safetensors", "pytorch_model.bin")
CONFIG_NAME = "config.json"
PROCESSOR_NAME = "preprocessor_config.json"

_BUNDLED = Path(__file__).parent / "weights"
_HUB_ID = re.compile(r"[\w-][\w.-]*/[\w-][\w.-]*")
_FILE_SUFFIXES = (".safetensors", ".bin", ".pth", ".pt", ".ckpt", ".json")
_ZIP = b"PK\x03\x04"  # how torch.save's files have begun since 1.6
_WRAPPERS = ("model", "state_dict")  # Microsoft's training script; timm's


@dataclass(frozen=True, slots=True, kw_only=True)
class CheckpointFiles:
    """The weights, and the JSON files beside them where the source is a folder that has them."""

    weights: Path
    config: Path | None = None
    processor: Path | None = None


def bundled_names() -> tuple[str, ...]:
    """Names of the checkpoints that come with the package, sorted."""
    return tuple(sorted(path.parent.name for path in _BUNDLED.glob(f"*/{WEIGHT_NAMES[0]}")))


def locate(source: str | os.PathLike[str]) -> CheckpointFiles:
    """Find the files of `source`: an existing path, a bundled name, or a hub id "org/name".

    Raises:
        CheckpointError: no name, nothing of that name, a folder without weights, or no hub.
    """
    name = os.fspath(source)
    if not name:
        raise CheckpointError(f"--weights is empty: name a file or folder; {_hint(name)}")
    path = Path(source).expanduser()
    # a folder of photos may be called as bundled weights are
    if name in bundled_names() and not (path.is_file() or _weights_in(path)):
        return _in_folder(_BUNDLED / name)
    if path.is_dir():
        return _in_folder(path)
    if path.exists():
        return CheckpointFiles(weights=path)
    if _HUB_ID.fullmatch(name) and path.suffix not in _FILE_SUFFIXES:
        return _in_folder(_download(name))
    raise CheckpointError(f"{name}: no such file, folder or bundled checkpoint; {_hint(name)}")


def _hint(name: str) -> str:
    close = difflib.get_close_matches(name, bundled_names(), n=1)
    if close:
        return f"did you mean {close[0]}?"
    return f"bundled: {', '.join(bundled_names()) or 'none'}; a hub id looks like org/name"


def _in_folder(folder: Path) -> CheckpointFiles:
    weights = _weights_in(folder)
    if weights is None:
        raise CheckpointError(
            f"{folder}: no weights in this folder; it needs {' or '.join(WEIGHT_NAMES)}"
        )
    return CheckpointFiles(
        weights=weights,
        config=_existing(folder / CONFIG_NAME),
        processor=_existing(folder / PROCESSOR_NAME),
    )


def _weights_in(folder: Path) -> Path | None:
    return next(filter(None, (_existing(folder / name) for name in WEIGHT_NAMES)), None)


def _existing(path: Path) -> Path | None:
    return path if path.is_file() else None


def _download(hub_id: str) -> Path:
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HFValidationError

    try:
        return Path(
            snapshot_download(hub_id, allow_patterns=[*WEIGHT_NAMES, CONFIG_NAME, PROCESSOR_NAME])
        )
    except (OSError, HFValidationError) as error:  # the hub's errors, and those of the network
        raise CheckpointError(
            f"{hub_id}: not a local path, and the Hugging Face hub did not give it"
            f" ({type(error).__name__}); check the name and the network, or download it first"
        ) from error


def read_json(path: Path) -> dict[str, Any]:
    """The JSON object in `path`.

    Raises:
        CheckpointError: not readable, not JSON, or not an object.
    """
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise CheckpointError(f"{path}: not readable as JSON ({_first_line(error)})") from error
    if not isinstance(content, dict):
        raise CheckpointError(f"{path}: a JSON object is needed, not a {type(content).__name__}")
    return content


def read_state(path: Path) -> dict[str, Tensor]:
    """The state dict in `path` under its own names; floating-point tensors become float32.

    Safetensors, or torch's format, bare or under "model" or "state_dict". The content tells which;
    the suffix counts where it does not, as in an empty file.

    Raises:
        CheckpointError: not readable, damaged, no state dict, or a pickle that asks to run code.
    """
    content = _read_safetensors(path) if _is_safetensors(path) else _read_torch(path)
    for wrapper in _WRAPPERS:
        if isinstance(content, Mapping) and isinstance(content.get(wrapper), Mapping):
            content = content[wrapper]
            break
    if not isinstance(content, Mapping):
        raise CheckpointError(
            f"{path}: holds a {type(content).__name__}; a state dict of tensors is needed"
        )
    for key, value in content.items():
        if not isinstance(key, str) or not isinstance(value, Tensor):
            raise CheckpointError(
                f"{path}: not a state dict, entry {key!r} is a {type(value).__name__};"
                ' tensors are needed, bare or under "model" or "state_dict"'
            )
    return {key: t.float() if t.is_floating_point() else t for key, t in content.items()}


def _is_safetensors(path: Path) -> bool:
    try:
        with path.open("rb") as file:
            head = file.read(9)
    except OSError as error:
        raise _unreadable(path, "checkpoint", error) from error
    if head.startswith(_ZIP):
        return False
    # a u64 and a JSON object (https://huggingface.co/docs/safetensors, "Format")
    return head[8:] == b"{" or path.suffix == ".safetensors"


def _read_safetensors(path: Path) -> Mapping[str, Tensor]:
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    try:
        state: Mapping[str, Tensor] = load_file(path)
    except (OSError, SafetensorError) as error:
        raise _unreadable(path, "safetensors file", error) from error
    return state


def _read_torch(path: Path) -> object:
    try:
        # an open file, because torch goes by the suffix of a path (2.13)
        with path.open("rb") as file, warnings.catch_warnings():
            warnings.simplefilter("ignore")  # about the pickle's protocol, which is not our doing
            return torch.load(file, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        refused = re.search(r"GLOBAL ([\w.]+)", str(error))
        what = f"asks to run {refused[1]} while it loads" if refused else "holds more than tensors"
        raise CheckpointError(
            f"{path}: refused, as this pickle {what};"
            " if you trust its author, save its tensors alone as safetensors"
        ) from error
    except (OSError, EOFError, RuntimeError, ValueError, KeyError) as error:
        raise _unreadable(path, "PyTorch checkpoint", error) from error


def _unreadable(path: Path, kind: str, error: Exception) -> CheckpointError:
    if isinstance(error, PermissionError):
        return CheckpointError(f"{path}: permission denied")
    return CheckpointError(
        f"{path}: not a readable {kind} ({_first_line(error)}); it may be truncated: fetch it again"
    )


def _first_line(error: Exception) -> str:
    text = str(error).strip() or type(error).__name__
    return text.splitlines()[0][:120]
