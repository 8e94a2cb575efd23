"""A program: one deployment-form module at one precision, ready for an exporter.

The same `Program.module` is what every exporter converts and what every artifact is compared
with: it *is* the same-precision reference. So the difference between it and the artifact is
conversion loss, and the difference between it and the float32 module is quantization loss.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

if TYPE_CHECKING:
    from torch.export import ExportedProgram

    from tinyvit_edge.checkpoint import Checkpoint
    from tinyvit_edge.deployment import FormOptions
    from tinyvit_edge.precision import Precision
    from tinyvit_edge.preprocessing import Preprocessing
    from tinyvit_edge.quantization.calibration import Calibration
    from tinyvit_edge.quantization.coded import Coded
    from tinyvit_edge.quantization.moments import Moments

__all__ = ["INPUT_NAME", "OUTPUT_NAME", "Program", "build_program"]

INPUT_NAME = "image"
OUTPUT_NAME = "logits"


@dataclass(frozen=True, slots=True, kw_only=True)
class Program:
    """What an exporter gets."""

    module: nn.Module
    """In eval mode: (1, 3, S, S) float32, normalised, to logits (1, classes) float32. At
    ``fp16`` its weights are float32 tensors holding values that float16 represents exactly. Where
    weights are integers its layers are those of `tinyvit_edge.quantization.qdq` or, under 8 bits,
    `tinyvit_edge.quantization.coded`."""
    precision: Precision
    preprocessing: Preprocessing
    labels: tuple[str, ...]
    model_name: str
    """Variant name, for the artifact's own metadata."""
    weights_sha256: str

    def example_input(self) -> Tensor:
        """A contiguous (1, 3, S, S) float32 example; its values are irrelevant."""
        size = self.preprocessing.size
        generator = torch.Generator().manual_seed(0)
        return torch.randn(1, 3, size, size, generator=generator)

    def exported(self) -> ExportedProgram:
        """The module as a `torch.export` graph with static shapes."""
        with torch.no_grad():
            return torch.export.export(self.module, (self.example_input(),), strict=False)


def build_program(
    checkpoint: Checkpoint,
    precision: Precision,
    *,
    form: FormOptions,
    calibration: Calibration | None = None,
    moments: Moments | None = None,
    coded: Mapping[str, Coded] | None = None,
) -> Program:
    """Bring a checkpoint into a target's form and quantize it.

    Args:
        checkpoint: the reference model, its labels and preprocessing.
        precision: the row to apply.
        form: how the target wants the deployment form.
        calibration: ranges from `calibrate`, where ``precision.calibrated``.
        moments: of the layers' inputs, where ``precision.coded``.
        coded: weights that were rounded before, in place of `moments`.

    Raises:
        InputError: ranges or moments are needed and missing.
    """
    from tinyvit_edge.deployment import deployment_form
    from tinyvit_edge.quantization.ptq import quantize
    from tinyvit_edge.quantization.rounding import round_weights

    exact = deployment_form(
        checkpoint.model, options=form, image_size=checkpoint.preprocessing.size
    )
    if precision.coded and coded is None:
        coded = round_weights(exact, precision, moments)
    module = quantize(
        exact,
        precision,
        calibration=calibration,
        coded=coded,
        dynamic_range=form.dynamic_range,
        requantize_weights=form.requantize_weights,
        linear_outputs=form.linear_outputs,
        half_biases=form.half_biases,
    )
    return Program(
        module=module,
        precision=precision,
        preprocessing=checkpoint.preprocessing,
        labels=checkpoint.labels,
        model_name=checkpoint.variant,
        weights_sha256=checkpoint.sha256,
    )
