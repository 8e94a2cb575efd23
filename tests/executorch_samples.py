"""What tests of the ExecuTorch target look at: a small program, lowered once a precision."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import torch

from tinyvit_edge.configuration import TinyVitConfig
from tinyvit_edge.deployment import DeploymentForm, FormOptions, deployment_form
from tinyvit_edge.exporters import Exported
from tinyvit_edge.exporters.executorch import ExecuTorchExporter
from tinyvit_edge.modeling import TinyVitForImageClassification
from tinyvit_edge.precision import PRECISIONS
from tinyvit_edge.preprocessing import preset
from tinyvit_edge.program import Program
from tinyvit_edge.quantization.calibration import Calibration
from tinyvit_edge.quantization.ptq import quantize

Calibrate = Callable[[DeploymentForm, list[torch.Tensor]], Calibration]
MakeProgram = Callable[[str, FormOptions], Program]

SIZE = 32
SUPPORTED = [name for name in PRECISIONS if name not in ExecuTorchExporter().unsupported]


@dataclass(frozen=True, slots=True, kw_only=True)
class Written:
    """An exported program and its file."""

    program: Program
    path: Path
    exported: Exported

    def logits(self, images: torch.Tensor) -> torch.Tensor:
        runner = ExecuTorchExporter().load(self.path, threads=1)
        return torch.from_numpy(np.concatenate([runner(image[None].numpy()) for image in images]))

    def reference(self, images: torch.Tensor) -> torch.Tensor:
        with torch.no_grad():
            return torch.cat([self.program.module(image[None]) for image in images])


@cache
def program_maker(randomise: Callable[..., Any], calibrated: Calibrate) -> MakeProgram:
    """`make(precision, options)`: a model of 32 px whose windows need padding."""
    torch.manual_seed(0)
    config = TinyVitConfig(
        image_size=SIZE,
        hidden_sizes=[16, 32],
        depths=[1, 1],
        num_heads=[1, 2],
        window_sizes=[3, 3],
        num_labels=5,
    )
    model = randomise(TinyVitForImageClassification(config))

    def make(precision: str, options: FormOptions) -> Program:
        form = deployment_form(model, options=options)
        # lowering takes seconds, and the stem and the downsampling have all that this stage has
        form.stages[0].blocks = torch.nn.Sequential()
        return program_of(form, precision, SIZE, calibrated)

    return make


def program_of(form: DeploymentForm, precision: str, size: int, calibrated: Calibrate) -> Program:
    """A form as a program, calibrated on 4 images of noise where the precision asks for it."""
    row, images = PRECISIONS[precision], images_of(4, seed=1, size=size)
    return Program(
        module=quantize(
            form,
            row,
            calibration=calibrated(form, [images]) if row.calibrated else None,
            dynamic_range=ExecuTorchExporter().form.dynamic_range,
        ),
        precision=row,
        preprocessing=preset("microsoft", size),
        labels=("ant", "bee", "cat", "dog", "émeu"),
        model_name="tiny",
        weights_sha256="ab" * 32,
    )


def images_of(count: int, seed: int = 2, size: int = SIZE) -> torch.Tensor:
    """Images of noise, (count, 3, size, size)."""
    return torch.randn(count, 3, size, size, generator=torch.Generator().manual_seed(seed))


@cache
def written_files(
    make_program: MakeProgram, mktemp: Callable[[str], Path]
) -> Mapping[str, Written]:
    """One file per precision, all through XNNPACK."""
    target, folder = ExecuTorchExporter(), mktemp("executorch")
    files = {}
    for name in SUPPORTED:
        program, path = make_program(name, target.form), folder / f"{name}.pte"
        exported = target.export(program, path)
        files[name] = Written(program=program, path=path, exported=exported)
    return files
