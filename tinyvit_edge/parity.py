"""Measure bundles that exist: against PyTorch, against their golden vectors, and the clock."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
from PIL import Image

from tinyvit_edge import metrics
from tinyvit_edge.bench import ROUNDS, Entry, latency_notes, measure_latency, with_speedups
from tinyvit_edge.bundle import Bundle, GoldenImage, read_bundle
from tinyvit_edge.console import QuietDisplay
from tinyvit_edge.data import SAMPLE_SIZE, scan_folder
from tinyvit_edge.errors import InputError, TinyVitEdgeError, UnsupportedError
from tinyvit_edge.evaluate import (
    labels_of,
    reference_logits,
    reference_module,
    sample_images,
)
from tinyvit_edge.exporters import Evaluation, exporter, require
from tinyvit_edge.files import sha256_of
from tinyvit_edge.measure import accuracy
from tinyvit_edge.precision import parse_precision
from tinyvit_edge.preprocessing import normalise, resize
from tinyvit_edge.report import Gate, Row
from tinyvit_edge.verify import Yardstick, compare_with, judged, verify
from tinyvit_edge.worker import TargetProcess

if TYPE_CHECKING:
    from tinyvit_edge.build import Built
    from tinyvit_edge.preprocessing import Preprocessing
    from tinyvit_edge.program import Program
    from tinyvit_edge.types import FloatArray

__all__ = ["check_goldens", "check_photos", "time_bundles"]

_GOLDEN_SQNR_DB = {"fp32": 90.0, "fp16": 35.0}
_GOLDEN_INT8_SQNR_DB = 15.0
_GOLDEN_SQNR_REASON = {
    "fp32": "the same file in the same precision: only the order of float32 sums may differ",
    "fp16": "kernels may sum in half or in single precision",
}
_GOLDEN_INT8_SQNR_REASON = "one file gives int8 outputs 20 to 35 dB apart on x86 and ARM kernels"


def check_photos(
    root: Path, *, weights: str | None, data: Path, limit: int | None, display: QuietDisplay
) -> Row:
    """Judge a bundle on photos, as `deploy` does.

    The reference is preprocessed as it was when the bundle was made, the artifact as the bundle
    says, so a bundle with another contract shows.

    Raises:
        InputError: bad bundle, weights or data, or weights that the bundle was not made from.
        MissingDependencyError: the target's packages are missing.
    """
    from tinyvit_edge.build import reopen
    from tinyvit_edge.checkpoint import load_checkpoint

    bundle = read_bundle(root)
    source = bundle.manifest["source"]
    if weights is None:
        raise InputError(
            f"{root}: give the weights it was made from: --weights {source['checkpoint']}"
        )
    require(exporter(bundle.target, **bundle.manifest["options"]))
    checkpoint = load_checkpoint(
        weights, image_size=source["image_size"], preprocessing=source["preprocessing"]
    )
    dataset = scan_folder(data, checkpoint.labels)
    if limit is not None:
        dataset = dataset.subset(limit)
    with TargetProcess(bundle.target, options=bundle.manifest["options"]) as process:
        audit = process.audit(bundle.artifact)
    built, program = reopen(bundle, checkpoint, audit)
    contract = checkpoint.preprocessing
    with display.track("float32 reference", len(dataset)) as advance:
        logits = reference_logits(
            reference_module(checkpoint.model), dataset, contract, progress=advance
        )
    yardstick = Yardstick(
        dataset=dataset,
        logits=logits,
        accuracy=accuracy(logits, labels_of(dataset)),
        parity_images=SAMPLE_SIZE,
    )
    row = _verified(bundle, built, program, yardstick, contract, display)
    return judged(row, (_same_contract(bundle, contract), *row.gates, _unchanged(bundle)))


def check_goldens(root: Path) -> Row:
    """Judge a bundle with nothing but itself: preprocessing and outputs of its golden vectors.

    Raises:
        InputError: the bundle is damaged.
        MissingDependencyError: the target's packages are missing.
    """
    bundle = read_bundle(root)
    target = exporter(bundle.target, **bundle.manifest["options"])
    require(target)
    goldens = bundle.goldens()
    logits = _golden_logits(bundle, goldens)
    gates = (
        _bound(
            "resized bytes that differ",
            _pixels_apart(bundle, goldens),
            0.0,
            "max",
            "resizing is integer arithmetic, the same everywhere",
        ),
        _bound(
            "input tensor max abs difference",
            _tensors_apart(bundle, goldens),
            1e-5,
            "max",
            "three float32 operations on values of a few units",
        ),
        *_output_gates(bundle.precision, goldens, logits),
        _unchanged(bundle),
    )
    return judged(_row(bundle, target.evaluation), gates)


def time_bundles(
    roots: Sequence[Path], *, threads: int, runs: int, warmup: int, display: QuietDisplay
) -> list[dict[str, Any]]:
    """Time bundles, of one model or of several, against each other on the host.

    Each is given its own golden image.

    Raises:
        InputError: a bundle is damaged, listed twice, or cannot be timed here.
        MissingDependencyError: a target's packages are missing.
    """
    if len({root.resolve() for root in roots}) < len(roots):
        raise InputError("a bundle is listed twice: give each of them once")
    bundles = {root: read_bundle(root) for root in roots}
    entries = [_entry(bundle) for bundle in bundles.values()]
    with display.track("time", ROUNDS) as advance:
        measured = measure_latency(
            entries, threads=threads, runs=runs, warmup=warmup, progress=lambda: advance(1)
        )
    float32 = {
        _model(bundle): root for root, bundle in bundles.items() if bundle.precision == "fp32"
    }

    def base_of(root: Path) -> Path | None:
        bundle = bundles[root]
        return root if bundle.precision == "fp32" else float32.get(_model(bundle))

    rows = []
    for root, latency in with_speedups(measured, base_of).items():
        bundle = bundles[root]
        quantized = parse_precision(bundle.precision).computes_in_integers
        rows.append(
            {
                "bundle": str(root),
                "target": bundle.target,
                "precision": bundle.precision,
                "latency": latency.to_dict(),
                "notes": list(latency_notes(latency, quantized=quantized)),
            }
        )
    return rows


def _model(bundle: Bundle) -> tuple[str, str, int]:
    """What two bundles have in common that differ in precision."""
    source = bundle.manifest["source"]
    return bundle.target, source["sha256"], source["image_size"]


def _row(bundle: Bundle, evaluation: Evaluation) -> Row:
    """A row without measurements."""
    return Row(
        target=bundle.target,
        precision=bundle.precision,
        status="ok",
        bundle=bundle.root.name,
        artifact=f"{bundle.root.name}/{bundle.artifact.name}",
        evaluation=evaluation,
    )


def _verified(
    bundle: Bundle,
    built: Built,
    program: Program,
    yardstick: Yardstick,
    contract: Preprocessing,
    display: QuietDisplay,
) -> Row:
    """Judge the artifact on images prepared as the bundle says; one that refuses them fails."""
    target, count = built.cell.exporter, len(yardstick.dataset)
    images = sample_images(yardstick.dataset, contract, yardstick.parity_images)
    comparison = compare_with(program, target, yardstick, images)
    try:
        with display.track(f"evaluate {built.cell.name}", count) as advance:
            verified = verify(
                built,
                comparison,
                yardstick,
                bundle.preprocessing,
                out=bundle.root.parent,
                progress=advance,
            )
    except TinyVitEdgeError as error:
        if isinstance(error, UnsupportedError) or not error.in_child:
            raise
        refusal = _bound("artifact takes the images (1 is yes)", 0.0, 1.0, "min", str(error))
        return judged(_row(bundle, target.evaluation), (refusal,))
    return verified.row


def _same_contract(bundle: Bundle, contract: Preprocessing) -> Gate:
    return _bound(
        "preprocessing as the checkpoint's (1 is yes)",
        float(bundle.preprocessing == contract),
        1.0,
        "min",
        "the app prepares photos by preprocess.json, the model was made for the checkpoint's way",
    )


def _entry(bundle: Bundle) -> Entry[Path]:
    options = bundle.manifest["options"]
    target = exporter(bundle.target, **options)
    require(target)
    if not target.timed:
        raise InputError(
            f"{bundle.root}: {bundle.target} cannot be timed on this host: its runtime is not here"
        )
    return Entry(
        key=bundle.root,
        target=bundle.target,
        artifact=bundle.artifact,
        image=bundle.goldens()[0].tensor[None],
        options=options,
    )


def _golden_logits(bundle: Bundle, goldens: Sequence[GoldenImage]) -> FloatArray:
    # the recorded tensors: a wrong contract is its own gate, and would hide the artifact's
    tensors = np.stack([golden.tensor for golden in goldens])
    with TargetProcess(bundle.target, options=bundle.manifest["options"]) as process:
        process.load(bundle.artifact)
        return process.run(tensors)


def _tensor(bundle: Bundle, golden: GoldenImage) -> FloatArray:
    pixels = resize(Image.fromarray(golden.decoded), bundle.preprocessing)
    return normalise(pixels, bundle.preprocessing)


def _pixels_apart(bundle: Bundle, goldens: Sequence[GoldenImage]) -> float:
    count = 0
    for golden in goldens:
        found = resize(Image.fromarray(golden.decoded), bundle.preprocessing)
        same_shape = found.shape == golden.resized.shape
        count += np.count_nonzero(found != golden.resized) if same_shape else found.size
    return float(count)


def _tensors_apart(bundle: Bundle, goldens: Sequence[GoldenImage]) -> float:
    pairs = [(_tensor(bundle, golden), golden.tensor) for golden in goldens]
    if any(found.shape != recorded.shape for found, recorded in pairs):
        return float("inf")
    return max(float(np.abs(found - recorded).max()) for found, recorded in pairs)


def _output_gates(
    precision: str, goldens: Sequence[GoldenImage], logits: FloatArray
) -> tuple[Gate, ...]:
    recorded = np.stack([_recorded(golden) for golden in goldens])
    exact = precision == "fp32"
    # weights alone are integers: the arithmetic is that of fp16
    like = "fp16" if parse_precision(precision).weight_only else precision
    return (
        _bound(
            "SQNR against recorded logits",
            metrics.sqnr_db(recorded, logits),
            _GOLDEN_SQNR_DB.get(like, _GOLDEN_INT8_SQNR_DB),
            "min",
            _GOLDEN_SQNR_REASON.get(like, _GOLDEN_INT8_SQNR_REASON),
        ),
        _bound(
            "top-1 agreement with recorded logits",
            metrics.top1_agreement(recorded, logits),
            1.0 if exact else 2 / 3,
            "min",
            "float32 rounding changes no class"
            if exact
            else "one photo of three may lie between two classes",
        ),
    )


def _unchanged(bundle: Bundle) -> Gate:
    same = sha256_of(bundle.artifact) == bundle.manifest["artifact"]["sha256"]
    return _bound(
        "artifact as in the manifest (1 is yes)",
        float(same),
        1.0,
        "min",
        "what was measured when the bundle was made holds for that file alone",
    )


def _recorded(golden: GoldenImage) -> FloatArray:
    if golden.artifact_logits is None:
        raise InputError(f"golden {golden.name}: no artifact logits; export again")
    return golden.artifact_logits


def _bound(
    name: str, measured: float, bound: float, direction: Literal["min", "max"], reason: str
) -> Gate:
    return Gate(
        name=name,
        passed=measured <= bound if direction == "max" else measured >= bound,
        measured=measured,
        bound=bound,
        direction=direction,
        reason=reason,
    )
