"""Quantization-aware training: weights that a calibrated precision loses less with.

Training begins where post-training quantization ends, with its ranges, which stay. Targets are
what a teacher said of the same views (replayed from a store of `tinyvit_edge.distill`) or, without
a store, what the float32 model says of them. The result counts only if it beats post-training
quantization on images that nothing was trained on.

``python -m tinyvit_edge.quantization.qat`` is ``tinyvit-edge quantize qat``.
"""

from __future__ import annotations

import json
import math
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, replace
from functools import cached_property
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from tinyvit_edge import metrics
from tinyvit_edge.compat import keep_freed_memory
from tinyvit_edge.console import QuietDisplay
from tinyvit_edge.deployment import deployment_form
from tinyvit_edge.distill.targets import soft_cross_entropy
from tinyvit_edge.distill.teachers import prepare as normalised
from tinyvit_edge.distill.views import loader
from tinyvit_edge.evaluate import labels_of, reference_logits
from tinyvit_edge.files import check_writable, write_json
from tinyvit_edge.quantization.calibration import Calibration
from tinyvit_edge.quantization.fake import trainable_form
from tinyvit_edge.quantization.ptq import quantize
from tinyvit_edge.quantization.qat_request import QatRequest, Setup, prepare, starting_ranges
from tinyvit_edge.training.log import METRICS, RUN, MetricsLog
from tinyvit_edge.training.optimizer import Ema, learning_rate, set_learning_rate
from tinyvit_edge.training.plan import Epoch
from tinyvit_edge.training.state import load_state, refuse_other_run, save_state

if TYPE_CHECKING:
    from tinyvit_edge.types import FloatArray

__all__ = ["Score", "run"]

RANGES, STATE = "ranges.json", "state.pt"
LOG_STEPS = 10


@dataclass(frozen=True, slots=True, kw_only=True)
class Score:
    """A quantized program on the held-out images, against the float32 model."""

    top1: float
    """In 0..1; agreement with the float32 model where there are no labels."""
    kl: float
    """Mean Kullback-Leibler divergence from the float32 model, nats."""
    sqnr_db: float

    def beats(self, other: Score, *, stored: bool) -> bool:
        """Whether it is better.

        A student of the float32 model is when it is nearer to it and no less accurate. A student
        of another teacher may leave it: it must be more accurate, or as accurate and nearer.
        """
        if stored:
            return (self.top1, -self.kl) > (other.top1, -other.kl)
        return self.top1 >= other.top1 and self.kl < other.kl

    def better(self, other: Score, base: Score, *, stored: bool) -> bool:
        """Whether to keep it rather than `other`: what beats `base` comes first, then the nearer.

        Otherwise one epoch that wins accuracy and loses nearness would shut out all later ones.
        """
        if stored:
            return self.beats(other, stored=True)
        mine, theirs = (one.beats(base, stored=False) for one in (self, other))
        return (mine, -self.kl) > (theirs, -other.kl)

    def to_dict(self) -> dict[str, float | None]:
        """As JSON values; None where a number is not finite."""
        return {name: x if math.isfinite(x) else None for name, x in asdict(self).items()}


_RUINED = Score(top1=0.0, kl=math.inf, sqnr_db=-math.inf)


def run(request: QatRequest, *, display: QuietDisplay | None = None) -> dict[str, Any]:
    """Train, or go on where a run in `request.out` was, and write ranges with the better weights.

    ``ranges.json`` is what ``--calibration`` of other commands takes. Where training does not beat
    post-training quantization (`Score.beats`), it holds the ranges alone.

    Returns:
        Facts as JSON values: what was accepted, and the scores before and after.

    Raises:
        InputError: bad weights or images, a precision without calibrated ranges, or `out` holds
            another run.
        StoreError: the store is not of these images.
    """
    keep_freed_memory()
    if request.threads is not None:
        torch.set_num_threads(request.threads)
    check_writable(request.out)
    setup = prepare(request)
    refuse_other_run(request.out / RUN, setup.facts)
    request.out.mkdir(parents=True, exist_ok=True)
    write_json(request.out / RUN, setup.facts)
    display = display or QuietDisplay()
    ptq = starting_ranges(request, setup, display)
    return _Run(request, setup, ptq, display).train()


class _Run:
    def __init__(
        self, request: QatRequest, setup: Setup, ptq: Calibration, display: QuietDisplay
    ) -> None:
        self.request, self.setup, self.ptq, self.display = request, setup, ptq, display
        self.plan, self.recipe = setup.plan, request.recipe
        checkpoint = setup.checkpoint
        self.form = deployment_form(checkpoint.model, image_size=checkpoint.preprocessing.size)
        self.model = trainable_form(self.form, setup.precision, ptq)
        self.trained = list(self.model.parameters())
        group = {"params": self.trained, "weight_decay": self.recipe.weight_decay, "scale": 1.0}
        self.optimizer = torch.optim.AdamW([group], lr=self.recipe.lr)
        self.ema = Ema(self.model, self.recipe.ema)
        self.step = 0
        self.before: Score | None = None
        self.best: tuple[Score, dict[str, Tensor]] | None = None
        self._resume()
        self.log = MetricsLog(request.out / METRICS, self.step)

    def train(self) -> dict[str, Any]:
        """All steps that are not done; then the ranges, with weights or without."""
        if self.before is None:
            self.before = self._score(self.ptq)
        with self.display.track("train", self.plan.steps) as advance:
            advance(self.step)
            for epoch in self.plan.epochs():
                if self.step < epoch.first_step + self.plan.steps_per_epoch:
                    self._train_epoch(epoch, advance)
                    self._judge(epoch)
                    self._save()
        return self._finish()

    @cached_property
    def exact(self) -> FloatArray:
        """Logits of the float32 model on the held-out photos."""
        with self.display.track("float32 on held-out photos", len(self.setup.held_out)) as advance:
            return self._logits(self.form, advance)

    def _finish(self) -> dict[str, Any]:
        stored = self.request.store is not None
        assert self.before is not None
        assert self.best is not None
        after, weights = self.best
        accepted = after.beats(self.before, stored=stored)
        result = replace(self.ptq, tuned=weights if accepted else self.ptq.tuned)
        checkpoint, path = self.setup.checkpoint, self.request.out / RANGES
        result.write(path, weights_sha256=checkpoint.sha256, preprocessing=checkpoint.preprocessing)
        if not accepted:
            kept = "what training began with" if self.ptq.tuned else "the ranges alone"
            self.display.say(
                "training did not beat post-training quantization on the held-out photos:"
                f" {path} holds {kept}"
            )
        return {
            "out": str(path),
            "precision": self.setup.precision.name,
            "accepted": accepted,
            "trained_on": len(self.plan.images),
            "steps": self.step,
            "held_out": len(self.setup.held_out),
            "before": self.before.to_dict(),
            "after": after.to_dict(),
        }

    def _train_epoch(self, epoch: Epoch, advance: Callable[[int], None]) -> None:
        batches = self.plan.batches(epoch.number)[self.step - epoch.first_step :]
        views = iter(
            loader(self.setup.source.views(epoch.number, epoch.size), batches, self.request.workers)
        )
        began, images = time.perf_counter(), 0
        for _ in batches:
            rate = learning_rate(self.recipe, self.step, self.plan.steps, self.plan.warmup_steps)
            set_learning_rate(self.optimizer, rate)
            loss, norm, count = self._train_step(epoch, views)
            self.ema.update(self.model, self.step)
            self.step, images = self.step + 1, images + count
            advance(1)
            if self.step % LOG_STEPS == 0:
                self.log.write_step(
                    step=self.step,
                    epoch=epoch.number,
                    size=epoch.size,
                    loss=float(loss),
                    gradient_norm=float(norm),
                    learning_rate=rate,
                    images=images,
                    seconds=time.perf_counter() - began,
                )
                began, images = time.perf_counter(), 0
            done = self.step == epoch.first_step + self.plan.steps_per_epoch
            if self.step % self.request.save_steps == 0 and not done:  # then it is judged first
                self._save()

    def _train_step(self, epoch: Epoch, views: Iterator[Any]) -> tuple[Tensor, Tensor, int]:
        """One step: the loss and the gradient's norm, both (), and the number of images."""
        pixels, indices = next(views)
        images = normalised(pixels, self.setup.checkpoint.preprocessing).contiguous()
        if self.request.store is None:
            with torch.no_grad():
                targets = self.form(images).softmax(1)
        else:
            targets = self.setup.source.targets(epoch.number, indices.tolist())
        loss = soft_cross_entropy(self.model(images), targets)
        self.optimizer.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        norm = nn.utils.clip_grad_norm_(self.trained, self.recipe.clip)
        self.optimizer.step()
        return loss.detach(), norm, len(images)

    def _judge(self, epoch: Epoch) -> None:
        """Measure the average of the weights, and keep it if it is the best so far."""
        names = dict(self.model.named_parameters())
        weights = {name: self.ema.state[name].clone() for name in names}
        score = self._score(replace(self.ptq, tuned=weights))
        stored = self.request.store is not None
        assert self.before is not None
        if self.best is None or score.better(self.best[0], self.before, stored=stored):
            self.best = score, weights
        self.log.write(
            kind="val", step=self.step, epoch=epoch.number, size=epoch.size, **score.to_dict()
        )
        self.display.say(
            f"epoch {epoch.number + 1} of {self.recipe.epochs}: top-1 {100 * score.top1:.2f} %,"
            f" {score.sqnr_db:.1f} dB (before {100 * self.before.top1:.2f} %,"
            f" {self.before.sqnr_db:.1f} dB)"
        )

    def _score(self, calibration: Calibration) -> Score:
        module = quantize(self.form, self.setup.precision, calibration=calibration)
        found = self._logits(module, lambda _: None)
        if not metrics.is_finite(found):
            return _RUINED
        labels = [label for label in labels_of(self.setup.held_out) if label is not None]
        return Score(
            top1=metrics.top_k_accuracy(found, labels, 1)
            if labels
            else metrics.top1_agreement(self.exact, found),
            kl=metrics.kl_divergence(self.exact, found),
            sqnr_db=metrics.sqnr_db(self.exact, found),
        )

    def _logits(self, module: nn.Module, progress: Callable[[int], None]) -> FloatArray:
        contract = self.setup.checkpoint.preprocessing
        return reference_logits(module, self.setup.held_out, contract, progress=progress)

    def _save(self) -> None:
        best, before = self.best, self.before
        assert before is not None
        save_state(
            self.request.out / STATE,
            {
                "run": json.dumps(self.setup.facts),
                "step": self.step,
                "model": self.model.state_dict(),
                "ema": self.ema.state,
                "optimizer": self.optimizer.state_dict(),
                "before": asdict(before),
                "best": None if best is None else {**asdict(best[0]), "weights": best[1]},
            },
        )

    def _resume(self) -> None:
        state = load_state(self.request.out / STATE, self.setup.facts)
        if state is None:
            return
        self.step = state["step"]
        self.model.load_state_dict(state["model"])
        self.ema.state = state["ema"]
        self.optimizer.load_state_dict(state["optimizer"])
        self.before = Score(**state["before"])
        if state["best"] is not None:
            weights = state["best"].pop("weights")
            self.best = Score(**state["best"]), weights
        self.display.say(f"going on at step {self.step} of {self.plan.steps}")


def main() -> None:
    """Run ``tinyvit-edge quantize qat`` with this process's arguments."""
    import sys

    from tinyvit_edge.__main__ import main as command_line

    sys.argv[1:1] = ["quantize", "qat"]
    command_line()


if __name__ == "__main__":
    main()
