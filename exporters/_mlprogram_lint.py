"""A Core ML package by Apple's published rules for the Neural Engine.

The rules are those of "Deploying Transformers on the Apple Neural Engine" (Apple Machine Learning
Research, 2022). Core ML alone decides where an operator runs: this is what speaks for and against.
Operators that no TinyViT needs, look-ups and control flow among them, are refused by the reader.
"""

from __future__ import annotations

from collections.abc import Iterable
from math import prod
from pathlib import Path

from tinyvit_edge.exporters._mlprogram import MlProgram, Operation
from tinyvit_edge.exporters._mlprogram_reader import load_program
from tinyvit_edge.exporters._mlprogram_weights import TensorType
from tinyvit_edge.lint import Finding

__all__ = ["lint"]

_MAX_RANK = 5
_NARROW = 32  # elements: rows are padded to 64 bytes
_MOST_NARROW, _MOST_MOVED, _MOST_WIDE = 0.10, 0.10, 0.05  # of the bytes that operators write
_DEVICE = "Neural Engine"
_PRECISION = "export at fp16 or below: the Neural Engine has no float32"
_NARROWED = "most is float16 already: in packages made here the rest is the image, normalised"
_LAYOUT = "--layout ane, channels first (1, C, 1, S), needs fewer: for fp32 and fp16"
_LAID_OUT = "channels come first already: what is left cuts maps into windows and joins them"
_ITEM = {"float16": 2, "float32": 4, "int8": 1, "uint8": 1, "int32": 4, "bool": 1}


def lint(path: Path) -> tuple[Finding, ...]:
    """Judge an ``.mlpackage``.

    Raises:
        InputError: the package is not readable.
    """
    program = load_program(path)
    written = [
        (operation, declared)
        for operation in program.operations
        for declared in operation.outputs.values()
        if declared is not None
    ]
    total = sum(_bytes(declared) for _, declared in written) or 1
    wide = sum(
        _bytes(declared)
        for operation, declared in written
        if declared.dtype == "float32" and operation.name not in program.outputs
    )
    high = sum(len(declared.shape) > _MAX_RANK for _, declared in written)
    narrow = _share(total, (d for _, d in written if len(d.shape) > 2 and d.shape[-1] < _NARROW))
    moved = _share(total, (d for operation, d in written if _moves(program, operation)))
    return (
        Finding(
            rule="rank",
            device=_DEVICE,
            passed=not high,
            found=f"{high} of {len(written)} tensors of rank above {_MAX_RANK}",
            remedy="cut and join windows with tensors of rank 4, as the deployment form does",
        ),
        Finding(
            rule="float16",
            device=_DEVICE,
            passed=wide <= _MOST_WIDE * total,  # the image itself is float32
            found=f"{100 * wide / total:.1f} % of the bytes written are float32",
            remedy=_PRECISION if 2 * wide > total else _NARROWED,
        ),
        Finding(
            rule="last axis",
            device=_DEVICE,
            passed=narrow <= _MOST_NARROW,
            found=f"{100 * narrow:.1f} % of the bytes written have a last axis under {_NARROW}",
            remedy=f"keep an axis of {_NARROW} and more last: shorter ones are padded to 64 bytes",
        ),
        Finding(
            rule="movement",
            device=_DEVICE,
            passed=moved <= _MOST_MOVED,
            found=f"{100 * moved:.1f} % of the bytes written are by transposes, and by reshapes "
            "that change the last axis",
            remedy=_LAID_OUT if _is_channels_first(program) else _LAYOUT,
        ),
    )


def _moves(program: MlProgram, operation: Operation) -> bool:
    """Whether an operator copies a tensor for the sake of its layout."""
    if operation.type == "transpose":
        return True
    if operation.type != "reshape":
        return False
    source = operation.arguments["x"]
    before = program.types[source] if isinstance(source, str) else None
    after = operation.outputs[operation.name]
    return before is not None and after is not None and before.shape[-1:] != after.shape[-1:]


def _is_channels_first(program: MlProgram) -> bool:
    """Whether a convolution gives tokens, (1, C, 1, S): it then stands for a Linear layer."""
    made = [step.outputs[step.name] for step in program.operations if step.type == "conv"]
    return any(
        one is not None and len(one.shape) == 4 and one.shape[2] == 1 < one.shape[3] for one in made
    )


def _share(total: int, tensors: Iterable[TensorType]) -> float:
    return sum(map(_bytes, tensors)) / total


def _bytes(tensor: TensorType) -> int:
    return _ITEM[tensor.dtype] * prod(tensor.shape)
