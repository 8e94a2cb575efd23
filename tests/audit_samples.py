"""What PyTorch says of a program's int8 layers, and programs whose files an audit must refuse."""

from __future__ import annotations

from copy import deepcopy
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn

from tinyvit_edge.exporters import Audit
from tinyvit_edge.gates import judge_coverage
from tinyvit_edge.program import Program
from tinyvit_edge.quantization.accounting import integer_demand
from tinyvit_edge.quantization.qdq import QuantParams, StaticLayer


@dataclass(frozen=True)
class Asked:
    """Conversions that the static layers of a program ask for, seen by hooks."""

    layers: int
    rounded: int
    """Layers whose result is rounded to 8 bits."""
    inputs: int
    """Different pairs of a tensor and its parameters that layers read."""
    chained: int
    """Layers whose input is another's output, rounded alike: nothing to convert."""


def asked(program: Program) -> Asked:
    """Run a program and look at what its static layers read and give."""
    seen: list[tuple[Tensor, QuantParams, Tensor, QuantParams | None]] = []

    def note(layer: nn.Module, inputs: tuple[Any, ...], output: Tensor) -> None:
        assert isinstance(layer, StaticLayer)
        # tensors are kept, so that no other gets the same address
        seen.append((inputs[0], layer.input_params, output, layer.output_params))

    layers = [m for m in program.module.modules() if isinstance(m, StaticLayer)]
    hooks = [layer.register_forward_hook(note) for layer in layers]
    with torch.no_grad():
        program.module(program.example_input())
    for hook in hooks:
        hook.remove()
    read = {(id(source), params) for source, params, _, _ in seen}
    given = {(id(result), params) for _, _, result, params in seen}
    rounded = sum(layer.output_params is not None for layer in layers)
    return Asked(layers=len(layers), rounded=rounded, inputs=len(read), chained=len(read & given))


def failed(audit: Audit, program: Program) -> set[str]:
    """Names of the gates that an audit fails as a file of a program."""
    demand = integer_demand(program.module, program.example_input())
    return {gate.name for gate in judge_coverage(audit, demand) if not gate.passed}


class _Paired(nn.Module):
    """A module behind a quantize/dequantize pair that no layer asks for."""

    def __init__(self, inner: nn.Module) -> None:
        super().__init__()
        self.inner = inner
        self.params = QuantParams(scale=0.031, zero_point=3)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.inner(self.params.dequantize(self.params.quantize(x)))
        return out


def with_pair(program: Program) -> Program:
    """The program with one pair more, in front of the norm before the classifier."""
    module: Any = deepcopy(program.module)
    module.norm = _Paired(module.norm)
    return replace(program, module=module)
