"""Post-training quantization: a float deployment form and a precision to a quantized module.

``python -m tinyvit_edge.quantization.ptq`` is ``tinyvit-edge quantize ptq``.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from copy import deepcopy
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import torch
from torch import nn

from tinyvit_edge.attention import AttentionBias, HalfBiases
from tinyvit_edge.data import SAMPLE_SIZE
from tinyvit_edge.errors import InputError
from tinyvit_edge.precision import MAX_DROP, PRECISIONS, Precision, parse_precision
from tinyvit_edge.quantization.calibration import (
    Calibration,
    CalibrationOptions,
    LayerRanges,
    quantizable,
)
from tinyvit_edge.quantization.coded import Coded, CodedLayer
from tinyvit_edge.quantization.conditioning import apply_factors
from tinyvit_edge.quantization.qdq import (
    DynamicLinear,
    Int8AttentionBias,
    StaticLayer,
    WeightOnlyLayer,
    replace_layers,
)
from tinyvit_edge.quantization.tuned import apply_tuned

if TYPE_CHECKING:
    from tinyvit_edge.checkpoint import Checkpoint
    from tinyvit_edge.console import QuietDisplay
    from tinyvit_edge.data import ImageDataset

__all__ = ["PtqRequest", "calibrated_precision", "quantize", "run"]


@dataclass(frozen=True, slots=True, kw_only=True)
class PtqRequest:
    """What `run` is asked for."""

    weights: str
    calib: Path
    out: Path
    precision: str = "w8a8"
    data: Path | None = None
    """Photos to measure the loss on."""
    limit: int | None = None
    calib_images: int = SAMPLE_SIZE
    options: CalibrationOptions = field(default_factory=CalibrationOptions)
    max_drop: float = MAX_DROP
    """Budget of a ``-mixed`` row: loss of top-1 on other photos of `calib`, in 0..1."""
    image_size: int | None = None
    preprocessing: Literal["microsoft", "timm"] | None = None


def quantize(
    module: nn.Module,
    precision: Precision,
    *,
    calibration: Calibration | None = None,
    coded: Mapping[str, Coded] | None = None,
    dynamic_range: Literal["token", "tensor"] = "token",
    requantize_weights: bool = False,
    linear_outputs: Literal["int8", "float"] = "int8",
    half_biases: HalfBiases = "float16",
) -> nn.Module:
    """Copy a float deployment form at a precision.

    Args:
        module: float deployment form; it is not changed.
        precision: the row to apply. ``fp32`` gives a plain copy, ``fp16`` one whose weights are
            rounded to half precision and stored as float32.
        calibration: ranges from `calibrate`; needed where ``precision.calibrated``.
        coded: weights from `round_weights`; needed where ``precision.coded``.
        dynamic_range: what one run-time range covers, for ``-dynamic`` rows.
        requantize_weights: give the graph float weights on the int8 grid and a quantize
            operator, for converters that fold the two themselves.
        linear_outputs: what static int8 Linear layers give.
        half_biases: how ``fp16`` stores attention biases.

    Raises:
        InputError: ranges or rounded weights are needed and missing, for all layers or for one.
    """
    module = deepcopy(module)
    half = precision.weights == "float16"
    if precision.quantized:
        replace_layers(module, _int8_attention_bias)
    if half:
        replace_layers(module, _HALF_BIASES[half_biases])
        return _round_to_half(module)
    if not precision.quantized:
        return module
    if precision.coded:
        return _with_codes(module, precision, coded)
    if precision.calibrated and calibration is None:
        raise InputError(f"precision {precision.name!r} needs calibration images: give --calib")
    if calibration is not None and precision.calibrated:
        apply_factors(module, calibration.factors)
        apply_tuned(module, calibration.tuned)
    names = set(quantizable(module, precision)) - set(_left_float(precision, calibration))

    def make(name: str, layer: nn.Module) -> nn.Module | None:
        if name not in names:
            return None
        assert isinstance(layer, (nn.Linear, nn.Conv2d))
        if precision.weight_only:
            return WeightOnlyLayer(layer)
        if calibration is None or not precision.calibrated:
            assert isinstance(layer, nn.Linear)
            return DynamicLinear(layer, granularity=dynamic_range)
        ranges = _ranges(name, calibration)
        given = None if (linear_outputs, type(layer)) == ("float", nn.Linear) else ranges.output
        return StaticLayer(
            layer,
            input_params=ranges.input,
            output_params=given,
            requantize=requantize_weights,
        )

    return replace_layers(module, make).eval()


def _ranges(name: str, calibration: Calibration) -> LayerRanges:
    if name not in calibration.layers:
        raise InputError(f"the calibration has no range for layer {name}: calibrate this model")
    return calibration.layers[name]


def _int8_attention_bias(_: str, module: nn.Module) -> nn.Module | None:
    return Int8AttentionBias(module) if isinstance(module, AttentionBias) else None


def _expanded_int8_attention_bias(_: str, module: nn.Module) -> nn.Module | None:
    return Int8AttentionBias(module, strip=False) if isinstance(module, AttentionBias) else None


def _strip(_: str, module: nn.Module) -> nn.Module | None:
    return module.stripped() if isinstance(module, AttentionBias) else None


_HALF_BIASES: Mapping[HalfBiases, Callable[[str, nn.Module], nn.Module | None]] = {
    "float16": lambda _name, _module: None,
    "float16 strip": _strip,
    "int8": _expanded_int8_attention_bias,
    "int8 strip": _int8_attention_bias,
}


def _with_codes(
    module: nn.Module, precision: Precision, coded: Mapping[str, Coded] | None
) -> nn.Module:
    layers, coded = quantizable(module, precision), coded or {}
    for name, layer in layers.items():
        if name not in coded:
            raise InputError(
                f"precision {precision.name!r} lacks rounded weights of {name}: give --calib"
            )
        if not coded[name].fits(layer.weight, block=precision.block, bits=precision.bits):
            raise InputError(
                f"the rounded weights of {name} are not of this model at {precision.name!r}: "
                "export again"
            )

    def make(name: str, _: nn.Module) -> nn.Module | None:
        if name not in layers:
            return None
        return CodedLayer(layers[name], coded[name], bits=precision.bits)

    return replace_layers(module, make).eval()


def _left_float(precision: Precision, calibration: Calibration | None) -> Collection[str]:
    if not precision.mixed or calibration is None:
        return ()
    if calibration.left_float is None:
        raise InputError(
            f"precision {precision.name!r} needs layers to leave in float32: write the ranges with"
            f" quantize ptq --precision {precision.name}"
        )
    return calibration.left_float


def _round_to_half(module: nn.Module) -> nn.Module:
    for tensor in (*module.parameters(), *module.buffers()):
        if tensor.dtype == torch.float32:
            tensor.data = tensor.data.half().float()
    return module


def run(request: PtqRequest, *, display: QuietDisplay | None = None) -> dict[str, Any]:
    """Calibrate a checkpoint, write the ranges, and measure the loss in PyTorch.

    Returns:
        Facts as JSON values; losses are against the float32 model, before any conversion.

    Raises:
        InputError: bad weights or images, or a precision without calibrated ranges.
    """
    from tinyvit_edge.checkpoint import load_checkpoint
    from tinyvit_edge.console import QuietDisplay
    from tinyvit_edge.data import scan_folder
    from tinyvit_edge.files import check_writable
    from tinyvit_edge.quantization.choose import ChooseRequest, choose

    display = display or QuietDisplay()
    precision = calibrated_precision(request.precision)
    check_writable(request.out.parent)
    checkpoint = load_checkpoint(
        request.weights, image_size=request.image_size, preprocessing=request.preprocessing
    )
    dataset = None
    if request.data is not None:
        dataset = scan_folder(request.data, checkpoint.labels)
        dataset = dataset if request.limit is None else dataset.subset(request.limit)
    asked = ChooseRequest(
        photos=request.calib,
        images=request.calib_images,
        options=request.options,
        mixed=precision if precision.mixed else None,
        max_drop=request.max_drop,
    )
    calibration = choose(checkpoint, asked, display)
    calibration.write(
        request.out, weights_sha256=checkpoint.sha256, preprocessing=checkpoint.preprocessing
    )
    facts = {
        "out": str(request.out),
        "precision": precision.name,
        "layers": len(calibration.layers),
        "calibration_images": calibration.images,
        "method": calibration.method,
    }
    if calibration.left_float is not None:
        facts["left_float"] = dict(calibration.left_float)
        facts["left_float_on"] = {k: dict(v) for k, v in calibration.left_float_on.items()}
    if dataset is not None:
        facts |= _losses(checkpoint, precision, calibration, dataset, display)
    return facts


def calibrated_precision(name: str) -> Precision:
    """Look up a row that has ranges to calibrate.

    Raises:
        InputError: unknown, or without ranges.
    """
    precision = parse_precision(name)
    if not precision.calibrated:
        able = ", ".join(name for name, row in PRECISIONS.items() if row.calibrated)
        raise InputError(f"precision {precision.name!r} has no ranges to calibrate: use {able}")
    return precision


def _losses(
    checkpoint: Checkpoint,
    precision: Precision,
    calibration: Calibration,
    dataset: ImageDataset,
    display: QuietDisplay,
) -> dict[str, Any]:
    from tinyvit_edge.deployment import FormOptions
    from tinyvit_edge.evaluate import labels_of, reference_logits, reference_module
    from tinyvit_edge.measure import accuracy, quantization_loss
    from tinyvit_edge.program import build_program

    program = build_program(checkpoint, precision, form=FormOptions(), calibration=calibration)
    contract = checkpoint.preprocessing
    with display.track("float32 and quantized", 2 * len(dataset)) as advance:
        exact = reference_logits(
            reference_module(checkpoint.model), dataset, contract, progress=advance
        )
        coarse = reference_logits(program.module, dataset, contract, progress=advance)
    loss = quantization_loss(exact, coarse)
    labels = labels_of(dataset)
    before, after = accuracy(exact, labels), accuracy(coarse, labels)
    return {
        "images": len(dataset),
        "sqnr_db": loss.sqnr_db,
        "kl": loss.kl,
        "top1_agreement": loss.top1_agreement,
        "top1_fp32": None if before is None else before.top1,
        "top1_quantized": None if after is None else after.top1,
    }


def main() -> None:
    """Run ``tinyvit-edge quantize ptq`` with this process's arguments."""
    import sys

    from tinyvit_edge.__main__ import main as command_line

    sys.argv[1:1] = ["quantize", "ptq"]
    command_line()


if __name__ == "__main__":
    main()
