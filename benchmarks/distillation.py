"""Training from a store against running the teacher: images a second, same batch, same pixels.

    python benchmarks/distillation.py --data path/to/imagenette/train --json distillation.json

A teacher's outputs for some images are stored first. Then rounds alternate between three ways to
get the targets of the same views, all else equal: read from the store, computed by the teacher
on the spot, and, as the floor, none at all (the uniform distribution). One JSON object comes out:
medians over the rounds, and the size of the store against the formula.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from tinyvit_edge.compat import keep_freed_memory
from tinyvit_edge.data import scan_folder
from tinyvit_edge.distill.augment import POLICIES
from tinyvit_edge.distill.store import Store
from tinyvit_edge.distill.targets import soft_cross_entropy
from tinyvit_edge.distill.teach import TeachRequest, teach
from tinyvit_edge.distill.teachers import Teacher, load_teacher, prepare
from tinyvit_edge.distill.views import loader
from tinyvit_edge.distributed import Amp, pick_amp
from tinyvit_edge.preprocessing import preset
from tinyvit_edge.training.sources import StoreSource
from tinyvit_edge.training.student import fit_windows, fresh_checkpoint

Targets = Callable[[Tensor, list[int]], Tensor]


def main() -> None:
    """Parse the command line, measure, print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=_Formatter)
    parser.add_argument("--data", type=Path, required=True, help="folder of images")
    parser.add_argument("--teacher", default="efficientnet-lite2")
    parser.add_argument("--variant", default="tiny_vit_5m_224", help="the student")
    parser.add_argument("--size", type=int, default=224, help="pixels of the student's views")
    parser.add_argument("--batch", type=int, default=64)
    parser.add_argument("--top-k", type=int, default=100)
    parser.add_argument("--steps", type=int, default=2, help="steps a round and way")
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--json", type=Path, help="write the result here instead of printing it")
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    keep_freed_memory()
    with tempfile.TemporaryDirectory() as scratch:
        result = measure(args, Path(scratch))
    text = json.dumps(result, indent=2)
    if args.json is None:
        print(text)
    else:
        args.json.write_text(text + "\n")


def measure(args: argparse.Namespace, scratch: Path) -> dict[str, Any]:
    """Store the teacher's outputs of as many images as the rounds need, and time the ways."""
    count = args.batch * args.steps
    images = _linked(args.data, scratch / "images", count)
    store_path = scratch / "store"
    taught = teach(
        TeachRequest(
            teacher=args.teacher,
            data=images,
            out=store_path,
            top_k=args.top_k,
            policy=POLICIES["light"],
            image_size=args.size,
            batch=args.batch,
            workers=0,
        )
    )
    store = Store(store_path)
    paths = [sample.path for sample in scan_folder(images).samples]
    source = StoreSource(store, paths, None)
    student = _Student(args, store.manifest.labels)
    teacher = load_teacher(args.teacher)
    teacher.module.to(student.device)
    uniform = torch.full((args.batch, len(teacher.labels)), 1 / len(teacher.labels))
    ways: dict[str, Targets] = {
        "store": lambda _, indices: source.targets(0, indices),
        "online": lambda views, _: _online(teacher, student.amp, views),
        "none": lambda _, __: uniform,
    }
    rates, shares = _alternate(args, student, source, ways)
    on_disk = sum(p.stat().st_size for p in store_path.rglob("*.bin"))
    # a seed, and an index and a probability of two bytes each
    formula = count * (4 + 4 * store.manifest.top_k)
    median = {name: statistics.median(values) for name, values in rates.items()}
    return {
        "device": str(student.device),
        "threads": args.threads,
        "amp": student.amp.name,
        "teacher": args.teacher,
        "student": args.variant,
        "size": args.size,
        "batch": args.batch,
        "rounds": args.rounds,
        "teach_images_per_second": taught["images_per_second"],
        "images_per_second": {name: round(value, 2) for name, value in median.items()},
        "store_over_online": round(median["store"] / median["online"], 3),
        "targets_share_of_step": {
            name: round(statistics.median(values), 5) for name, values in shares.items()
        },
        "store_bytes": on_disk,
        "store_over_formula": round(on_disk / formula, 5),
    }


def _alternate(
    args: argparse.Namespace, student: _Student, source: StoreSource, ways: dict[str, Targets]
) -> tuple[dict[str, list[float]], dict[str, list[float]]]:
    """Images a second, and the share of a step that targets take: a value a round, by way."""
    count = args.batch * args.steps
    batches = [list(range(i, i + args.batch)) for i in range(0, count, args.batch)]
    views = source.views(0, args.size)
    rates: dict[str, list[float]] = {name: [] for name in ways}
    shares: dict[str, list[float]] = {name: [] for name in ways}
    for number in range(args.rounds + 1):
        for name, targets in ways.items():
            seconds, share = student.train(iter(loader(views, batches, 0)), targets)
            if number:  # the first round warms up
                rates[name].append(count / seconds)
                shares[name].append(share)
        print(f"round {number} of {args.rounds}", file=sys.stderr)
    return rates, shares


class _Student:
    """A model in training, a step at a time."""

    def __init__(self, args: argparse.Namespace, labels: tuple[str, ...]) -> None:
        self.device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
        self.amp: Amp = pick_amp("auto", self.device)
        self.contract = preset("microsoft", args.size)
        model = fresh_checkpoint(args.variant, labels, 0).model
        fit_windows(model, args.size)
        self.model = model.to(self.device, memory_format=torch.channels_last).train()
        self.optimizer = torch.optim.AdamW(self.model.parameters(), lr=1e-4, fused=True)

    def train(self, batches: Iterator[Any], targets: Targets) -> tuple[float, float]:
        """Some steps: the seconds they took, and the share of them that went into targets."""
        began, spent = self._now(), 0.0
        for views, indices in batches:
            views = views.to(self.device)
            asked = self._now()
            wanted = targets(views, indices.tolist()).to(self.device)
            spent += self._now() - asked
            with self.amp.autocast():
                logits = self.model(prepare(views, self.contract)).logits
            soft_cross_entropy(logits, wanted).backward()
            self.optimizer.step()
            self.optimizer.zero_grad()
        seconds = self._now() - began
        return seconds, spent / seconds

    def _now(self) -> float:
        if self.device.type == "cuda":
            torch.cuda.synchronize()
        return time.perf_counter()


def _online(teacher: Teacher, amp: Amp, views: Tensor) -> Tensor:
    with torch.inference_mode(), amp.autocast():
        probabilities = teacher.logits(views).float().softmax(1)
    return probabilities.clone()  # out of inference mode


def _linked(data: Path, folder: Path, count: int) -> Path:
    """A folder of links to the first `count` of the images, taken again where there are fewer."""
    samples = scan_folder(data).samples
    folder.mkdir()
    for number in range(count):
        path = samples[number % len(samples)].path
        (folder / f"{number:06d}{path.suffix}").symlink_to(path.resolve())
    return folder


class _Formatter(argparse.ArgumentDefaultsHelpFormatter, argparse.RawDescriptionHelpFormatter): ...


if __name__ == "__main__":
    main()
