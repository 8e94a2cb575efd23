"""A TinyViT's configuration from the shapes of its weights, and its move to another resolution."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from tinyvit_edge.configuration import TinyVitConfig
from tinyvit_edge.variants import VARIANTS, config_for

__all__ = ["infer_config", "resample_biases", "resized", "variant_name"]

_STAGE = "tinyvit.encoder.stages"
_BLOCK_KEY = re.compile(re.escape(_STAGE) + r"\.(\d+)\.layers\.(\d+)\.")

# The family's windows by resolution: they grow with it, so that the windows tile every stage.
_FAMILY_WINDOWS = {row.image_size: row.window_sizes for row in VARIANTS.values()}


def infer_config(state: Mapping[str, Tensor], image_size: int | None = None) -> TinyVitConfig:
    """The configuration that `state`, under our names, was made with.

    Shapes fix everything but the resolution: without `image_size` it is the one of the family
    that has these windows, else 224. The entries of `num_heads` and `window_sizes` for the
    convolutional stage, which mean nothing, continue those of the next stage.

    Raises:
        KeyError: a key that the inference needs is missing.
        InputError: the shapes contradict each other.
    """
    depths = _depths(state)
    stages = range(1, len(depths))
    inner, width = _shape(state, f"{_STAGE}.0.layers.0.conv1.convolution.weight")[:2]
    hidden = [width] + [_shape(state, _first(i, "attn.proj.weight"))[0] for i in stages]
    mlp_inner = [_shape(state, _first(i, "mlp.fc1.weight"))[0] for i in stages]
    tables = [_shape(state, _first(i, "attn.attention_biases")) for i in stages]
    heads, windows = [t[0] for t in tables], [math.isqrt(t[1]) for t in tables]
    windows = [windows[0], *windows]
    return TinyVitConfig(
        image_size=image_size or _family_size(windows) or 224,
        num_channels=_shape(state, "tinyvit.embeddings.seq.0.convolution.weight")[1],
        hidden_sizes=hidden,
        depths=depths,
        num_heads=[max(1, width * heads[0] // hidden[1]), *heads],
        window_sizes=windows,
        mlp_ratio=_ratio(mlp_inner, hidden[1:]),
        mbconv_expand_ratio=_ratio([inner], [width]),
        local_conv_size=_shape(state, _first(1, "local_conv.convolution.weight"))[-1],
        num_labels=_shape(state, "classifier.weight")[0],
    )


def resized(config: TinyVitConfig, image_size: int) -> TinyVitConfig:
    """`config` for another resolution: the family's windows grow with it, others stay."""
    changes: dict[str, object] = {"image_size": image_size}
    if _family_size(config.window_sizes) and image_size in _FAMILY_WINDOWS:
        changes["window_sizes"] = _FAMILY_WINDOWS[image_size]
    moved: TinyVitConfig = TinyVitConfig.from_dict(config.to_dict() | changes)
    return moved


def resample_biases(state: Mapping[str, Tensor], windows: Sequence[int]) -> dict[str, Tensor]:
    """`state` with each attention bias table (heads, w * w) resampled to the windows given.

    A table is a map over |dy|, |dx|; it is resampled bicubically, as timm does
    (`resize_rel_pos_bias_table_levit`), which is the weights' authors' way to 384 and 512 px.
    """
    resampled = dict(state)
    for key, table in state.items():
        match = _BLOCK_KEY.match(key)
        if match is None or not key.endswith(".attention_biases"):
            continue
        old, new = math.isqrt(table.shape[1]), windows[int(match[1])]
        if old != new:
            grid = torch.nn.functional.interpolate(
                table.view(1, -1, old, old), size=(new, new), mode="bicubic", antialias=True
            )  # (1, heads, new, new)
            resampled[key] = grid.view(-1, new * new)  # (heads, new * new)
    return resampled


def variant_name(config: TinyVitConfig) -> str:
    """The published variant that `config` is, whatever its classes, or "custom"."""
    return next(
        (name for name in VARIANTS if _signature(config) == _signature(config_for(name))), "custom"
    )


def _signature(config: TinyVitConfig) -> tuple[object, ...]:
    """What tells architectures apart, without the convolutional stage's placeholders."""
    return (
        config.image_size,
        config.num_channels,
        tuple(config.hidden_sizes),
        tuple(config.depths),
        tuple(config.num_heads[1:]),
        tuple(config.window_sizes[1:]),
        config.mlp_ratio,
        config.mbconv_expand_ratio,
        config.local_conv_size,
    )


def _family_size(windows: Sequence[int]) -> int | None:
    for size, family in _FAMILY_WINDOWS.items():
        if tuple(windows[1:]) == family[1:]:
            return size
    return None


def _depths(state: Mapping[str, Tensor]) -> list[int]:
    """Blocks of each stage, counted from the names."""
    blocks = {(int(m[1]), int(m[2])) for m in map(_BLOCK_KEY.match, state) if m}
    stages = 1 + max((stage for stage, _ in blocks), default=-1)
    depths = [sum(1 for stage, _ in blocks if stage == index) for index in range(stages)]
    for stage, depth in enumerate(depths or [0]):
        if depth == 0:
            raise KeyError(_first(stage, "*"))
    return depths


def _first(stage: int, name: str) -> str:
    return f"{_STAGE}.{stage}.layers.0.{name}"


def _shape(state: Mapping[str, Tensor], key: str) -> tuple[int, ...]:
    return tuple(state[key].shape)


def _ratio(inner: Sequence[int], widths: Sequence[int]) -> float:
    """The least ratio r with int(width * r) == inner for all pairs, where there is one."""
    ratio = max(i / w for i, w in zip(inner, widths, strict=True))
    exact = all(int(w * ratio) >= i for i, w in zip(inner, widths, strict=True))
    return ratio if exact else math.nextafter(ratio, math.inf)
