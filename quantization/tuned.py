"""Weights that quantization-aware training found, kept beside the ranges they were found for.

They are float32, of a deployment form's layers, as they are before they are rounded: the reference
that losses are measured against stays the model that training began with.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from torch import Tensor, nn

from tinyvit_edge.errors import InputError
from tinyvit_edge.files import atomic_file, sha256_of

__all__ = ["Tuned", "apply_tuned", "read_tuned", "write_tuned"]

Tuned = Mapping[str, Tensor]
"""``<layer>.weight`` and ``<layer>.bias``, float32."""


def apply_tuned(module: nn.Module, tuned: Tuned) -> None:
    """Put weights into a float deployment form whose channels have been evened out, in place.

    Raises:
        InputError: a layer is missing, or has another shape.
    """
    own = dict(module.named_parameters())
    for name, value in tuned.items():
        if name not in own or own[name].shape != value.shape:
            raise InputError(f"trained weights of {name} are not of this model: run quantize qat")
        own[name].data.copy_(value)


def write_tuned(path: Path, tuned: Tuned) -> dict[str, str]:
    """Write a safetensors file.

    Returns:
        What `read_tuned` finds it by, as JSON values.
    """
    from safetensors.torch import save_file

    with atomic_file(path) as temporary:
        save_file({name: value.contiguous() for name, value in tuned.items()}, temporary)
    return {"file": path.name, "sha256": sha256_of(path)}


def read_tuned(folder: Path, about: Mapping[str, str]) -> dict[str, Tensor]:
    """Read what `write_tuned` wrote.

    Args:
        folder: where the file is.
        about: what `write_tuned` returned.

    Raises:
        InputError: the file is missing, damaged, or another one.
    """
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    try:
        path, digest = folder / about["file"], about["sha256"]
    except (LookupError, TypeError) as error:
        raise InputError(
            f"{folder}: the ranges do not say where their trained weights are; run quantize qat,"
            " or export, again"
        ) from error
    try:
        if sha256_of(path) != digest:
            raise InputError(f"{path}: not the weights that belong to these ranges; make it again")
        return load_file(path)
    except (OSError, SafetensorError) as error:
        raise InputError(f"{path}: not readable ({error}); make it again") from error
