"""Every published TinyViT through every target: size, parity and latency.

    python benchmarks/variants.py --data path/to/photos --out /tmp/variants

Eleven checkpoints are published, of five architectures and, for three of them, two numbers of
classes: ``*_22k_distill`` and ``*.dist_in22k`` have 21,841 classes, all others 1,000. So eight
graphs are all there is to convert. Weights are random, with attention biases, normalisation gains
and BatchNorm statistics that are not trivial: parity is against PyTorch with the same weights, and
accuracy would mean nothing. Nor would the first class: random weights give most photos the same
one, and the next of 1,000 nearly equal classes is behind by a hair, so whether int8 chooses that is
luck. So a row is judged by SQNR and by what is integer in the file, not by agreement of classes.

Int8 of random weights is harder than of trained ones: a trained model damps what rounding adds,
this one passes it on. "Least" is the gate's bound: 90 dB at ``fp32``; at ``w8a8`` 30 dB or, where
PyTorch's own program moves further when its layers' inputs move by a rounding, that less 6 dB.

Growth is timed after that, the models that it compares in one interleaved run.

A variant that is done is not begun again, and within one `deploy` takes up what is there: after an
interruption or a failure, run the same command; with ``--again`` on a quiet machine, for the times.
``variants.json`` and ``variants.md`` in ``--out`` hold what is done so far.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

from tinyvit_edge.checkpoint import Checkpoint, save_checkpoint
from tinyvit_edge.compat import tolerate_torchvision
from tinyvit_edge.data import scan_folder
from tinyvit_edge.modeling import TinyVitForImageClassification
from tinyvit_edge.preprocessing import preset
from tinyvit_edge.report import Report, Row, read_report
from tinyvit_edge.variants import VARIANTS, config_for

_IMAGENET_1K, _IMAGENET_22K = 1000, 21841
_MADE = (0, 1)  # gates of classes may fail: see above
_GROWTH = 1.1
"""Most that latency may grow by, as a multiple of what multiply-accumulates grow by."""


@dataclass(frozen=True, slots=True)
class Graph:
    """One thing to convert."""

    variant: str
    classes: int

    @property
    def name(self) -> str:
        """Folder name."""
        return self.variant if self.classes == _IMAGENET_1K else f"{self.variant}_22k"


GRAPHS = (
    *(Graph(name, _IMAGENET_1K) for name in VARIANTS),
    *(Graph(name, _IMAGENET_22K) for name in VARIANTS if name.endswith("_224")),
)
GROWTHS = (
    ("tiny_vit_5m_224", "tiny_vit_21m_224"),
    ("tiny_vit_21m_224", "tiny_vit_21m_384"),
    ("tiny_vit_21m_224", "tiny_vit_21m_512"),
)


def main() -> None:
    """Parse the command line, deploy what is not done, write and print the tables."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--data", type=Path, required=True, help="photos, in any layout")
    parser.add_argument("--limit", type=int, default=8, help="photos of parity and calibration")
    parser.add_argument("--only", help="comma-separated names of graphs")
    parser.add_argument("--targets", default="onnx,executorch,tflite,coreml")
    parser.add_argument("--precisions", default="fp32,w8a8")
    parser.add_argument("--runs", type=int, default=20)
    parser.add_argument(
        "--again", action="store_true", help="time what is done once more, without converting it"
    )
    parser.add_argument("--out", type=Path, required=True)
    args = parser.parse_args()
    wanted = args.only.split(",") if args.only else [graph.name for graph in GRAPHS]
    if unknown := set(wanted) - {graph.name for graph in GRAPHS}:
        parser.error(f"--only: {unknown} not among {', '.join(graph.name for graph in GRAPHS)}")
    photos = flat_photos(args.data, args.limit, args.out / f"photos-{args.limit}")
    failed = []
    for graph in GRAPHS:
        command = command_for(graph, photos, args)
        done = not args.again and is_done(args.out / graph.name, command)
        if graph.name in wanted and not done:
            failed += [graph.name] if deploy(graph, command, args.out) not in _MADE else []
        write_tables(args.out)
    time_growth(args.out, args.runs)
    write_tables(args.out)
    print((args.out / "variants.md").read_text(), end="")
    if failed:
        raise SystemExit(f"failed: {', '.join(failed)}; run again to go on from there")


def command_for(graph: Graph, photos: Path, args: argparse.Namespace) -> list[str]:
    """Arguments of tinyvit-edge."""
    command = ["deploy", "--weights", args.out / f"{graph.name}.weights"]
    command += ["--data", photos, "--calib", photos, "--calib-images", args.limit]
    command += ["--targets", args.targets, "--precisions", args.precisions]
    command += ["--runs", args.runs, "--out", args.out / graph.name]
    return [str(argument) for argument in command]


def is_done(out: Path, command: list[str]) -> bool:
    """Whether there is a report of this command, and no conversion in it failed."""
    if not (out / "report.json").exists():
        return False
    report = read_report(out)
    return report.exit_code in _MADE and [*report.command[1:]] == command


def flat_photos(data: Path, count: int, folder: Path) -> Path:
    """Evenly spaced photos, linked into a folder without labels."""
    folder.mkdir(parents=True, exist_ok=True)
    for link in folder.iterdir():  # another --data may have been given before
        link.unlink()
    for number, sample in enumerate(scan_folder(data).subset(count).samples):
        (folder / f"{number:04d}{sample.path.suffix}").symlink_to(sample.path.resolve())
    return folder


def deploy(graph: Graph, command: list[str], out: Path) -> int:
    """Convert and measure one graph, by the command that users have; gives its exit code."""
    # the same bytes each time, which is what deploy goes by when it takes up what is there
    save_checkpoint(random_checkpoint(graph), out / f"{graph.name}.weights")
    print(f"== {graph.name}", file=sys.stderr, flush=True)
    tool = [sys.executable, "-m", "tinyvit_edge"]
    return subprocess.run([*tool, *command], stdout=subprocess.DEVNULL).returncode


def time_growth(out: Path, runs: int) -> None:
    """Time the models of `GROWTHS` that are done against each other, as ``growth.json``.

    The latencies of the reports are of different minutes, and maybe of a busier machine.
    """
    bundles = [
        str(out / name / row.bundle)
        for name in dict.fromkeys(name for pair in GROWTHS for name in pair)
        if (out / name / "report.json").exists()
        for row in read_report(out / name).rows
        if row.bundle is not None and _p50(row)
    ]
    if bundles:
        command = [sys.executable, "-m", "tinyvit_edge", "bench", *bundles]
        command += ["--runs", str(runs), "--json", str(out / "growth.json")]
        subprocess.run(command, check=True)


def random_checkpoint(graph: Graph) -> Checkpoint:
    """The architecture with random weights that hide no branch and no bias."""
    tolerate_torchvision()
    torch.manual_seed(0)
    model = TinyVitForImageClassification(config_for(graph.variant, graph.classes))
    with torch.no_grad():
        for module in model.modules():
            if isinstance(module, (nn.BatchNorm2d, nn.LayerNorm)):
                module.weight.uniform_(0.6, 1.4)
                module.bias.uniform_(-0.3, 0.3)
            if isinstance(module, nn.BatchNorm2d) and module.running_mean is not None:
                assert module.running_var is not None
                module.running_mean.uniform_(-0.3, 0.3)
                module.running_var.uniform_(0.5, 1.5)
            if isinstance(module, (nn.Linear, nn.Conv2d)):
                # the scale that keeps the variance, so that no branch fades
                module.weight.normal_(0, module.weight[0].numel() ** -0.5)
                if module.bias is not None:
                    module.bias.uniform_(-0.1, 0.1)
        for name, parameter in model.named_parameters():
            if name.endswith("attention_biases"):
                parameter.uniform_(-2, 2)
    return Checkpoint(
        model=model.eval(),
        labels=tuple(f"class {number}" for number in range(graph.classes)),
        preprocessing=preset("microsoft", VARIANTS[graph.variant].image_size),
        variant=graph.variant,
        format="huggingface",
        sha256="",
        source="random",
    )


def write_tables(out: Path) -> None:
    """Write what is done so far as JSON and Markdown."""
    done = {
        graph.name: read_report(out / graph.name)
        for graph in GRAPHS
        if (out / graph.name / "report.json").exists()
    }
    rows = [
        {"graph": name, "params": report.model.params} | row.to_dict()
        for name, report in done.items()
        for row in report.rows
    ]
    growths = list(growth_of(done, out))
    value = {"rows": rows, "growths": growths}
    (out / "variants.json").write_text(json.dumps(value, indent=2) + "\n")
    (out / "variants.md").write_text(markdown(done, growths))


def growth_of(done: dict[str, Report], out: Path) -> Iterator[dict[str, Any]]:
    """How latency grows from a smaller to a larger model, beside multiply-accumulates."""
    path = out / "growth.json"
    timed = json.loads(path.read_text()) if path.exists() else []
    times = {one["bundle"]: one["latency"]["p50_ms"] for one in timed}
    for small, large in GROWTHS:
        if small not in done or large not in done:
            continue
        before = {(row.target, row.precision): row for row in done[small].rows}
        for row in done[large].rows:
            base = before.get((row.target, row.precision))
            if base is None or base.bundle is None or row.bundle is None:
                continue
            from_ms = times.get(str(out / small / base.bundle))
            to_ms = times.get(str(out / large / row.bundle))
            if from_ms is None or to_ms is None:
                continue
            macs, latency = _macs(row) / _macs(base), to_ms / from_ms
            yield {
                "from": small,
                "to": large,
                "target": row.target,
                "precision": row.precision,
                "from_ms": from_ms,
                "to_ms": to_ms,
                "macs": macs,
                "latency": latency,
                "latency_over_macs": latency / macs,
                "within": latency <= _GROWTH * macs,
            }


def _p50(row: Row) -> float:
    return (row.latency and row.latency.p50_ms) or 0.0


def _macs(row: Row) -> int:
    return sum(row.audit.macs.values()) if row.audit else 0


def _bound(row: Row, name: str) -> str:
    bounds = [gate.bound for gate in row.gates if gate.name == name and gate.bound is not None]
    return f"{bounds[0]:.1f}" if bounds else "-"


def markdown(done: dict[str, Report], growths: list[dict[str, Any]]) -> str:
    """Both tables."""
    lines = [
        "| model | target | precision | size, MB | GMAC | conversion SQNR, dB | least, dB"
        " | p50, ms | status |",
        "| --- | --- | --- | --: | --: | --: | --: | --: | --- |",
    ]
    for name, report in done.items():
        for row in report.rows:
            lost = row.conversion
            cells = [
                f"{row.size_bytes / 1e6:.2f}" if row.size_bytes else "-",
                f"{_macs(row) / 1e9:.2f}" if row.audit else "-",
                f"{lost.sqnr_db:.1f}" if lost and lost.sqnr_db is not None else "-",
                _bound(row, "conversion SQNR"),
                f"{_p50(row):.2f}" if _p50(row) else "-",
                status_of(row),
            ]
            lines.append(f"| {name} | {row.target} | {row.precision} | {' | '.join(cells)} |")
    lines += [
        "",
        "| from | to | target | precision | from, ms | to, ms | MACs x | latency x"
        " | latency over MACs |",
        "| --- | --- | --- | --- | --: | --: | --: | --: | --: |",
    ]
    for one in growths:
        verdict = "" if one["within"] else f" (above {_GROWTH})"
        lines.append(
            f"| {one['from']} | {one['to']} | {one['target']} | {one['precision']}"
            f" | {one['from_ms']:.2f} | {one['to_ms']:.2f}"
            f" | {one['macs']:.2f} | {one['latency']:.2f}"
            f" | {one['latency_over_macs']:.2f}{verdict} |"
        )
    return "\n".join(lines) + "\n"


def status_of(row: Row) -> str:
    """The gates but for classes and accuracy, which mean nothing with random weights."""
    if row.status in ("failed", "skipped", "unsupported"):
        return f"{row.status}: {row.reason}"
    failed = [gate.name for gate in row.gates if not gate.passed and "top-1" not in gate.name]
    return f"failed: {', '.join(failed)}" if failed else "ok"


if __name__ == "__main__":
    main()
