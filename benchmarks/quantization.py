"""Quantization here against each toolchain's own: accuracy, size and latency on the same images.

    python benchmarks/quantization.py --data imagenette/val --calib imagenette/train --out OUT

The stock paths start from the model as it is (no deployment form) and use each tool's defaults,
as its documentation shows them: ONNX Runtime's ``quantize_static``, ExecuTorch's
``XNNPACKQuantizer`` on everything, ai-edge-quantizer's static int8 recipe, and coremltools'
data-free compression of weights. Both sides see the same calibration photos, where --report was
made with the same --calib and --calib-images. Artifacts are run
in their runtimes (Core ML off macOS: evaluated), and timed in one interleaved run.

A Markdown table goes to stdout, everything to ``OUT/quantization.json``. A stock path that was
built before is taken from OUT.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import traceback
from collections.abc import Callable, Mapping
from contextlib import redirect_stdout
from pathlib import Path
from typing import Any

import numpy as np
import torch
from stock_quantization import STOCK, Stock

from tinyvit_edge.bench import Entry, fp32_of, measure_latency, with_speedups
from tinyvit_edge.checkpoint import Checkpoint, load_checkpoint
from tinyvit_edge.data import BATCH_SIZE, ImageDataset, load_batches, scan_folder
from tinyvit_edge.deploy import DeployRequest, deploy
from tinyvit_edge.errors import InputError, TinyVitEdgeError
from tinyvit_edge.evaluate import artifact_logits, labels_of, reference_logits, reference_module
from tinyvit_edge.exporters import exporter
from tinyvit_edge.files import size_of
from tinyvit_edge.host import host_info
from tinyvit_edge.measure import accuracy
from tinyvit_edge.metrics import is_finite, sqnr_db, top1_agreement
from tinyvit_edge.parallel import run_parallel
from tinyvit_edge.report import Report, Row, read_report, write_report

_OURS = "tinyvit-edge "
PRECISIONS = ("fp32", "w8-dynamic", "w8a8", "w8", "w6-lut", "w4-lut", "w4g32")


def main() -> None:
    """Parse the command line, measure, print."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--weights", default="imagenette")
    parser.add_argument("--data", type=Path, required=True, help="labelled photos to measure on")
    parser.add_argument("--calib", type=Path, required=True, help="photos to quantize by")
    parser.add_argument("--calib-images", type=int, default=128)
    parser.add_argument("--limit", type=int, help="evenly spaced photos of --data; default: all")
    parser.add_argument("--targets", default=",".join(STOCK), help="comma-separated")
    parser.add_argument("--runs", type=int, default=50, help="timed runs of each artifact")
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument(
        "--report", type=Path, help="what deploy wrote of the same photos; made in OUT if absent"
    )
    args = parser.parse_args()
    args.out.mkdir(parents=True, exist_ok=True)
    args.report = args.report or args.out / "ours"
    result = measure(args)
    (args.out / "quantization.json").write_text(json.dumps(result, indent=2) + "\n")
    print(markdown(result["rows"]))


def measure(args: argparse.Namespace) -> dict[str, Any]:
    """Build both sides, run them on the same photos, time them in one run."""
    checkpoint = load_checkpoint(args.weights)
    photos = scan_folder(args.data, checkpoint.labels)
    photos = photos if args.limit is None else photos.subset(args.limit)
    contract = checkpoint.preprocessing
    reference = reference_logits(reference_module(checkpoint.model), photos, contract)
    report = ours(args, checkpoint, len(photos))
    targets = args.targets.split(",")
    rows = [
        row_of(row, args.report) for row in report.rows if row.accuracy and row.target in targets
    ]
    stocks = stock(args, checkpoint)

    def run(row: dict[str, Any], _: Callable[[], bool]) -> None:
        judge(row, checkpoint, photos, reference)
        print(f"{row['target']} {row['by']}: {row.get('top1')}", file=sys.stderr)

    run_parallel(run, [row for row in stocks if row["artifact"]], jobs=os.cpu_count() or 1)
    rows = sorted([*rows, *stocks], key=lambda row: list(STOCK).index(row["target"]))
    add_latencies(rows, next(load_batches(photos, contract, 1))[0], args.runs)
    return {
        "host": host_info(),
        "weights_sha256": checkpoint.sha256,
        "images": len(photos),
        "calibration_images": args.calib_images,
        "reference_top1": None if report.reference is None else report.reference.top1,
        "rows": [{key: value for key, value in row.items() if key != "artifact"} for row in rows],
    }


def ours(args: argparse.Namespace, checkpoint: Checkpoint, images: int) -> Report:
    """The report of a deployment on the same photos; made where there is none."""
    if not (args.report / "report.json").exists():
        request = DeployRequest(
            weights=args.weights,
            data=args.data,
            calib=args.calib,
            calib_images=args.calib_images,
            targets=args.targets.split(","),
            precisions=PRECISIONS,
            out=args.report,
            limit=args.limit,
            runs=args.runs,
        )
        write_report(deploy(request), args.report)
    report = read_report(args.report)
    seen = None if report.reference is None else report.reference.n
    if (report.model.weights_sha256, seen) != (checkpoint.sha256, images):
        raise InputError(f"{args.report}: of other weights or photos; give another --report")
    return report


def row_of(row: Row, folder: Path) -> dict[str, Any]:
    """One of this package's artifacts, as the deployment measured it."""
    assert row.artifact
    assert row.size_bytes
    assert row.accuracy
    assert row.quantization
    return {
        "target": row.target,
        "by": _OURS + row.precision,
        "artifact": folder / row.artifact,
        "reason": row.reason,
        "size_mb": row.size_bytes / 1e6,
        "top1": row.accuracy.top1,
        "sqnr_db": row.quantization.sqnr_db,
        "agreement": row.quantization.top1_agreement,
    }


def stock(args: argparse.Namespace, checkpoint: Checkpoint) -> list[dict[str, Any]]:
    """Rows of the targets' own tools."""
    calib = scan_folder(args.calib).subset(args.calib_images)
    batches = load_batches(calib, checkpoint.preprocessing, BATCH_SIZE)
    images = np.concatenate([images for images, _ in batches])
    module = reference_module(checkpoint.model).eval()
    rows = []
    for target in args.targets.split(","):
        for one in STOCK[target]:
            path = args.out / "stock" / one.name / exporter(target).artifact
            row = {"target": target, "by": one.title, "artifact": path, "reason": None}
            if not path.exists():
                path.parent.mkdir(parents=True, exist_ok=True)
                row |= attempt(one, module, images, path)
            rows.append(row)
    return rows


def attempt(
    one: Stock, module: torch.nn.Module, images: np.ndarray[Any, Any], path: Path
) -> dict[str, Any]:
    """Build a stock artifact; what its tool raises is a result, too."""
    try:
        with redirect_stdout(sys.stderr):  # tools report progress there, which is our table's place
            one.build(module, images, path)
    except Exception as error:
        traceback.print_exc()
        lines = str(error).strip().splitlines()
        return {"artifact": None, "reason": f"{type(error).__name__}: {lines[0] if lines else ''}"}
    return {}


def judge(
    row: dict[str, Any], checkpoint: Checkpoint, photos: ImageDataset, reference: Any
) -> None:
    """Add size, accuracy and the distance from float32."""
    row["size_mb"] = size_of(row["artifact"]) / 1e6
    try:
        logits = artifact_logits(
            row["target"], row["artifact"], photos, checkpoint.preprocessing, options={}
        )
    except TinyVitEdgeError as error:
        row["reason"] = str(error)
        return
    found = accuracy(logits, labels_of(photos))
    row["top1"] = None if found is None else found.top1
    if is_finite(logits):
        row["sqnr_db"] = sqnr_db(reference, logits)
        row["agreement"] = top1_agreement(reference, logits)


def add_latencies(rows: list[dict[str, Any]], image: Any, runs: int) -> None:
    """Time what ran, all in turn; ratios are to this package's fp32 on the same runtime."""
    timed = [row for row in rows if "top1" in row and exporter(row["target"]).timed]
    entries = [
        Entry(
            key=(row["target"], way(row)),
            target=row["target"],
            artifact=row["artifact"],
            image=image,
        )
        for row in timed
    ]

    def lost(entry: Entry[tuple[str, str]], error: TinyVitEdgeError) -> None:
        print(f"{' '.join(entry.key)} not timed: {error}", file=sys.stderr)

    latencies = with_speedups(measure_latency(entries, runs=runs, lost=lost), fp32_of)
    for row in timed:
        if (row["target"], way(row)) not in latencies:
            continue
        latency = latencies[row["target"], way(row)]
        row["p50_ms"], speedup = latency.p50_ms, latency.speedup_vs_fp32
        row["latency_vs_fp32"] = None if speedup is None else 1 / speedup


def way(row: Mapping[str, Any]) -> str:
    """What tells a target's rows apart; for this package's own, the precision."""
    return str(row["by"]).removeprefix(_OURS)


def markdown(rows: list[dict[str, Any]]) -> str:
    """The table; sizes and latencies are also given against this package's fp32."""
    base = {row["target"]: row for row in rows if way(row) == "fp32"}
    lines = [
        "| target | by | top-1, % | drop, points | SQNR, dB | size, MB | size / fp32"
        " | p50, ms | latency / fp32 |",
        "| --- | --- | --: | --: | --: | --: | --: | --: | --: |",
    ]
    for row in rows:
        exact = base.get(row["target"], {})
        cells = [row["target"], row["by"]]
        if row.get("top1") is None:
            cells += [f"fails: {row['reason']}", *["-"] * 6]
        else:
            cells += [
                f"{100 * row['top1']:.2f}",
                _number(exact and 100 * (exact["top1"] - row["top1"]), "{:.2f}"),
                _number(row.get("sqnr_db"), "{:.1f}"),
                f"{row['size_mb']:.2f}",
                _number(exact and row["size_mb"] / exact["size_mb"], "{:.2f}"),
                _number(row.get("p50_ms"), "{:.1f}"),
                _number(row.get("latency_vs_fp32"), "{:.2f}"),
            ]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def _number(value: Any, form: str) -> str:
    return "-" if not isinstance(value, float) else form.format(value)


if __name__ == "__main__":
    main()
