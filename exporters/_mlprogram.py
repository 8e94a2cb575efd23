"""Reference evaluator of a saved Core ML package (``.mlpackage`` with an ML program).

Reads what is on disk (``Manifest.json``, ``model.mlmodel``, ``weights/weight.bin``) and runs it
operator by operator with torch, rounding every result to the type that the program declares.
That proves the file: graph, constants, compressed weights, quantization parameters, types and
shapes. It does not prove Core ML's own kernels, so its results are called *reference-evaluated*.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from tinyvit_edge.errors import InputError
from tinyvit_edge.exporters._mlprogram_ops import OPERATORS, TORCH_DTYPES
from tinyvit_edge.exporters._mlprogram_weights import TensorType
from tinyvit_edge.exporters._quiet import first_line

__all__ = ["MlProgram", "Operation"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Operation:
    """One operator that runs; every argument is the name of a value, or of several."""

    type: str
    arguments: Mapping[str, str | tuple[str, ...]]
    outputs: Mapping[str, TensorType | None]
    """Declared types by name; None for what is no tensor."""
    frees: tuple[str, ...] = ()
    """Values that no later operator reads."""

    @property
    def name(self) -> str:
        """Name of the first output."""
        return next(iter(self.outputs))

    def operands(self) -> Iterator[str]:
        """Names of all arguments."""
        for argument in self.arguments.values():
            yield from (argument,) if isinstance(argument, str) else argument


@dataclass(frozen=True, slots=True, kw_only=True)
class MlProgram:
    """A loaded program, ready to run."""

    path: Path
    description: Any
    """``Model_pb2.ModelDescription``: inputs, outputs, metadata."""
    inputs: Mapping[str, TensorType]
    outputs: tuple[str, ...]
    operations: tuple[Operation, ...]
    constants: Mapping[str, Any]
    """Decompressed constants by name: torch tensors (floats as float32), strings, lists."""
    types: Mapping[str, TensorType | None]
    """Declared type of every value by name; None for what is no tensor."""
    stored: Mapping[str, str]
    """Constant -> the dtype that its elements are stored in, before decompression."""
    stored_bytes: Mapping[str, int]
    """Bytes of constant tensors by storage dtype; zero points count in the dtype of their scale."""

    @property
    def metadata(self) -> Mapping[str, str]:
        """The package's user-defined metadata."""
        return dict(self.description.metadata.userDefined)

    def __call__(self, inputs: Mapping[str, NDArray[Any]]) -> dict[str, Any]:
        """Evaluate the program.

        Args:
            inputs: arrays of the declared shapes, by name.

        Returns:
            The outputs by name: NumPy arrays of the declared dtypes; a classifier's label is a
            string and its probabilities are a dictionary.

        Raises:
            InputError: wrong inputs, an operator fails, or a result differs from its declaration.
        """
        values = dict(self.constants)
        for name, declared in self.inputs.items():
            shape = inputs[name].shape if name in inputs else None
            if shape != declared.shape:
                raise InputError(
                    f"{self.path}: input {name!r} has shape {shape} and must have "
                    f"{declared.shape}; check the image size"
                )
            values[name] = _carried(torch.from_numpy(np.array(inputs[name], declared.dtype)))
        with torch.inference_mode():
            for operation in self.operations:
                self._run(operation, values)
        return {name: self._output(name, values[name]) for name in self.outputs}

    def _run(self, operation: Operation, values: dict[str, Any]) -> None:
        arguments = {
            parameter: values[name] if isinstance(name, str) else [values[item] for item in name]
            for parameter, name in operation.arguments.items()
        }
        try:
            result = OPERATORS[operation.type](**arguments)
            results = result if isinstance(result, tuple) else (result,)
            for (name, declared), value in zip(operation.outputs.items(), results, strict=True):
                values[name] = _checked(value, declared)
        except (LookupError, ValueError, RuntimeError) as error:
            raise InputError(
                f"{self.path}: operator {operation.type!r} ({operation.name}) cannot be "
                f"evaluated: {first_line(error)}; export the package again"
            ) from error
        for name in operation.frees:
            del values[name]

    def _output(self, name: str, value: Any) -> Any:
        declared = self.types[name]
        return value if declared is None else value.numpy().astype(declared.dtype)


def _checked(value: Any, declared: TensorType | None) -> Any:
    """Check one result against its declaration, and round it to the declared float type."""
    if declared is None:
        return value
    if tuple(value.shape) != declared.shape or value.dtype != TORCH_DTYPES[declared.dtype]:
        raise ValueError(
            f"it gives {value.dtype} of shape {tuple(value.shape)}, and {declared.dtype} of "
            f"shape {declared.shape} is declared"
        )
    return _carried(value.half()) if declared.dtype == "float16" else value


def _carried(value: Tensor) -> Tensor:
    """A tensor as operators take it: float32 for every float type."""
    return value.float() if value.dtype == torch.float16 else value
