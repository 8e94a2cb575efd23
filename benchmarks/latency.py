"""How fast the artifacts are: against other tools' exports, and against this core's own limit.

    tinyvit-edge deploy ... --out REPORT
    python benchmarks/latency.py --report REPORT --out OUT

Four kinds of artifact are timed in one interleaved run, one thread, a process each:

- this package's, from a report of ``deploy`` (``fp32`` and ``w8a8``);
- timm's TinyViT with the same weights, exported by each tool's defaults;
- models of the same class, exported by each tool's defaults in float32, for orientation;
- yardsticks: chains of large square Linear layers through the same runtimes. The best of them,
  and of PyTorch's own matrix product, is what this core can do in float32 and in int8, and a
  model's multiply-accumulates a second are given as a fraction of it.

A Markdown table goes to stdout, everything to ``OUT/latency.json``, a plot to
``OUT/latency.html``. What was built before is taken from OUT.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
import traceback
from collections.abc import Callable, Iterable, Iterator
from contextlib import redirect_stdout
from dataclasses import asdict, dataclass, field
from pathlib import Path
from statistics import median
from typing import Literal

import numpy as np
import torch
from latency_models import Gemms, build_gemms, macs_of, orientation, stock_builds, timm_twin

from tinyvit_edge.bench import Entry, measure_latency
from tinyvit_edge.checkpoint import load_checkpoint
from tinyvit_edge.errors import InputError, TinyVitEdgeError
from tinyvit_edge.exporters import exporter
from tinyvit_edge.host import host_info
from tinyvit_edge.report import read_report
from tinyvit_edge.report_page import figure, page
from tinyvit_edge.report_plots import Bar, bars, series_of

TARGETS = ("onnx", "executorch", "tflite")
COMPUTE = {"fp32": "float32", "w8a8": "int8"}
CHAINS = ((512, 8), (1024, 4))  # width and depth: runtimes differ in which they like
_SIDE = 1024  # of the square matrices that PyTorch multiplies
Kind = Literal["tinyvit-edge", "stock", "orientation", "yardstick"]


@dataclass(kw_only=True)
class Candidate:
    """One artifact, and what was measured of it."""

    target: str
    by: str
    kind: Kind
    compute: str
    macs: int
    artifact: Path = field(repr=False)
    reason: str | None = None
    """Why there is nothing to time."""
    p50_ms: float | None = None
    p90_ms: float | None = None
    cpu_over_wall: float | None = None

    @property
    def gmacs(self) -> float | None:
        """10^9 multiply-accumulates a second."""
        return None if self.p50_ms is None else self.macs / self.p50_ms / 1e6


@dataclass(frozen=True, kw_only=True)
class Figure:
    """A ratio that says how well we do."""

    name: str
    value: float | None


def main() -> None:
    """Parse the command line, build, time, print."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--weights", default="imagenette")
    parser.add_argument("--report", type=Path, required=True, help="what deploy wrote")
    parser.add_argument("--targets", default=",".join(TARGETS), help="comma-separated")
    parser.add_argument("--runs", type=int, default=50, help="timed runs of each artifact")
    parser.add_argument("--out", type=Path, required=True)
    args = parser.parse_args()
    args.out.mkdir(parents=True, exist_ok=True)
    torch.set_num_threads(1)
    targets = args.targets.split(",")
    candidates = [*ours(args.report, targets), *yardsticks(args.out / "yardsticks", targets)]
    candidates += others(args.weights, args.out, targets, candidates[0].macs)
    sgemm = clock(candidates, args.runs)
    limits = ceilings(candidates, sgemm)
    result = {
        "host": host_info(),
        "runs": args.runs,
        "pytorch_sgemm_gmacs": sgemm,
        "ceilings_gmacs": limits,
        "figures": {figure.name: figure.value for figure in figures(candidates, limits)},
        "rows": [row(candidate, limits) for candidate in candidates],
    }
    (args.out / "latency.json").write_text(json.dumps(result, indent=2) + "\n")
    (args.out / "latency.html").write_text(html(candidates, limits))
    print(markdown(candidates, limits))


def ours(folder: Path, targets: Iterable[str]) -> list[Candidate]:
    """Artifacts of this package."""
    report = read_report(folder)
    found = [
        Candidate(
            target=row.target,
            by=f"tinyvit-edge {row.precision}",
            kind="tinyvit-edge",
            compute=COMPUTE[row.precision],
            macs=sum(row.audit.macs.values()),
            artifact=folder / row.artifact,
        )
        for row in report.rows
        if row.target in targets and row.precision in COMPUTE and row.artifact and row.audit
    ]
    if not found:
        raise InputError(f"{folder}: no fp32 or w8a8 artifact of {', '.join(targets)}: deploy them")
    return found


def yardsticks(folder: Path, targets: Iterable[str]) -> Iterator[Candidate]:
    """Chains of matrix products, by this package's exporters."""
    for target in targets:
        for precision, compute in COMPUTE.items():
            for width, depth in CHAINS:
                path = folder / f"{target}-{precision}-{width}" / exporter(target).artifact
                if not path.exists():
                    build_gemms(target, precision, width, depth, path)
                yield Candidate(
                    target=target,
                    by=f"{depth} products of {width} x {width}, {precision}",
                    kind="yardstick",
                    compute=compute,
                    macs=Gemms(width, depth).macs(224),
                    artifact=path,
                )


def others(weights: str, out: Path, targets: Iterable[str], macs: int) -> Iterator[Candidate]:
    """Other tools' exports: of timm's TinyViT in every way, of other models in float32.

    timm's TinyViT counts as many multiply-accumulates as ours: it computes the same.
    """
    checkpoint = load_checkpoint(weights)
    size = checkpoint.preprocessing.size
    images = np.random.default_rng(0).normal(size=(16, 3, size, size)).astype(np.float32)
    twin = timm_twin(checkpoint)
    compared = [(title, model, macs_of(model, size)) for title, model in orientation()]
    for target in targets:
        for title, build, compute in stock_builds(target):
            path = out / "stock" / _slug(title) / exporter(target).artifact
            yield Candidate(
                target=target,
                by=f"timm, {title}",
                kind="stock",
                compute=compute,
                macs=macs,
                artifact=path,
                reason=attempt(path, build, twin, images),
            )
        title, build, _ = next(stock_builds(target))
        for name, model, count in compared:
            path = out / "orientation" / f"{target}-{_slug(name)}" / exporter(target).artifact
            yield Candidate(
                target=target,
                by=f"{name}, {title}",
                kind="orientation",
                compute="float32",
                macs=count,
                artifact=path,
                reason=attempt(path, build, model, images),
            )


def attempt(
    path: Path, build: Callable[..., None], model: torch.nn.Module, images: np.ndarray
) -> str | None:
    """Build what is not there yet; what a tool raises is a result, too."""
    if path.exists():
        return None
    path.parent.mkdir(parents=True, exist_ok=True)
    try:
        with redirect_stdout(sys.stderr):  # tools report progress there, which is our table's place
            build(model, images, path)
    except Exception as error:
        traceback.print_exc()
        lines = str(error).strip().splitlines()
        return f"{type(error).__name__}: {lines[0] if lines else ''}"
    return None


def clock(candidates: list[Candidate], runs: int) -> float:
    """Time all in turn, and PyTorch's matrix product after each round; return its rate, GMAC/s."""
    image = np.random.default_rng(0).normal(size=(1, 3, 224, 224)).astype(np.float32)
    ready = {n: one for n, one in enumerate(candidates) if one.reason is None}
    entries = [
        Entry(key=key, target=one.target, artifact=one.artifact, image=image)
        for key, one in ready.items()
    ]
    one, other = torch.randn(2, _SIDE, _SIDE, generator=torch.Generator().manual_seed(0))
    times: list[float] = []

    def multiply() -> None:
        torch.mm(one, other)  # wakes the core
        start = time.perf_counter()
        torch.mm(one, other)
        times.append(time.perf_counter() - start)

    def lost(entry: Entry[int], error: TinyVitEdgeError) -> None:
        ready[entry.key].reason = str(error)
        print(f"{entry.target} {ready[entry.key].by}: {error}", file=sys.stderr)

    latencies = measure_latency(entries, runs=runs, progress=multiply, lost=lost)
    for key, latency in latencies.items():
        ready[key].p50_ms, ready[key].p90_ms = latency.p50_ms, latency.p90_ms
        ready[key].cpu_over_wall = latency.cpu_over_wall
    return _SIDE**3 / median(times) / 1e9


def ceilings(candidates: list[Candidate], sgemm: float) -> dict[str, float]:
    """The best rate of matrix products by type, in GMAC/s."""
    limits = {"float32": sgemm}
    for one in candidates:
        if one.kind == "yardstick" and one.gmacs is not None:
            limits[one.compute] = max(limits.get(one.compute, 0.0), one.gmacs)
    return limits


def figures(candidates: list[Candidate], limits: dict[str, float]) -> Iterator[Figure]:
    """Ratios of medians, and fractions of what the core can do."""

    def best(kind: Kind, compute: str, target: str | None = None) -> Candidate | None:
        timed = [
            one
            for one in candidates
            if (one.kind, one.compute) == (kind, compute)
            and one.p50_ms is not None
            and target in (None, one.target)
        ]
        return min(timed, key=lambda one: one.p50_ms or 0.0, default=None)

    def ratio(one: Candidate | None, other: Candidate | None) -> float | None:
        if one is None or other is None or not one.p50_ms or not other.p50_ms:
            return None
        return one.p50_ms / other.p50_ms

    for target in dict.fromkeys(one.target for one in candidates):
        for compute in COMPUTE.values():
            own, stock = best("tinyvit-edge", compute, target), best("stock", compute, target)
            yield Figure(name=f"{target} {compute}, ours / stock", value=ratio(own, stock))
        own, exact = (best("tinyvit-edge", compute, target) for compute in ("int8", "float32"))
        yield Figure(name=f"{target}, int8 / float32", value=ratio(own, exact))
    own, exact = best("tinyvit-edge", "int8"), best("tinyvit-edge", "float32")
    yield Figure(name="best int8 / best float32", value=ratio(own, exact))
    for one in (exact, own):
        if one is not None and one.gmacs is not None and one.compute in limits:
            share = one.gmacs / limits[one.compute]
            yield Figure(name=f"best {one.compute}, share of the core's limit", value=share)


def row(one: Candidate, limits: dict[str, float]) -> dict[str, object]:
    """A candidate as JSON values."""
    values = {key: value for key, value in asdict(one).items() if key != "artifact"}
    return values | {"gmacs": one.gmacs, "share_of_limit": _share(one, limits)}


def markdown(candidates: list[Candidate], limits: dict[str, float]) -> str:
    """Two tables: all that was timed, and the ratios."""
    lines = [
        "| target | artifact | p50, ms | CPU / wall | GMAC | GMAC/s | of the core's limit, % |",
        "| --- | --- | --: | --: | --: | --: | --: |",
    ]
    for one in sorted(candidates, key=lambda one: TARGETS.index(one.target)):
        if one.p50_ms is None or one.cpu_over_wall is None:
            lines.append(f"| {one.target} | {one.by} | fails: {one.reason} | - | - | - | - |")
            continue
        share = _share(one, limits)
        lines.append(
            f"| {one.target} | {one.by} | {one.p50_ms:.1f} | {one.cpu_over_wall:.2f}"
            f" | {one.macs / 1e9:.2f} | {one.gmacs:.0f}"
            f" | {'-' if share is None else f'{100 * share:.0f}'} |"
        )
    limit = ", ".join(f"{value:.0f} GMAC/s in {name}" for name, value in limits.items())
    lines += ["", f"This core's limit: {limit}.", "", "| ratio | value |", "| --- | --: |"]
    lines += [
        f"| {figure.name} | {'-' if figure.value is None else f'{figure.value:.2f}'} |"
        for figure in figures(candidates, limits)
    ]
    return "\n".join(lines)


def html(candidates: list[Candidate], limits: dict[str, float]) -> str:
    """A page with the latencies as bars."""
    timed = [one for one in candidates if one.kind != "yardstick" and one.p50_ms is not None]
    rows = [
        Bar(series=one.target, label=one.by, value=one.p50_ms or 0.0, text=f"{one.p50_ms:.1f}")
        for one in sorted(timed, key=lambda one: (TARGETS.index(one.target), one.p50_ms or 0.0))
    ]
    title = "Latency, one thread"
    drawn = bars(
        rows,
        series=series_of(row.series for row in rows),
        title=title,
        x_title="milliseconds, median",
        limit=max(row.value for row in rows),
    )
    limit = ", ".join(f"{value:.0f} GMAC/s in {name}" for name, value in limits.items())
    head = '<header><p class="eyebrow">tinyvit-edge</p><h1>Latency</h1></header><main>'
    text = f"All in one interleaved run on {host_info()['cpu']}, whose limit is {limit}."
    return page("Latency", (head, figure(title, text, drawn), "</main>"))


def _share(one: Candidate, limits: dict[str, float]) -> float | None:
    if one.gmacs is None or one.compute not in limits:
        return None
    return one.gmacs / limits[one.compute]


def _slug(title: str) -> str:
    return "-".join("".join(c if c.isalnum() else " " for c in title.lower()).split())


if __name__ == "__main__":
    main()
