"""What a training run logs: metrics as JSON lines, read back by epoch. Needs no PyTorch."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean, median
from typing import Any

from tinyvit_edge.errors import InputError
from tinyvit_edge.files import atomic_file

__all__ = ["METRICS", "RUN", "EpochSummary", "MetricsLog", "RunLog", "is_run", "read_run"]

METRICS, RUN = "metrics.jsonl", "run.json"

_HEAD = {"kind", "step", "epoch", "size"}
_KEYS = {
    "train": _HEAD | {"loss", "gradient_norm", "learning_rate", "images_per_second"},
    "val": _HEAD | {"top1"},
}
_FACTS = {"recipe", "weights", "teacher", "labels", "trained_on", "seed", "image_size"}


class MetricsLog:
    """Metrics as JSON lines, each with its step; a resumed run drops those after its state."""

    def __init__(self, path: Path, step: int) -> None:
        self.path = path
        kept = [line for line in self.lines(path) if line["step"] <= step]
        with atomic_file(path) as temporary:
            temporary.write_text("".join(map(_line, kept)), encoding="utf-8")

    def write(self, **values: Any) -> None:
        """Add a line."""
        with self.path.open("a", encoding="utf-8") as stream:
            stream.write(_line(values))

    def write_step(
        self,
        *,
        step: int,
        epoch: int,
        size: int,
        loss: float,
        gradient_norm: float,
        learning_rate: float,
        images: int,
        seconds: float,
        **more: Any,
    ) -> None:
        """Add a line about the last of some steps, which took `seconds` for `images`."""
        self.write(
            kind="train",
            step=step,
            epoch=epoch,
            size=size,
            loss=round(loss, 5),
            gradient_norm=round(gradient_norm, 4),
            learning_rate=learning_rate,
            images_per_second=round(images / seconds, 1),
            **more,
        )

    @staticmethod
    def lines(path: Path) -> list[dict[str, Any]]:
        """All whole lines; a kill can leave half of the last one."""
        if not path.exists():
            return []
        text = path.read_text(encoding="utf-8")
        return [json.loads(line) for line in text.split("\n")[:-1] if line]


def _line(values: dict[str, Any]) -> str:
    # JSON has no infinity, which a gradient's norm in float16 now and then is
    finite = {
        key: None if isinstance(value, float) and not math.isfinite(value) else value
        for key, value in values.items()
    }
    return json.dumps(finite, allow_nan=False) + "\n"


@dataclass(frozen=True, slots=True, kw_only=True)
class EpochSummary:
    """One epoch; None where the log has no finite number of the kind, as in very short epochs.

    Attributes:
        number: from 0.
        size: resolution in pixels.
        loss: mean of the logged steps, nats.
        gradient_norm: their mean, before clipping.
        learning_rate: at the last of them.
        images_per_second: their median.
        top1: accuracy of the moving average after the epoch, 0 to 1.
    """

    number: int
    size: int
    loss: float | None
    gradient_norm: float | None
    learning_rate: float | None
    images_per_second: float | None
    top1: float | None


@dataclass(frozen=True, slots=True, kw_only=True)
class RunLog:
    """What `train` wrote beside its model: ``run.json``, and the lines of ``metrics.jsonl``."""

    run: dict[str, Any]
    lines: tuple[dict[str, Any], ...]

    def of(self, kind: str) -> list[dict[str, Any]]:
        """The lines of a kind, "train" or "val", in the order of their steps."""
        return [line for line in self.lines if line["kind"] == kind]

    def epochs(self) -> list[EpochSummary]:
        """The epochs that were begun."""
        numbers = sorted({line["epoch"] for line in self.lines})
        return [_summary(n, [x for x in self.lines if x["epoch"] == n]) for n in numbers]

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON values."""
        return {"run": self.run, "metrics": list(self.lines)}


def _summary(number: int, lines: Sequence[dict[str, Any]]) -> EpochSummary:
    steps = [line for line in lines if line["kind"] == "train"]

    def of(key: str) -> list[float]:
        return [line[key] for line in steps if line[key] is not None]

    vals = [line for line in lines if line["kind"] == "val"]
    return EpochSummary(
        number=number,
        size=lines[0]["size"],
        loss=fmean(of("loss")) if of("loss") else None,
        gradient_norm=fmean(of("gradient_norm")) if of("gradient_norm") else None,
        learning_rate=steps[-1]["learning_rate"] if steps else None,
        images_per_second=median(of("images_per_second")) if steps else None,
        top1=vals[-1]["top1"] if vals else None,
    )


def is_run(folder: Path) -> bool:
    """Whether `train` wrote this folder."""
    return (folder / METRICS).is_file() and (folder / RUN).is_file()


def read_run(folder: Path) -> RunLog:
    """Read what a run logged so far; it may still be running.

    Raises:
        InputError: a file is damaged, or nothing is logged yet.
    """
    try:
        run = json.loads((folder / RUN).read_text(encoding="utf-8"))
        lines = MetricsLog.lines(folder / METRICS)
        whole = run.keys() >= _FACTS and {"stages", "batch", "lr"} <= run["recipe"].keys()
        whole = whole and all(_KEYS[line["kind"]] <= line.keys() for line in lines)
    except (OSError, ValueError, AttributeError, LookupError, TypeError) as error:
        raise InputError(f"{folder}: not a readable training run ({error})") from error
    if not whole:
        raise InputError(f"{folder}: not a readable training run (keys are missing)")
    if not lines:
        raise InputError(f"{folder}: this run has logged nothing yet; ask again later")
    return RunLog(run=run, lines=tuple(lines))
