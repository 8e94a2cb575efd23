"""What `latency.py` times beside this package's artifacts: yardsticks, and other tools' exports."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from stock_quantization import STOCK
from torch import Tensor, nn

from tinyvit_edge.checkpoint import Checkpoint, export_state_dict
from tinyvit_edge.compat import tolerate_torchvision
from tinyvit_edge.exporters import exporter
from tinyvit_edge.precision import parse_precision
from tinyvit_edge.preprocessing import Preprocessing
from tinyvit_edge.program import Program
from tinyvit_edge.quantization.calibration import Calibration, CalibrationOptions, calibrate
from tinyvit_edge.quantization.ptq import quantize

__all__ = [
    "COMPARED",
    "Gemms",
    "build_gemms",
    "macs_of",
    "orientation",
    "stock_builds",
    "timm_twin",
]

_COPIES = 5  # of the image's rows: as many as make loading the weights cheap
COMPARED: dict[str, str] = {
    "mobilenetv3_large_100": "MobileNetV3-Large",
    "repvit_m0_9": "RepViT-M0.9",
}
"""timm's name -> the name in the table: models of this size that engineers know the speed of."""


class Gemms(nn.Module):
    """A chain of square Linear layers, dressed as an image classifier.

    What a runtime reaches here is its matrix products at their best, and hardly anything else.
    """

    shifts: Tensor

    def __init__(self, width: int, depth: int) -> None:
        super().__init__()
        self.width = width
        self.register_buffer("shifts", torch.linspace(-0.1, 0.1, _COPIES).reshape(-1, 1, 1))
        self.layers = nn.Sequential(*(nn.Linear(width, width) for _ in range(depth)))
        for layer in self.layers:
            assert isinstance(layer, nn.Linear)
            nn.init.normal_(layer.weight, std=width**-0.5)  # keeps the variance

    def forward(self, image: Tensor) -> Tensor:
        """Map (1, 3, S, S) to (1, width), the first row of the products."""
        rows = image.reshape(1, -1, self.width) + self.shifts  # (copies, n, width)
        logits: Tensor = self.layers(rows.reshape(-1, self.width))[:1]
        return logits

    def macs(self, image_size: int) -> int:
        """Multiply-accumulates for one image."""
        rows = _COPIES * 3 * image_size**2 // self.width
        return rows * self.width**2 * len(self.layers)


def build_gemms(target: str, precision: str, width: int, depth: int, path: Path) -> Gemms:
    """Export a chain with this package's exporter of a target, at ``fp32`` or ``w8a8``."""
    torch.manual_seed(0)
    row, made = parse_precision(precision), exporter(target)
    chain = Gemms(width, depth).eval()
    contract = Preprocessing(size=224)
    calibration = _ranges(chain) if row.calibrated else None
    program = Program(
        module=quantize(
            copy.deepcopy(chain),
            row,
            calibration=calibration,
            dynamic_range=made.form.dynamic_range,
            requantize_weights=made.form.requantize_weights,
            linear_outputs=made.form.linear_outputs,
        ),
        precision=row,
        preprocessing=contract,
        labels=tuple(map(str, range(width))),
        model_name=f"gemms-{width}",
        weights_sha256="",
    )
    path.parent.mkdir(parents=True, exist_ok=True)
    made.export(program, path)
    return chain


def _ranges(chain: Gemms) -> Calibration:
    image = torch.randn(1, 3, 224, 224, generator=torch.Generator().manual_seed(1))
    return calibrate(chain, [image], CalibrationOptions(method="min-max"))


def timm_twin(checkpoint: Checkpoint) -> nn.Module:
    """Build timm's own TinyViT with a checkpoint's weights: what a user starts from today."""
    tolerate_torchvision()
    import timm

    state = export_state_dict(checkpoint.model, "timm")
    twin: nn.Module = timm.create_model(checkpoint.variant, num_classes=len(checkpoint.labels))
    twin.load_state_dict(state)
    return twin.eval()


def orientation() -> Iterator[tuple[str, nn.Module]]:
    """Models to compare speeds with, by their names in the table; random weights."""
    tolerate_torchvision()
    import timm

    for name, title in COMPARED.items():
        torch.manual_seed(0)
        model = timm.create_model(name, num_classes=1000).eval()
        if hasattr(model, "fuse"):
            model.fuse()  # RepViT's parallel branches become one convolution for inference
        yield title, model


Build = Callable[[nn.Module, NDArray[np.float32], Path], None]


def stock_builds(target: str) -> Iterator[tuple[str, Build, str]]:
    """A target's own tools: title, builder, and the type it computes in."""
    for one in STOCK[target]:
        if "16" not in one.title:  # see docs/quantization.md: many times as slow
            yield one.title, one.build, "float32" if one.name.endswith("-float") else "int8"


def macs_of(model: nn.Module, image_size: int) -> int:
    """Multiply-accumulates of a model's convolutions and Linear layers for one image."""
    total = 0

    def count(layer: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> None:
        nonlocal total
        if isinstance(layer, nn.Conv2d):
            total += output.numel() * layer.weight[0].numel()
        elif isinstance(layer, nn.Linear):
            total += output.numel() * layer.in_features

    hooks = [layer.register_forward_hook(count) for layer in model.modules()]
    with torch.no_grad():
        model(torch.zeros(1, 3, image_size, image_size))
    for hook in hooks:
        hook.remove()
    return total
