"""What each part of the quantization is worth, in PyTorch, before any conversion.

    python benchmarks/ablation.py --data path/to/imagenette/train --json ablation.json

Ranges and moments come from evenly spaced photos of the folder; the loss is measured on every
20th, which the bundled weights were not trained on and which give no ranges. ``--tuned`` adds what
``quantize qat`` of the same folder and hold-out wrote. A Markdown table goes to stdout.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Iterator
from copy import deepcopy
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, get_args

import numpy as np
import torch
from torch import Tensor, nn

from tinyvit_edge.attention import AttentionBias
from tinyvit_edge.checkpoint import Checkpoint, load_checkpoint
from tinyvit_edge.data import BATCH_SIZE, ImageDataset, load_batches, scan_folder
from tinyvit_edge.deployment import deployment_form
from tinyvit_edge.metrics import sqnr_db, top1_agreement
from tinyvit_edge.precision import PRECISIONS, LayerKind, Precision
from tinyvit_edge.quantization.calibration import (
    Calibration,
    CalibrationOptions,
    calibrate,
    evenly,
    quantizable,
)
from tinyvit_edge.quantization.coded import Coded
from tinyvit_edge.quantization.moments import Moments, collect_moments
from tinyvit_edge.quantization.ptq import quantize
from tinyvit_edge.quantization.qdq import Int8AttentionBias, StaticLayer, replace_layers
from tinyvit_edge.quantization.ranges import METHODS
from tinyvit_edge.quantization.rounding import round_weights
from tinyvit_edge.quantization.sensitivity import measure_layers, ranked
from tinyvit_edge.training.plan import held_out
from tinyvit_edge.types import FloatArray


@dataclass(frozen=True)
class Measured:
    """The photos, and what the float form gives on those that the loss is measured on."""

    calibration: list[Tensor]
    others: list[Tensor]
    labels: Any
    exact: FloatArray


def main() -> None:
    """Parse the command line, measure, print."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--weights", default="imagenette")
    parser.add_argument("--data", type=Path, required=True, help="labelled training photos")
    parser.add_argument("--hold-out", type=int, default=20, help="as train was told")
    parser.add_argument("--calib-images", type=int, default=128)
    parser.add_argument("--tuned", type=Path, help="ranges.json of quantize qat")
    parser.add_argument("--json", type=Path, help="write the rows here, too")
    args = parser.parse_args()
    checkpoint = load_checkpoint(args.weights)
    form = deployment_form(checkpoint.model, image_size=checkpoint.preprocessing.size)
    measured = prepare(checkpoint, form, args)
    rows = []
    tuned = args.tuned and Calibration.read(
        args.tuned, weights_sha256=checkpoint.sha256, preprocessing=checkpoint.preprocessing
    )
    for precision, title, module in modules(form, measured.calibration, tuned):
        rows.append({"precision": precision, "how": title} | judge(module, measured))
        print(rows[-1], file=sys.stderr)
    if args.json is not None:
        args.json.write_text(json.dumps(rows, indent=2) + "\n")
    print(markdown(rows))


def prepare(checkpoint: Checkpoint, form: nn.Module, args: argparse.Namespace) -> Measured:
    """Load both sets of photos, and run the float form."""
    everything = scan_folder(args.data, checkpoint.labels)
    trained_on, rest = held_out(len(everything), args.hold_out)
    others = _pick(everything, rest)

    def load(photos: ImageDataset) -> list[Tensor]:
        batches = load_batches(photos, checkpoint.preprocessing, BATCH_SIZE)
        return [torch.from_numpy(images) for images, _ in batches]

    batches = load(others)
    return Measured(
        calibration=load(_pick(everything, trained_on).subset(args.calib_images)),
        others=batches,
        labels=np.array([sample.label for sample in others.samples]),
        exact=_run(form, batches),
    )


def modules(
    form: nn.Module, calibration: list[Tensor], tuned: Calibration | None
) -> Iterator[tuple[str, str, nn.Module]]:
    """Every quantized form, as precision, what is special about it, and module."""
    biased = deepcopy(form)
    replace_layers(biased, _int8_biases)
    yield "fp32", "attention biases int8", biased
    for title, module in static_modules(form, calibration):
        yield "w8a8", title, module
    if tuned is not None:
        yield "w8a8", "auto, trained", quantize(form, PRECISIONS["w8a8"], calibration=tuned)
    yield "w8", "to the nearest", quantize(form, PRECISIONS["w8"])
    for name in ("w6-lut", "w4-lut", "w4g32"):
        row = PRECISIONS[name]
        layers = quantizable(form, row)
        moments = Moments(
            layers=collect_moments(form, layers, calibration), images=sum(map(len, calibration))
        )
        coded = round_weights(form, row, moments)
        plain = {key: _nearest(layers[key], one, row) for key, one in coded.items()}
        unshifted = {key: replace(one, bias=plain[key].bias) for key, one in coded.items()}
        for title, weights in (
            ("each to the nearest of the same grid", plain),
            ("compensated", unshifted),
            ("compensated, with the mean in the bias", coded),
        ):
            yield name, title, quantize(form, row, coded=weights)


def static_modules(form: nn.Module, calibration: list[Tensor]) -> Iterator[tuple[str, nn.Module]]:
    """Forms with int8 weights and activations."""
    row = PRECISIONS["w8a8"]
    for method in (*METHODS, "auto"):
        found = calibrate(form, calibration, CalibrationOptions(method=method))
        yield method, quantize(form, row, calibration=found)
    conditioned = calibrate(form, calibration, CalibrationOptions(strength=0.5))
    yield "auto, conditioning 0.5", quantize(form, row, calibration=conditioned)
    every = replace(row, layers=get_args(LayerKind))
    local = calibrate(form, calibration, precision=every)
    yield "auto, local convolutions int8, too", quantize(form, every, calibration=local)
    real = quantize(form, row, calibration=found, linear_outputs="float")
    yield "auto, Linear layers give float (ONNX)", real
    biased = quantize(form, row, calibration=found)
    replace_layers(biased, lambda name, one: _real_biases(form, name, one))
    yield "auto, attention biases in float", biased
    rounded = quantize(form, row, calibration=found)
    replace_layers(rounded, lambda name, one: _real_weights(form, name, one))
    yield "auto, weights in float", rounded
    layers = measure_layers(form, row, found, evenly(calibration, 16))
    for count in (1, 4, 16):
        left = {layer.name: "" for layer in ranked(layers)[:count]}
        mixed = replace(found, left_float=left)
        title = f"auto, {count} layers in float (mixed)"
        yield title, quantize(form, PRECISIONS["w8a8-mixed"], calibration=mixed)


class _RealWeights(nn.Module):
    """A static layer whose activations alone are int8."""

    def __init__(self, layer: nn.Linear | nn.Conv2d, static: StaticLayer) -> None:
        super().__init__()
        self.layer, self.static = layer, static

    def forward(self, x: Tensor) -> Tensor:
        given, result = self.static.input_params, self.static.output_params
        assert result is not None
        x = self.layer(given.dequantize(given.quantize(x)))
        return result.dequantize(result.quantize(x))


def _real_weights(form: nn.Module, name: str, static: nn.Module) -> nn.Module | None:
    if not isinstance(static, StaticLayer):
        return None
    layer = form.get_submodule(name)
    assert isinstance(layer, (nn.Linear, nn.Conv2d))
    return _RealWeights(layer, static)


def _int8_biases(_: str, table: nn.Module) -> nn.Module | None:
    return Int8AttentionBias(table) if isinstance(table, AttentionBias) else None


def _real_biases(form: nn.Module, name: str, table: nn.Module) -> nn.Module | None:
    return form.get_submodule(name) if isinstance(table, Int8AttentionBias) else None


def _nearest(layer: nn.Linear | nn.Conv2d, coded: Coded, precision: Precision) -> Coded:
    """The same grid, with each weight at its nearest value."""
    weight, bias = layer.weight.detach(), layer.bias
    assert bias is not None
    if coded.table is not None:
        edges = (coded.table[1:] + coded.table[:-1]) / 2
        codes = torch.searchsorted(edges, weight.contiguous()).to(torch.uint8)
    else:
        assert coded.scale is not None
        scale = coded.scale.repeat_interleave(weight.shape[1] // coded.scale.shape[1], 1)
        most = 2 ** (precision.bits - 1) - 1
        codes = torch.round(weight / scale).clamp(-most - 1, most).to(torch.int8)
    return replace(coded, codes=codes, bias=bias.detach())


def judge(module: nn.Module, measured: Measured) -> dict[str, float]:
    """Loss against the float form on the photos that gave no ranges."""
    found = _run(module, measured.others)
    right, now = (
        float((logits.argmax(1) == measured.labels).mean()) for logits in (measured.exact, found)
    )
    return {
        "sqnr_db": sqnr_db(measured.exact, found),
        "agreement": top1_agreement(measured.exact, found),
        "drop": right - now,
    }


def markdown(rows: list[dict[str, Any]]) -> str:
    """The table."""
    lines = [
        "| precision | ranges or rounding | SQNR, dB | agreement, % | drop, points |",
        "| --- | --- | --: | --: | --: |",
    ]
    for row in rows:
        lines.append(
            f"| {row['precision']} | {row['how']} | {row['sqnr_db']:.1f}"
            f" | {100 * row['agreement']:.2f} | {100 * row['drop']:.2f} |"
        )
    return "\n".join(lines)


def _pick(photos: ImageDataset, indices: Any) -> ImageDataset:
    return replace(photos, samples=tuple(photos.samples[int(index)] for index in indices))


def _run(module: nn.Module, batches: list[Tensor]) -> FloatArray:
    with torch.inference_mode():
        logits: FloatArray = torch.cat([module(batch) for batch in batches]).numpy()
    return logits


if __name__ == "__main__":
    main()
