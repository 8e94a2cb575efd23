"""What tests of the ONNX target look at: the small program, exported once a precision."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from tinyvit_edge.exporters import Exported
from tinyvit_edge.program import Program

SIZE = 64
BLOCKS = 4  # of the small model: each has a local convolution and a table of attention biases
LABELS = tuple(f"Größe {index}" for index in range(10))


@dataclass(frozen=True)
class Built:
    """A saved file and what it was made of."""

    program: Program
    path: Path
    exported: Exported

    def torch_logits(self, image: Tensor) -> Tensor:
        """Logits of the program itself."""
        with torch.inference_mode():
            logits: Tensor = self.program.module(image)
        return logits

    def model(self) -> Any:
        """The file as onnx reads it."""
        import onnx

        return onnx.load(self.path)


Build = Callable[[str], Built]
