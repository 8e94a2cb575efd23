"""AdamW's parameter groups, the learning rate at a step, and the moving average of the weights."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor, nn

from tinyvit_edge.modeling import TinyVitForImageClassification
from tinyvit_edge.training.recipe import Recipe
from tinyvit_edge.training.student import stage_blocks

__all__ = ["Ema", "learning_rate", "make_optimizer", "set_learning_rate"]

_FLOOR = 0.01  # of the peak, where the cosine ends


def make_optimizer(model: TinyVitForImageClassification, recipe: Recipe) -> torch.optim.AdamW:
    """AdamW over what the recipe trains; each group has a factor ``scale`` on the rate.

    Weight decay is for tensors of two dimensions and more: norms, biases and attention biases,
    though these are tables, have none.
    """
    depths = _depths(model)
    top = max(depths.values())
    groups: dict[tuple[int, bool], list[Tensor]] = {}
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(recipe.train == "all" or name.startswith("classifier."))
        if parameter.requires_grad:
            decays = parameter.ndim > 1 and not name.endswith("attention_biases")
            groups.setdefault((depths[name], decays), []).append(parameter)
    return torch.optim.AdamW(
        [
            {
                "params": parameters,
                "weight_decay": recipe.weight_decay if decays else 0.0,
                "scale": recipe.layer_decay ** (top - depth),
            }
            for (depth, decays), parameters in sorted(groups.items(), key=lambda item: item[0])
        ],
        lr=recipe.lr,
        fused=True,
    )


def learning_rate(recipe: Recipe, step: float, total: int, warmup: int) -> float:
    """Rate at `step`, of `Plan.pace`, out of `total`: linear warm-up, then a cosine to 1 %."""
    if step < warmup:
        return recipe.lr * (step + 1) / warmup
    progress = (step - warmup) / max(1, total - warmup)
    return recipe.lr * (_FLOOR + (1 - _FLOOR) * 0.5 * (1 + math.cos(math.pi * progress)))


def set_learning_rate(optimizer: torch.optim.Optimizer, rate: float) -> None:
    """Give every group its share of the rate."""
    for group in optimizer.param_groups:
        group["lr"] = rate * group["scale"]


class Ema:
    """Moving average of a model's weights and BatchNorm statistics, as a state dict."""

    def __init__(self, model: nn.Module, decay: float) -> None:
        self.decay = decay
        self.state = {k: v.detach().clone() for k, v in model.state_dict().items()}

    @torch.no_grad()
    def update(self, model: nn.Module, step: int) -> None:
        """Move towards the model; faster in the first steps, while the average is young."""
        decay = min(self.decay, (1 + step) / (10 + step))
        current: dict[str, Any] = model.state_dict()
        averaged = [k for k, v in current.items() if v.is_floating_point()]
        mine, theirs = [self.state[k] for k in averaged], [current[k] for k in averaged]
        torch._foreach_lerp_(mine, theirs, 1 - decay)
        for key, value in current.items():
            if not value.is_floating_point():
                self.state[key].copy_(value)


def _depths(model: TinyVitForImageClassification) -> dict[str, int]:
    """How many blocks lie below each parameter: 0 in the stem, the most in the head."""
    counts = [len(blocks) for blocks in stage_blocks(model)]
    starts = [sum(counts[:i]) for i in range(len(counts) + 1)]
    depths = {}
    for name, _ in model.named_parameters():
        parts = name.split(".")  # tinyvit.encoder.stages.1.layers.0.… or ….1.downsample.…
        if "stages" not in parts:
            depths[name] = 0 if "embeddings" in parts else starts[-1] + 1
            continue
        stage = int(parts[3])
        inside = parts[4] == "layers"
        depths[name] = (starts[stage] + int(parts[5]) if inside else starts[stage + 1]) + 1
    return depths
