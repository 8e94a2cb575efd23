"""Run a teacher over augmented images once, and keep its sparse outputs for every later student."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from tinyvit_edge.compat import keep_freed_memory
from tinyvit_edge.console import QuietDisplay
from tinyvit_edge.data import ImageDataset, fingerprint, scan_folder
from tinyvit_edge.distill import augment
from tinyvit_edge.distill.augment import POLICIES, Policy
from tinyvit_edge.distill.store import Manifest, Shard, Store, StoreWriter
from tinyvit_edge.distill.teachers import Teacher, load_teacher
from tinyvit_edge.distill.views import ViewDataset, epoch_seeds, loader, partners
from tinyvit_edge.distributed import Amp, Group, pick_amp, process_group
from tinyvit_edge.errors import GateError, InputError

if TYPE_CHECKING:
    from numpy.typing import NDArray

__all__ = ["TeachRequest", "check", "keys_of", "teach"]

CHECK_SAMPLES = 256
MAX_PROBABILITY_ERROR = 2e-3
"""Mean over stored entries: float16 storage rounds by 5e-4 at most, bf16 arithmetic by more."""


@dataclass(frozen=True, slots=True, kw_only=True)
class TeachRequest:
    """What `teach` is asked for.

    Attributes:
        teacher: a name that `load_teacher` takes.
        data: folder of images.
        out: the store to make, or to continue.
        epochs: views of every image.
        top_k: probabilities kept a view; at most the teacher's classes.
        policy: of the augmentation.
        image_size: side in pixels of the views.
        seed: what all samples' seeds follow from.
        batch: views that the teacher sees at a time.
        workers: processes that decode and draw.
        amp: "auto", "bf16", "fp16" or "fp32".
        threads: of PyTorch; None leaves its own choice.
    """

    teacher: str
    data: Path
    out: Path
    epochs: int = 1
    top_k: int = 100
    policy: Policy = field(default_factory=lambda: POLICIES["distill"])
    image_size: int = 224
    seed: int = 0
    batch: int = 64
    workers: int = 2
    amp: str = "auto"
    threads: int | None = None


def teach(request: TeachRequest, *, display: QuietDisplay | None = None) -> dict[str, Any]:
    """Write or continue a store; under `torchrun` its processes share the shards.

    Returns:
        Facts for people: the store, its size, images a second.

    Raises:
        StoreError: `out` holds a store that was begun in another way, or something else.
        InputError: bad data, teacher or numbers.
    """
    if request.epochs < 1 or request.top_k < 1 or request.batch < 1:
        raise InputError("--epochs, --top-k and --batch must be 1 or more")
    display = display or QuietDisplay()
    keep_freed_memory()
    with process_group() as group:
        if request.threads is not None:
            torch.set_num_threads(request.threads)
        teacher = load_teacher(request.teacher)
        dataset = scan_folder(request.data)
        amp = pick_amp(request.amp, group.device)
        manifest = _manifest(request, teacher, dataset, amp)
        if group.first:
            writer = StoreWriter(request.out, manifest, keys_of(dataset))
        group.barrier()
        if not group.first:
            writer = StoreWriter(request.out, manifest, keys_of(dataset))
        mine = writer.missing()[group.rank :: group.world]
        group.barrier()  # nobody writes before all have looked
        done, seconds = _write(writer, mine, teacher, dataset, group, amp, request, display)
        group.barrier()
    store = Store(request.out) if group.first else None
    return {
        "store": str(request.out),
        "teacher": request.teacher,
        "classes": len(teacher.labels),
        "top_k": manifest.top_k,
        "record_bytes": manifest.dtype.itemsize,
        "epochs": manifest.epochs,
        "samples": manifest.samples,
        "bytes": store.size if store else None,
        "images_per_second": round(done / seconds, 2) if done else None,
    }


def check(
    root: Path,
    data: Path,
    *,
    samples: int = CHECK_SAMPLES,
    workers: int = 2,
    display: QuietDisplay | None = None,
) -> dict[str, Any]:
    """Run the teacher again on evenly spaced records, and compare.

    Returns:
        ``mean_error`` over the stored probabilities, ``index_mismatch`` as the share of stored
        indices that are not among the teacher's top K now, ``top1_mismatch``, ``samples``.

    Raises:
        StoreError: the images or the teacher are not those that made the store.
        GateError: the probabilities differ by more than rounding.
    """
    store = Store(root)
    manifest = store.manifest
    dataset = scan_folder(data)
    store.check_data(keys_of(dataset), fingerprint(dataset))
    teacher = load_teacher(manifest.teacher)
    store.check_teacher(teacher.sha256)
    picked = np.linspace(0, manifest.samples - 1, min(samples, manifest.samples)).astype(int)
    errors, absent, tops = [], [], []
    display = display or QuietDisplay()
    with process_group() as group, display.track("check", len(picked)) as advance:
        on_cpu = manifest.amp == "fp16" and group.device.type == "cpu"  # which has no fp16
        amp = pick_amp("fp32" if on_cpu else manifest.amp, group.device)
        teacher.module.to(group.device)
        for turn, chosen in enumerate(np.array_split(picked, -(-len(picked) // manifest.batch))):
            epoch = turn % manifest.epochs
            views = _views(manifest, dataset, epoch)
            batch, indices = next(iter(loader(views, [chosen.tolist()], workers)))
            now = _probabilities(teacher, batch, group, amp).cpu().numpy()
            records = store.records(epoch, indices.tolist())
            for row, record, index in zip(now, records, indices.tolist(), strict=True):
                if record["seed"] != views.seeds[index]:
                    raise GateError(f"{root}: record {index} of epoch {epoch} has another seed")
                kept = record["index"].astype(np.int64)
                errors.append(np.abs(row[kept] - record["probability"].astype(np.float32)).mean())
                top = np.argsort(-row, kind="stable")[: len(kept)]
                absent.append(1 - np.isin(kept, top).mean())
                tops.append(top[0] != kept[0])
            advance(len(chosen))
    facts = {
        "samples": len(errors),
        "mean_error": float(np.mean(errors)),
        "index_mismatch": float(np.mean(absent)),
        "top1_mismatch": float(np.mean(tops)),
    }
    if facts["mean_error"] > MAX_PROBABILITY_ERROR:
        raise GateError(
            f"{root}: the teacher's probabilities differ from the stored ones by"
            f" {facts['mean_error']:.2e} on average, more than {MAX_PROBABILITY_ERROR}; teach again"
        )
    return facts


def keys_of(dataset: ImageDataset) -> list[str]:
    """The images' paths relative to their folder, in order."""
    return [sample.path.relative_to(dataset.root).as_posix() for sample in dataset.samples]


def _manifest(request: TeachRequest, teacher: Teacher, dataset: ImageDataset, amp: Amp) -> Manifest:
    return Manifest(
        teacher=request.teacher,
        teacher_sha256=teacher.sha256,
        teacher_input=teacher.preprocessing.to_dict(),
        amp=amp.name,
        labels=teacher.labels,
        top_k=min(request.top_k, len(teacher.labels)),
        samples=len(dataset),
        epochs=request.epochs,
        batch=request.batch,
        seed=request.seed,
        image_size=request.image_size,
        policy=request.policy,
        augmentation_version=augment.VERSION,
        data_sha256=fingerprint(dataset),
    )


def _views(manifest: Manifest, dataset: ImageDataset, epoch: int) -> ViewDataset:
    count, mixes = manifest.samples, manifest.policy.mixes
    return ViewDataset(
        [sample.path for sample in dataset.samples],
        policy=manifest.policy,
        seeds=epoch_seeds(count, manifest.seed, epoch),
        pairing=partners(count, manifest.seed, epoch) if mixes else None,
        size=manifest.image_size,
    )


def _write(
    writer: StoreWriter,
    shards: Sequence[Shard],
    teacher: Teacher,
    dataset: ImageDataset,
    group: Group,
    amp: Amp,
    request: TeachRequest,
    display: QuietDisplay,
) -> tuple[int, float]:
    """Fill the shards; the number of records written and the seconds it took."""
    teacher.module.to(group.device)
    done, began = 0, time.perf_counter()
    total = sum(shard.stop - shard.start for shard in shards)
    what = "teach" if group.world == 1 else f"teach ({group.rank + 1} of {group.world})"
    with display.track(what, total) as advance:
        for shard in shards:
            views = _views(writer.manifest, dataset, shard.epoch)
            with writer.open(shard) as file:
                advance(file.start - shard.start)
                for images, indices in loader(
                    views, _batches(file.start, shard.stop, request.batch), request.workers
                ):
                    probabilities = _probabilities(teacher, images, group, amp)
                    top = probabilities.topk(writer.manifest.top_k, dim=1)  # (B, K)
                    seeds = views.seeds[indices.numpy()]
                    file.append(seeds, _numpy(top.indices), _numpy(top.values))
                    done += len(images)
                    advance(len(images))
    return done, time.perf_counter() - began


def _batches(start: int, stop: int, size: int) -> list[list[int]]:
    return [list(range(first, min(first + size, stop))) for first in range(start, stop, size)]


def _probabilities(teacher: Teacher, views: Tensor, group: Group, amp: Amp) -> Tensor:
    """The teacher's softmax, float32 (B, classes)."""
    with torch.inference_mode(), amp.autocast():
        logits = teacher.logits(views.to(group.device, non_blocking=True))
    return logits.float().softmax(dim=1)


def _numpy(values: Tensor) -> NDArray[Any]:
    array: NDArray[Any] = values.cpu().numpy()
    return array
