"""A checkpoint made ready to be trained: its classes, its windows, its stochastic depth."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from tinyvit_edge.checkpoint import Checkpoint
from tinyvit_edge.configuration import TinyVitConfig
from tinyvit_edge.layers import DropPath, TinyVitBlock, attention_bias_indices
from tinyvit_edge.modeling import TinyVitForImageClassification
from tinyvit_edge.preprocessing import preset
from tinyvit_edge.variants import config_for

__all__ = ["fit_windows", "fresh_checkpoint", "set_drop_path", "stage_blocks", "with_labels"]


def fresh_checkpoint(variant: str, labels: Sequence[str], seed: int) -> Checkpoint:
    """An untrained model of the family.

    Raises:
        InputError: no such variant.
    """
    torch.manual_seed(seed)
    config = config_for(variant, len(labels))
    _name_classes(config, labels)
    return Checkpoint(
        model=TinyVitForImageClassification(config).eval(),
        labels=tuple(labels),
        preprocessing=preset("microsoft", config.image_size),
        variant=variant,
        format="huggingface",
        sha256="",
        source=variant,
    )


def with_labels(checkpoint: Checkpoint, labels: Sequence[str], seed: int) -> Checkpoint:
    """The checkpoint for other classes: rows of the head are kept where a label stays.

    The rest of the head is drawn from `seed`. The model is changed in place.
    """
    if tuple(labels) == checkpoint.labels:
        return checkpoint
    model = checkpoint.model
    old: Any = model.classifier
    generator = torch.Generator().manual_seed(seed)
    head = nn.Linear(old.in_features, len(labels))
    with torch.no_grad():
        nn.init.trunc_normal_(head.weight, std=model.config.initializer_range, generator=generator)
        head.bias.zero_()
        rows = {label: row for row, label in enumerate(checkpoint.labels)}
        for row, label in enumerate(labels):
            if label in rows:
                head.weight[row], head.bias[row] = old.weight[rows[label]], old.bias[rows[label]]
    model.classifier = head
    _name_classes(model.config, labels)
    model.num_labels = len(labels)
    return replace(checkpoint, labels=tuple(labels))


def fit_windows(model: TinyVitForImageClassification, size: int) -> None:
    """Make the attention windows no larger than the maps of a `size` x `size` image.

    Below the resolution that a model is made for, a map can be smaller than its window, and would
    be padded with zeros that take part as tokens: wrong for what is trained, and at 112 px half of
    the work. A smaller window uses the same table of biases, since they go by distance; nothing is
    resampled, no weight is touched, and the model's own size restores its own windows.
    """
    config = model.config
    side = _halved(_halved(size))
    for index, blocks in enumerate(stage_blocks(model)):
        for block in blocks:
            if isinstance(block, TinyVitBlock):
                table = config.window_sizes[index]
                block.window_size = min(table, side)
                device = block.attn.attention_biases.device
                indices = _bias_indices(block.window_size, table)
                block.attn.attention_bias_idxs = indices.to(device)
                block.attn.window_size = block.window_size
        side = _halved(side)


def set_drop_path(model: TinyVitForImageClassification, rate: float) -> None:
    """Spread stochastic depth linearly over the blocks, from 0 to `rate`."""
    depth = sum(model.config.depths)
    rates = torch.linspace(0, rate, depth).tolist()
    every = [block for blocks in stage_blocks(model) for block in blocks]
    for block, value in zip(every, rates, strict=True):
        for module in block.modules():
            if isinstance(module, DropPath):
                module.rate = value


def stage_blocks(model: TinyVitForImageClassification) -> list[list[nn.Module]]:
    """The blocks of each stage, in order."""
    stages: Any = model.tinyvit.encoder.stages
    return [list(stage.layers) for stage in stages]


def _halved(side: int) -> int:
    """What a convolution of kernel 3, stride 2 and padding 1 leaves."""
    return (side + 1) // 2


def _bias_indices(window: int, table: int) -> Tensor:
    """Columns of a `table` x `table` bias table for a smaller window: int64 (w*w, w*w)."""
    indices = attention_bias_indices(window)
    return indices // window * table + indices % window


def _name_classes(config: TinyVitConfig, labels: Sequence[str]) -> None:
    config.id2label = dict(enumerate(labels))
    config.label2id = {label: index for index, label in enumerate(labels)}
