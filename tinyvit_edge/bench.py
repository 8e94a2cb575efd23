"""The latency probe: one process per artifact, timed in interleaved rounds.

Rounds go through all artifacts in turn, so that a slow minute of the machine falls on all of them
and ratios mean something. Times are of one image through the runtime's own call, preprocessing
not included.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Generic, TypeVar

import numpy as np

from tinyvit_edge.errors import TinyVitEdgeError
from tinyvit_edge.host import cpu_name
from tinyvit_edge.report import Latency
from tinyvit_edge.types import FloatArray
from tinyvit_edge.worker import TargetProcess, Timing

if TYPE_CHECKING:
    from tinyvit_edge.worker import Loaded

__all__ = ["ROUNDS", "Entry", "fp32_of", "latency_notes", "measure_latency", "with_speedups"]

Key = TypeVar("Key", bound=Hashable)

ROUNDS = 10
_BUSY_RATIO = 1.3
_CONTENDED_RATIO = 0.8


@dataclass(frozen=True, kw_only=True, eq=False)  # no slots: Python 3.10 has none for generics
class Entry(Generic[Key]):
    """One artifact to time."""

    key: Key
    """What the caller knows it by."""
    target: str
    artifact: Path
    image: FloatArray
    """Normalised image (1, 3, S, S), float32, of the size that the artifact takes."""
    options: Mapping[str, Any] = field(default_factory=dict)
    """Options of the exporter, for artifacts that need one to be loaded."""


def measure_latency(
    entries: Sequence[Entry[Key]],
    *,
    threads: int = 1,
    runs: int = 50,
    warmup: int = 5,
    progress: Callable[[], None] = lambda: None,
    lost: Callable[[Entry[Key], TinyVitEdgeError], None] | None = None,
) -> dict[Key, Latency]:
    """Time artifacts against each other.

    Args:
        entries: the artifacts; all are loaded at the same time, each in its own process.
        threads: threads of each runtime.
        runs: timed runs of each artifact, spread over at most 10 rounds.
        warmup: untimed runs of each before.
        progress: called after each round.
        lost: called for an entry whose runtime fails, which then has no latency.

    Returns:
        Latency by key, in the order of the entries.

    Raises:
        ConversionError: a runtime failed, and `lost` was not given.
    """
    with ExitStack() as stack:
        probes = [_Probe(entry, stack, lost) for entry in entries]
        for probe in probes:
            probe.start(threads)
        for probe in probes:
            probe.time(warmup)
            probe.timings.clear()
        for count in _split(runs, ROUNDS):
            for probe in probes:
                probe.time(count)
            progress()
    return {
        probe.entry.key: replace(
            _summary(probe.timings, probe.loaded), threads=threads, runs=runs, warmup=warmup
        )
        for probe in probes
        if probe.loaded is not None and probe.timings
    }


class _Probe(Generic[Key]):
    """One entry, its process and its timings; after a failure it does nothing more."""

    def __init__(
        self,
        entry: Entry[Key],
        stack: ExitStack,
        lost: Callable[[Entry[Key], TinyVitEdgeError], None] | None,
    ) -> None:
        self.entry, self.timings = entry, list[Timing]()
        self.loaded: Loaded | None = None
        self._stack, self._lost = stack, lost
        self._process: TargetProcess | None = None

    def start(self, threads: int) -> None:
        with self._guarded():
            entry = self.entry
            process = TargetProcess(entry.target, options=entry.options, threads=threads)
            self._process = self._stack.enter_context(process)
            self.loaded = process.load(entry.artifact)

    def time(self, runs: int) -> None:
        with self._guarded():
            if self._process is not None:
                self.timings.append(self._process.time(self.entry.image, runs))

    @contextmanager
    def _guarded(self) -> Iterator[None]:
        try:
            yield
        except TinyVitEdgeError as error:
            if self._lost is None:
                raise
            self._process, self.loaded = None, None
            self._lost(self.entry, error)


def fp32_of(key: tuple[str, str]) -> tuple[str, str]:
    """The (target, precision) that a (target, precision) is compared with."""
    return key[0], "fp32"


def with_speedups(
    latencies: Mapping[Key, Latency], base_of: Callable[[Key], Key | None]
) -> dict[Key, Latency]:
    """Add each artifact's speed-up over its own float32 artifact, where both are there."""
    out = {}
    for key, latency in latencies.items():
        other = base_of(key)
        base = None if other is None else latencies.get(other)
        speedup = None
        if base is not None and base.p50_ms and latency.p50_ms:
            speedup = base.p50_ms / latency.p50_ms
        out[key] = replace(latency, speedup_vs_fp32=speedup)
    return out


def latency_notes(latency: Latency, *, quantized: bool) -> tuple[str, ...]:
    """What a reader must be told about a latency."""
    notes = []
    speedup, ratio, threads = latency.speedup_vs_fp32, latency.cpu_over_wall, latency.threads or 1
    if quantized and speedup is not None and speedup <= 1.0:
        notes.append(f"int8 is not faster than fp32 here: it takes {1 / speedup:.2f}x the time")
    if threads > 1 and ratio is not None and ratio < _BUSY_RATIO:
        notes.append(
            f"{threads} threads were asked for, but CPU time is {ratio:.2f}x wall time: "
            "this is a single-thread figure"
        )
    if ratio is not None and ratio < _CONTENDED_RATIO:
        notes.append(
            f"CPU time is {ratio:.2f}x wall time: the machine was busy, so repeat on a quiet one"
        )
    return tuple(notes)


def _summary(timings: Sequence[Timing], loaded: Loaded) -> Latency:
    walls = np.concatenate([timing.wall_ms for timing in timings])
    p50, p90, p99 = (float(np.percentile(walls, q)) for q in (50, 90, 99))
    return Latency(
        p50_ms=p50,
        p90_ms=p90,
        p99_ms=p99,
        cpu_over_wall=sum(timing.cpu_ms for timing in timings) / float(walls.sum()),
        load_ms=loaded.load_ms,
        peak_rss_mb=max(timing.peak_rss_mb for timing in timings),
        device_kind="host",
        cpu=cpu_name(),
    )


def _split(total: int, parts: int) -> list[int]:
    """Whole numbers that add up to `total`, as even as can be, without zeros."""
    base, extra = divmod(total, parts)
    return [n for n in (base + (i < extra) for i in range(parts)) if n]
