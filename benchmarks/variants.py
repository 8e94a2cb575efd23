"""Every published TinyViT through every target: size, parity and latency.

    python benchmarks/variants.py --data path/to/photos --out /tmp/variants

Eleven checkpoints are published, of five architectures and, for three of them, two numbers of
classes: ``*_22k_distill`` and ``*.dist_in22k`` have 21,841 classes, all others 1,000. So eight
graphs are all there is to convert. Weights are random, with attention biases, normalisation gains
and BatchNorm statistics that are not trivial: parity is against PyTorch with the same weights, and
accuracy would mean nothing. Int8 of random weights is harder than of trained ones.

A variant that is done is not begun again, and within one `deploy` takes up what is there: after an
interruption, run the same command. ``variants.json`` and ``variants.md`` in ``--out`` hold what is
done so far.
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
    parser.add_argument("--out", type=Path, required=True)
    args = parser.parse_args()
    wanted = args.only.split(",") if args.only else [graph.name for graph in GRAPHS]
    if unknown := set(wanted) - {graph.name for graph in GRAPHS}:
        parser.error(f"--only: {unknown} not among {', '.join(graph.name for graph in GRAPHS)}")
    photos = flat_photos(args.data, args.limit, args.out / "photos")
    for graph in GRAPHS:
        if graph.name in wanted and not is_done(args.out / graph.name):
            deploy(graph, photos, args)
        write_tables(args.out)
    print((args.out / "variants.md").read_text(), end="")


def is_done(out: Path) -> bool:
    """Whether there is a report, and no conversion in it failed."""
    return (out / "report.json").exists() and read_report(out).exit_code in (0, 1)


def flat_photos(data: Path, count: int, folder: Path) -> Path:
    """Evenly spaced photos, linked into a folder without labels."""
    folder.mkdir(parents=True, exist_ok=True)
    for number, sample in enumerate(scan_folder(data).subset(count).samples):
        link = folder / f"{number:04d}{sample.path.suffix}"
        if not link.exists():
            link.symlink_to(sample.path.resolve())
    return folder


def deploy(graph: Graph, photos: Path, args: argparse.Namespace) -> None:
    """Convert and measure one graph, by the command that users have.

    Raises:
        SystemExit: it ended otherwise than with success or a gate that failed.
    """
    weights, out = args.out / f"{graph.name}.weights", args.out / graph.name
    if not weights.exists():
        save_checkpoint(random_checkpoint(graph), weights)
    command = [sys.executable, "-m", "tinyvit_edge", "deploy", "--weights", weights]
    command += ["--data", photos, "--calib", photos, "--calib-images", args.limit]
    command += ["--targets", args.targets, "--precisions", args.precisions]
    command += ["--runs", args.runs, "--out", out]
    print(f"== {graph.name}", file=sys.stderr, flush=True)
    code = subprocess.run([*map(str, command)], stdout=subprocess.DEVNULL).returncode
    if code not in (0, 1):  # random weights fail the gates that compare int8 with float32
        raise SystemExit(f"{graph.name}: deploy ended with {code}; run again to go on from there")


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
    growths = list(growth_of(done))
    value = {"rows": rows, "growths": growths}
    (out / "variants.json").write_text(json.dumps(value, indent=2) + "\n")
    (out / "variants.md").write_text(markdown(done, growths))


def growth_of(done: dict[str, Report]) -> Iterator[dict[str, Any]]:
    """How latency grows from a smaller to a larger model, beside multiply-accumulates."""
    for small, large in GROWTHS:
        if small not in done or large not in done:
            continue
        before = {(row.target, row.precision): row for row in done[small].rows}
        for row in done[large].rows:
            base = before.get((row.target, row.precision))
            if base is None or not (_p50(row) and _p50(base)):
                continue
            macs, latency = _macs(row) / _macs(base), _p50(row) / _p50(base)
            yield {
                "from": small,
                "to": large,
                "target": row.target,
                "precision": row.precision,
                "macs": macs,
                "latency": latency,
                "latency_over_macs": latency / macs,
                "within": latency <= _GROWTH * macs,
            }


def _p50(row: Row) -> float:
    return (row.latency and row.latency.p50_ms) or 0.0


def _macs(row: Row) -> int:
    return sum(row.audit.macs.values()) if row.audit else 0


def markdown(done: dict[str, Report], growths: list[dict[str, Any]]) -> str:
    """Both tables."""
    lines = [
        "| model | target | precision | size, MB | GMAC | conversion SQNR, dB | same top-1, %"
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
                f"{100 * lost.top1_agreement:.0f}" if lost and lost.top1_agreement else "-",
                f"{_p50(row):.2f}" if _p50(row) else "-",
                status_of(row),
            ]
            lines.append(f"| {name} | {row.target} | {row.precision} | {' | '.join(cells)} |")
    lines += [
        "",
        "| from | to | target | precision | MACs x | latency x | latency over MACs |",
        "| --- | --- | --- | --- | --: | --: | --: |",
    ]
    for one in growths:
        verdict = "" if one["within"] else f" (above {_GROWTH})"
        lines.append(
            f"| {one['from']} | {one['to']} | {one['target']} | {one['precision']}"
            f" | {one['macs']:.2f} | {one['latency']:.2f}"
            f" | {one['latency_over_macs']:.2f}{verdict} |"
        )
    return "\n".join(lines) + "\n"


def status_of(row: Row) -> str:
    """The conversion's own gates; those against float32 mean nothing with random weights."""
    if row.status in ("failed", "skipped", "unsupported"):
        return f"{row.status}: {row.reason}"
    failed = [
        gate.name
        for gate in row.gates
        if not gate.passed and not gate.name.startswith(("quantization", "top-1 drop"))
    ]
    return f"failed: {', '.join(failed)}" if failed else "ok"


if __name__ == "__main__":
    main()
