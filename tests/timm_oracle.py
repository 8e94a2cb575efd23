"""timm's TinyViT as the oracle of the reference model."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from tinyvit_edge.compat import tolerate_torchvision


def import_timm() -> Any:
    """Import timm, which imports torchvision."""
    tolerate_torchvision()
    import timm

    return timm


def timm_model(name: str, seed: int = 0, **kwargs: Any) -> nn.Module:
    """A TinyViT of timm in eval mode with random weights; its logits are (B, classes)."""
    torch.manual_seed(seed)
    model: nn.Module = import_timm().create_model(name, **kwargs)
    return model.eval()


def timm_biases(table: Tensor, window: int) -> Tensor:
    """Resample as timm does: a bias table (heads, w * w) to `window`."""
    import_timm()
    from timm.layers import resize_rel_pos_bias_table_levit

    heads = table.shape[0]
    resampled: Tensor = resize_rel_pos_bias_table_levit(table.T, (window * window, heads)).T
    return resampled
