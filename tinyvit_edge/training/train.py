"""The training loop: one for every preset, on one process or many, resumable to the bit."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterator
from contextlib import nullcontext
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from tinyvit_edge.checkpoint import save_checkpoint
from tinyvit_edge.compat import keep_freed_memory
from tinyvit_edge.console import QuietDisplay
from tinyvit_edge.data import BATCH_SIZE, ImageDataset, load_batches
from tinyvit_edge.distill.draws import sample_seed
from tinyvit_edge.distill.targets import soft_cross_entropy
from tinyvit_edge.distill.teachers import prepare as normalised
from tinyvit_edge.distill.views import loader
from tinyvit_edge.distributed import Amp, Group, pick_amp, process_group
from tinyvit_edge.files import atomic_file, check_writable, write_json
from tinyvit_edge.modeling import TinyVitForImageClassification
from tinyvit_edge.training.curves import render_html
from tinyvit_edge.training.log import METRICS, RUN, MetricsLog, read_run
from tinyvit_edge.training.optimizer import (
    Ema,
    learning_rate,
    make_optimizer,
    set_learning_rate,
)
from tinyvit_edge.training.plan import Epoch
from tinyvit_edge.training.request import Setup, TrainRequest, prepare
from tinyvit_edge.training.state import load_state, save_state
from tinyvit_edge.training.student import fit_windows, set_drop_path
from tinyvit_edge.training.variation import vary

__all__ = ["train"]

MODEL, STATE, PAGE = "model", "state.pt", "report.html"
LOG_STEPS = 20


def train(request: TrainRequest, *, display: QuietDisplay | None = None) -> dict[str, Any]:
    """Train, or go on where a run in `request.out` was; under `torchrun` on all its processes.

    Writes ``run.json`` (what decides the result), ``metrics.jsonl``, ``state.pt`` and, at the end,
    the model as a Hugging Face folder ``model`` and the curves as ``report.html``.

    Returns:
        Facts for people: where the model is, its accuracy on what was measured.

    Raises:
        InputError: what was asked for does not go together, or `out` holds another run.
    """
    keep_freed_memory()
    if request.threads is not None:
        torch.set_num_threads(request.threads)
    check_writable(request.out)
    setup = prepare(request)
    with process_group() as group:
        run = _Run(request, setup, group, display or QuietDisplay())
        run.train()
        return run.finish()


@dataclass(slots=True)
class _Clock:
    """Seconds since the last line of the log, and how many of them went into what."""

    began: float
    images: int = 0
    waiting: float = 0.0
    targets: float = 0.0


class _Run:
    def __init__(
        self, request: TrainRequest, setup: Setup, group: Group, display: QuietDisplay
    ) -> None:
        self.request, self.setup, self.group, self.display = request, setup, group, display
        self.recipe, self.plan = request.recipe, setup.plan
        self.amp: Amp = pick_amp(request.amp, group.device)
        model = setup.checkpoint.model.to(group.device, memory_format=torch.channels_last)
        set_drop_path(model, self.recipe.drop_path)
        self.model: TinyVitForImageClassification = model
        self.optimizer = make_optimizer(model, self.recipe)
        self.scaler = torch.amp.GradScaler(group.device.type, enabled=self.amp.name == "fp16")
        self.ema = Ema(model, self.recipe.ema)
        self.step = 0
        self.plan.batches(0, group.rank, group.world)  # refuses what cannot be shared, up front
        request.out.mkdir(parents=True, exist_ok=True)
        self._resume()
        self.log = MetricsLog(request.out / METRICS, self.step) if group.first else None
        if group.first:
            write_json(request.out / RUN, setup.run)
        self.parallel: nn.Module = model
        if group.world > 1:
            # each process keeps BatchNorm statistics of its own, as the original does
            self.parallel = nn.parallel.DistributedDataParallel(model, broadcast_buffers=False)
        group.barrier()

    def train(self) -> None:
        """All epochs that are not done."""
        with self.display.track("train", self.plan.steps) as advance:
            advance(self.step)
            for epoch in self.plan.epochs():
                if self.step < epoch.first_step + self.plan.steps_per_epoch:
                    self._train_epoch(epoch, advance)
                    self._measure(epoch)
                    self._save()

    def finish(self) -> dict[str, Any]:
        """Write the model."""
        fit_windows(self.model, self.setup.checkpoint.preprocessing.size)
        set_drop_path(self.model, 0.0)
        top1 = self._top1()
        out = self.request.out / MODEL
        if self.group.first:
            if self.recipe.ema:
                self.model.load_state_dict(self.ema.state)
            model = self.model.cpu().to(memory_format=torch.contiguous_format).eval()
            dtype = torch.float16 if self.request.half else torch.float32
            save_checkpoint(replace(self.setup.checkpoint, model=model), out, dtype=dtype)
            self._write_page()
        self.group.barrier()
        val = self.setup.val
        return {
            "model": str(out),
            "classes": len(self.setup.checkpoint.labels),
            "trained_on": len(self.plan.images),
            "epochs": self.recipe.epochs,
            "steps": self.step,
            "top1": top1,
            "measured_on": len(val) if val is not None else 0,
        }

    def _write_page(self) -> None:
        if MetricsLog.lines(self.request.out / METRICS):  # a run of a few steps logs nothing
            with atomic_file(self.request.out / PAGE) as temporary:
                temporary.write_text(render_html(read_run(self.request.out)), encoding="utf-8")

    def _train_epoch(self, epoch: Epoch, advance: Callable[[int], None]) -> None:
        fit_windows(self.model, epoch.size)
        self._train_mode()
        parts = self.recipe.accumulate
        batches = self.plan.batches(epoch.number, self.group.rank, self.group.world)
        rest = batches[(self.step - epoch.first_step) * parts :]
        views = iter(
            loader(self.setup.source.views(epoch.number, epoch.size), rest, self.request.workers)
        )
        clock = _Clock(time.perf_counter())
        for _ in range(len(rest) // parts):
            rate = learning_rate(
                self.recipe, self.plan.pace(self.step), self.plan.steps, self.plan.warmup_steps
            )
            set_learning_rate(self.optimizer, rate)
            # the generator's state is then a function of the step: nothing of it to be stored
            torch.manual_seed(sample_seed(self.request.seed, self.step, self.group.rank))
            loss, norm = self._train_step(epoch, views, clock)
            self.ema.update(self.model, self.step)
            self.step += 1
            advance(1)
            if self.step % LOG_STEPS == 0:
                self._write_line(epoch, clock, loss, norm, rate)
                clock = _Clock(time.perf_counter())
            done = self.step == epoch.first_step + self.plan.steps_per_epoch
            if self.step % self.request.save_steps == 0 and not done:  # then it is measured first
                self._save()

    def _train_step(
        self, epoch: Epoch, views: Iterator[Any], clock: _Clock
    ) -> tuple[Tensor, Tensor]:
        """One step of the optimizer: the loss and the gradient's norm, both ()."""
        parts = self.recipe.accumulate
        total = torch.zeros((), device=self.group.device)
        for part in range(parts):
            began = time.perf_counter()
            images, indices = next(views)
            read = time.perf_counter()
            targets = self.setup.source.targets(epoch.number, indices.tolist())
            clock.waiting += read - began
            clock.targets += time.perf_counter() - read
            clock.images += len(images) * self.group.world
            images, targets = vary(images, targets, self.recipe)
            last = part == parts - 1
            quiet = self.group.world > 1 and not last
            with self.parallel.no_sync() if quiet else nullcontext():  # type: ignore[operator]
                loss = self._loss(images, targets) / parts
                self.scaler.scale(loss).backward()  # type: ignore[no-untyped-call]
            total += loss.detach()
        self.scaler.unscale_(self.optimizer)
        trained = [p for group in self.optimizer.param_groups for p in group["params"]]
        norm = nn.utils.clip_grad_norm_(trained, self.recipe.clip)
        self.scaler.step(self.optimizer)
        self.scaler.update()
        self.optimizer.zero_grad()
        return total, norm

    def _loss(self, images: Tensor, targets: Tensor) -> Tensor:
        device = self.group.device
        pixels = normalised(
            images.to(device, non_blocking=True),
            replace(self.setup.checkpoint.preprocessing, size=images.shape[1]),
        )
        with self.amp.autocast():
            logits = self.parallel(pixels).logits
        return soft_cross_entropy(logits, targets.to(device, non_blocking=True))

    def _train_mode(self) -> None:
        self.model.train(self.recipe.train == "all")
        if self.recipe.freeze_bn:
            for module in self.model.modules():
                if isinstance(module, nn.BatchNorm2d):
                    module.eval()

    def _write_line(
        self, epoch: Epoch, clock: _Clock, loss: Tensor, norm: Tensor, rate: float
    ) -> None:
        if self.log is None:
            return
        seconds = time.perf_counter() - clock.began
        self.log.write_step(
            step=self.step,
            epoch=epoch.number,
            size=epoch.size,
            loss=float(loss),
            gradient_norm=float(norm),
            learning_rate=rate,
            images=clock.images,
            seconds=seconds,
            data_share=round(clock.waiting / seconds, 4),
            targets_share=round(clock.targets / seconds, 4),
        )

    def _measure(self, epoch: Epoch) -> None:
        top1 = self._top1(epoch.size)
        if self.log is not None and top1 is not None:
            self.log.write(
                kind="val", step=self.step, epoch=epoch.number, size=epoch.size, top1=top1
            )
            self.display.say(
                f"epoch {epoch.number + 1} of {self.recipe.epochs}, {epoch.size} px:"
                f" top-1 {100 * top1:.2f} %"
            )
        self.group.barrier()

    def _top1(self, size: int | None = None) -> float | None:
        """Accuracy of the average at a size (None: the model's own); None without images."""
        if self.setup.val is None or not self.group.first:
            return None
        own = {k: v.clone() for k, v in self.model.state_dict().items()}
        if self.recipe.ema:
            self.model.load_state_dict(self.ema.state)
        top1 = self._accuracy(self.setup.val, size)
        self.model.load_state_dict(own)
        return top1

    def _accuracy(self, dataset: ImageDataset, size: int | None) -> float:
        contract = self.setup.checkpoint.preprocessing
        contract = contract if size is None else replace(contract, size=size)
        self.model.eval()
        hits: list[Any] = []
        for images, labels in load_batches(dataset, contract, BATCH_SIZE):
            with torch.inference_mode(), self.amp.autocast():
                logits = self.model(torch.from_numpy(images).to(self.group.device)).logits
            hits.append(logits.argmax(1).cpu().numpy() == labels)
        return float(np.concatenate(hits).mean())

    def _save(self) -> None:
        if self.group.first:
            save_state(
                self.request.out / STATE,
                {
                    "run": json.dumps(self.setup.run),
                    "step": self.step,
                    "model": self.model.state_dict(),
                    "ema": self.ema.state,
                    "optimizer": self.optimizer.state_dict(),
                    "scaler": self.scaler.state_dict(),
                },
            )
        self.group.barrier()

    def _resume(self) -> None:
        run = json.loads(json.dumps(self.setup.run))  # tuples become lists, as in the file
        state = load_state(self.request.out / STATE, run)
        if state is None:
            return
        self.step = state["step"]
        self.model.load_state_dict(state["model"])
        self.ema.state = {k: v.to(self.group.device) for k, v in state["ema"].items()}
        self.optimizer.load_state_dict(state["optimizer"])
        self.scaler.load_state_dict(state["scaler"])
        self.display.say(f"going on at step {self.step} of {self.plan.steps}")
