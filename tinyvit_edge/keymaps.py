"""State-dict names of TinyViT in the three formats, as rows of data.

Ours are Hugging Face's. A row pairs a prefix of a foreign name with ours; `{}` stands for a stage
or block number, `stage_offset` is what the foreign stage number is ahead of ours (timm starts a
stage with its downsampling, Microsoft and Hugging Face end one with it). Sources:
microsoft/Cream/TinyViT, timm/models/tiny_vit.py, huggingface/transformers#28254.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Literal

from torch import Tensor

__all__ = ["FORMATS", "Format", "from_native", "recognise", "to_native", "to_native_key"]

Format = Literal["microsoft", "timm", "huggingface"]


@dataclass(frozen=True, slots=True)
class _Prefix:
    theirs: str
    ours: str
    stage_offset: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class _KeyMap:
    """One foreign format; `stem` is the key that only this format has."""

    stem: str
    prefixes: tuple[_Prefix, ...]
    parts: tuple[tuple[str, str], ...]  # a whole dotted part of a name: theirs, ours


_KEY_MAPS: dict[Format, _KeyMap] = {
    "microsoft": _KeyMap(
        stem="patch_embed.seq.0.c.weight",
        prefixes=(
            _Prefix("patch_embed.", "tinyvit.embeddings."),
            _Prefix("layers.{}.blocks.{}.", "tinyvit.encoder.stages.{}.layers.{}."),
            _Prefix("layers.{}.downsample.", "tinyvit.encoder.stages.{}.downsample."),
            _Prefix("norm_head.", "tinyvit.layernorm."),
            _Prefix("head.", "classifier."),
        ),
        parts=(("c", "convolution"), ("bn", "batch_norm")),
    ),
    "timm": _KeyMap(
        stem="patch_embed.conv1.conv.weight",
        prefixes=(
            _Prefix("patch_embed.conv1.", "tinyvit.embeddings.seq.0."),
            _Prefix("patch_embed.conv2.", "tinyvit.embeddings.seq.2."),
            _Prefix("stages.{}.blocks.{}.", "tinyvit.encoder.stages.{}.layers.{}."),
            _Prefix("stages.{}.downsample.", "tinyvit.encoder.stages.{}.downsample.", 1),
            _Prefix("head.norm.", "tinyvit.layernorm."),
            _Prefix("head.fc.", "classifier."),
        ),
        parts=(("conv", "convolution"), ("bn", "batch_norm")),
    ),
    "huggingface": _KeyMap(
        stem="tinyvit.embeddings.seq.0.convolution.weight", prefixes=(), parts=()
    ),
}

FORMATS: tuple[Format, ...] = tuple(_KEY_MAPS)

# A buffer that follows from the window size; old checkpoints carry it.
_DERIVED = "attention_bias_idxs"


def recognise(keys: Iterable[str]) -> Format | None:
    """The format whose stem is among `keys`, or None where they are not a TinyViT's."""
    present = set(keys)
    return next((name for name in FORMATS if _KEY_MAPS[name].stem in present), None)


def from_native(state: Mapping[str, Tensor], form: Format) -> dict[str, Tensor]:
    """Rename `state` from `form` to ours; names that no row covers stay as they are."""
    return {
        _from_native_key(key, _KEY_MAPS[form]): value
        for key, value in state.items()
        if not key.endswith(_DERIVED)
    }


def to_native(state: Mapping[str, Tensor], form: Format) -> dict[str, Tensor]:
    """Rename `state` from our names to those of `form`."""
    return {to_native_key(key, form): value for key, value in state.items()}


def to_native_key(key: str, form: Format) -> str:
    """The name in `form` of what we call `key`."""
    key_map = _KEY_MAPS[form]
    for row in key_map.prefixes:
        renamed = _swap_prefix(key, row.ours, row.theirs, row.stage_offset)
        if renamed is not None:
            return _swap_parts(renamed, {ours: theirs for theirs, ours in key_map.parts})
    return key


def _from_native_key(key: str, key_map: _KeyMap) -> str:
    for row in key_map.prefixes:
        renamed = _swap_prefix(key, row.theirs, row.ours, -row.stage_offset)
        if renamed is not None:
            return _swap_parts(renamed, dict(key_map.parts))
    return key


def _swap_prefix(key: str, old: str, new: str, offset: int) -> str | None:
    match = re.match(re.escape(old).replace(r"\{\}", r"(\d+)"), key)
    if match is None:
        return None
    numbers = [int(number) for number in match.groups()]
    if numbers:
        numbers[0] += offset
    return new.format(*numbers) + key[match.end() :]


def _swap_parts(key: str, swaps: Mapping[str, str]) -> str:
    return ".".join(swaps.get(part, part) for part in key.split("."))
