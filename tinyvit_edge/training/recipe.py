"""How a model is trained, as rows of data."""

from __future__ import annotations

import difflib
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, Literal

from tinyvit_edge.distill.augment import POLICIES, Policy
from tinyvit_edge.errors import InputError

__all__ = ["PRESETS", "Recipe", "Stage", "parse_stages", "recipe_for"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Stage:
    """Some epochs at one resolution; `size` in pixels, None for the model's own."""

    size: int | None
    epochs: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Recipe:
    """Everything that decides how training goes, apart from the data and the seed.

    Attributes:
        targets: "store" for a teacher's stored outputs, "labels" for the folders' names.
        stages: resolutions in order; the learning rate goes through all of them in one cosine.
        batch: images a step, over all processes.
        accumulate: parts that a batch is computed in, for want of memory.
        lr: peak of the learning rate at `batch`; another batch scales it linearly.
        pace: whether the schedule of the rate advances by "steps", or by "pixels", which leaves
            stages of a high resolution the share of it that they cost.
        warmup: epochs of linear warm-up.
        weight_decay: AdamW's, for matrices and kernels; vectors have none.
        layer_decay: factor on the learning rate a block, from the head down.
        clip: largest norm of the gradient.
        ema: decay of the moving average of the weights, which is what is saved; 0 is off.
        label_smoothing: for targets from labels.
        mirror: half of the views are mirrored once more, whatever their targets come from.
        cutmix: share of the batches whose images are pasted into one another, and targets mixed.
        drop_path: stochastic depth of the last block.
        freeze_bn: BatchNorm keeps its statistics, as Microsoft fine-tunes.
        train: "all" weights or the "head" alone.
        needs_weights: whether starting from random weights makes no sense.
        policy: augmentation where no store decides it.
    """

    targets: Literal["store", "labels"]
    stages: tuple[Stage, ...]
    batch: int = 64
    accumulate: int = 1
    lr: float
    pace: Literal["steps", "pixels"] = "steps"
    warmup: float = 1.0
    weight_decay: float = 0.05
    layer_decay: float = 1.0
    clip: float = 5.0
    ema: float = 0.999
    label_smoothing: float = 0.0
    mirror: bool = False
    cutmix: float = 0.0
    drop_path: float = 0.0
    freeze_bn: bool = False
    train: Literal["all", "head"] = "all"
    needs_weights: bool = False
    policy: Policy = POLICIES["light"]

    def __post_init__(self) -> None:
        if not self.stages or any(stage.epochs < 1 for stage in self.stages):
            raise InputError("training: at least one epoch is needed in every stage")
        if self.batch < 1 or self.accumulate < 1 or self.batch % self.accumulate:
            raise InputError(
                f"training: a batch of {self.batch} cannot be computed in {self.accumulate} parts"
            )
        if self.lr <= 0 or not 0 < self.layer_decay <= 1 or not 0 <= self.ema < 1:
            raise InputError("training: lr must be > 0, layer_decay in (0, 1], ema in [0, 1)")
        if not 0 <= self.cutmix <= 1:
            raise InputError(f"--cutmix {self.cutmix}: give a share of the batches, 0 to 1")

    @property
    def epochs(self) -> int:
        """Epochs of all stages."""
        return sum(stage.epochs for stage in self.stages)

    def changed(self, **values: Any) -> Recipe:
        """The recipe with what was given (not None) in place; a batch alone scales `lr`."""
        given = {name: value for name, value in values.items() if value is not None}
        if "batch" in given and "lr" not in given:
            given["lr"] = self.lr * given["batch"] / self.batch
        return replace(self, **given)


def _own_size(epochs: int) -> tuple[Stage, ...]:
    return (Stage(size=None, epochs=epochs),)


PRESETS: Mapping[str, Recipe] = {
    # arXiv 2207.10666, section 5.1: soft targets alone, no mixing, weight decay 0.01
    "distill": Recipe(
        targets="store",
        stages=_own_size(90),
        batch=512,
        lr=2.5e-4,
        warmup=5,
        weight_decay=0.01,
        ema=0.9999,
    ),
    # the same on a small folder and a CPU: low resolution first, a high rate, few epochs
    "distill-small": Recipe(
        targets="store",
        stages=(Stage(size=112, epochs=20), Stage(size=168, epochs=3)),
        batch=64,
        lr=1e-3,
        warmup=1,
        ema=0.999,
    ),
    # from a student of all the teacher's classes to those of the folder; the few views of a store
    # are known by heart by then, hence the mirror and CutMix
    "distill-classes": Recipe(
        targets="store",
        stages=(Stage(size=112, epochs=28), Stage(size=168, epochs=4), Stage(size=None, epochs=2)),
        batch=64,
        lr=7e-4,
        pace="pixels",
        warmup=1,
        ema=0.998,
        mirror=True,
        cutmix=0.3,
        needs_weights=True,
    ),
    # 22k to 1k in the paper: layer-wise rates, BatchNorm in eval mode
    "finetune": Recipe(
        targets="labels",
        stages=_own_size(10),
        batch=32,
        lr=5e-4,
        layer_decay=0.8,
        weight_decay=1e-8,
        label_smoothing=0.1,
        freeze_bn=True,
        needs_weights=True,
    ),
    # 300 epochs on ImageNet-1k in the paper
    "scratch": Recipe(
        targets="labels",
        stages=_own_size(300),
        batch=512,
        lr=5e-4,
        warmup=20,
        label_smoothing=0.1,
        policy=POLICIES["strong"],
        ema=0.9999,
    ),
    "linear-probe": Recipe(
        targets="labels",
        stages=_own_size(10),
        batch=64,
        lr=1e-2,
        weight_decay=0.0,
        ema=0.0,
        freeze_bn=True,
        train="head",
        needs_weights=True,
        policy=POLICIES["crop"],
    ),
}


def recipe_for(name: str) -> Recipe:
    """The preset of that name.

    Raises:
        InputError: there is none; the closest is suggested.
    """
    if name in PRESETS:
        return PRESETS[name]
    close = difflib.get_close_matches(name, PRESETS, n=1)
    hint = f"did you mean {close[0]}?" if close else f"known: {', '.join(PRESETS)}"
    raise InputError(f"unknown preset {name!r}: {hint}")


def parse_stages(text: str) -> tuple[Stage, ...]:
    """Read ``112:30,168:4``, or ``30`` for the model's own resolution.

    Raises:
        InputError: it is something else.
    """
    stages = []
    for part in text.split(","):
        size, separator, epochs = part.strip().rpartition(":")
        try:
            stages.append(Stage(size=int(size) if separator else None, epochs=int(epochs)))
        except ValueError:
            raise InputError(
                f"--stages {text!r}: give SIZE:EPOCHS, as in 112:30,168:4, or a number of epochs"
            ) from None
    if any(stage.size is not None and stage.size < 32 for stage in stages):
        raise InputError(f"--stages {text!r}: sizes below 32 px leave nothing to attend to")
    return tuple(stages)
