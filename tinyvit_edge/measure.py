"""From logits to the losses of a report."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch
from torch import nn

from tinyvit_edge import metrics
from tinyvit_edge.data import at_a_time
from tinyvit_edge.gates import Sensitivity
from tinyvit_edge.quantization.hooks import attached
from tinyvit_edge.quantization.qdq import DynamicLinear, StaticLayer
from tinyvit_edge.report import Accuracy, Conversion, Int8, Quantization
from tinyvit_edge.types import FloatArray

if TYPE_CHECKING:
    from tinyvit_edge.exporters import Audit
    from tinyvit_edge.program import Program

__all__ = [
    "accuracy",
    "conversion_loss",
    "int8_of",
    "quantization_loss",
    "sensitivity",
    "torch_logits",
]


def torch_logits(module: nn.Module, images: FloatArray) -> FloatArray:
    """Logits (n, classes) of normalised images (n, 3, S, S), by a module in eval mode.

    One image at a time where the module quantizes at run time over the whole tensor, because
    that is what a phone does; in batches otherwise.
    """
    with torch.inference_mode():
        chunks = torch.split(torch.from_numpy(images), _batch_size(module, images))
        logits: FloatArray = torch.cat([module(chunk) for chunk in chunks]).numpy()
    return logits


def conversion_loss(reference: FloatArray, measured: FloatArray, *, name: str) -> Conversion:
    """Artifact against the same-precision PyTorch program, which `name` describes."""
    if not metrics.is_finite(measured):
        return Conversion(reference=name)
    return Conversion(
        sqnr_db=metrics.sqnr_db(reference, measured),
        max_abs=metrics.max_abs(reference, measured),
        cosine=metrics.cosine(reference, measured),
        kl=metrics.kl_divergence(reference, measured),
        top1_agreement=metrics.top1_agreement(reference, measured),
        reference=name,
    )


def quantization_loss(reference: FloatArray, measured: FloatArray) -> Quantization:
    """Artifact against the float32 PyTorch model."""
    if not metrics.is_finite(measured):
        return Quantization()
    return Quantization(
        sqnr_db=metrics.sqnr_db(reference, measured),
        kl=metrics.kl_divergence(reference, measured),
        top1_agreement=metrics.top1_agreement(reference, measured),
    )


def accuracy(logits: FloatArray, labels: Sequence[int | None]) -> Accuracy | None:
    """Top-1 over the images that have a label; None where none has."""
    known = [index for index, label in enumerate(labels) if label is not None]
    if not known:
        return None
    wanted = [label for label in labels if label is not None]
    return Accuracy(top1=metrics.top_k_accuracy(logits[known], wanted, 1), n=len(known))


def sensitivity(
    program: Program, images: FloatArray, logits: FloatArray, *, rounding: float
) -> Sensitivity | None:
    """How far an int8 program moves when its arithmetic rounds differently; None if it is float.

    Each quantized layer gets its input with noise of `rounding` times the input's standard
    deviation. Noise on the image alone would tell nothing: the first layer rounds it away.

    Args:
        program: the same-precision reference.
        images: normalised images (n, 3, S, S).
        logits: the program's own logits (n, classes) of these images.
        rounding: see `Exporter.rounding`.
    """
    if not program.precision.computes_in_integers:
        return None
    generator = torch.Generator().manual_seed(0)

    def disturb(_: nn.Module, inputs: tuple[torch.Tensor, ...]) -> tuple[torch.Tensor]:
        (x,) = inputs
        return (x + rounding * x.std() * torch.randn(x.shape, generator=generator),)

    layers = [m for m in program.module.modules() if isinstance(m, (DynamicLinear, StaticLayer))]
    hooks = [layer.register_forward_pre_hook(disturb) for layer in layers]
    with attached(hooks):
        moved = torch_logits(program.module, images)
    return Sensitivity(
        rounding=rounding,
        sqnr_db=metrics.sqnr_db(logits, moved),
        top1_agreement=metrics.top1_agreement(logits, moved),
    )


def int8_of(audit: Audit) -> Int8:
    """The two fractions of an audit."""
    return Int8(
        weight_bytes_fraction=audit.int8_weight_fraction, mac_fraction=audit.int8_mac_fraction
    )


def _batch_size(module: nn.Module, images: FloatArray) -> int:
    per_tensor = any(
        isinstance(layer, DynamicLinear) and layer.granularity == "tensor"
        for layer in module.modules()
    )
    return 1 if per_tensor else at_a_time(images.shape[-1])
