"""From a package's protobuf to an `MlProgram`: constants decompressed, operators checked."""

from __future__ import annotations

import inspect
from collections import Counter
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from tinyvit_edge.errors import InputError
from tinyvit_edge.exporters._mlprogram import MlProgram, Operation
from tinyvit_edge.exporters._mlprogram_ops import OPERATORS, TORCH_DTYPES
from tinyvit_edge.exporters._mlprogram_package import model_folder, proto, read_spec
from tinyvit_edge.exporters._mlprogram_weights import (
    CONSTEXPR,
    SHORT_NAMES,
    Constant,
    Constants,
    FormatError,
    TensorType,
    constant_bytes,
    tensor_type,
)

__all__ = ["load_program"]

_RESULT_LIKE = ("x", "input", "query", "values")
"""Parameters whose type an operator's result has, whichever of them it takes."""
_DATA = ("quantized_data", "data", "indices", "indices_nonzero_data", "nonzero_data", "source_val")
"""Parameters that hold a compressed constant's elements, whichever of them it takes."""
_ZERO_POINT = ("zero_point", "offset")
"""Parameters that hold the zero point beside a ``scale``."""


def load_program(path: Path) -> MlProgram:
    """Load a package, decompress its constants and check that it can be evaluated.

    Raises:
        InputError: not a readable package of an ML program, or one with an operator, parameter
            or type that the evaluator does not have.
        MissingDependencyError: coremltools is not installed.
    """
    spec = read_spec(path)
    try:
        return _Reader(path).read(spec)
    except FormatError as error:
        raise InputError(
            f"{path}: {error}: the reference evaluator cannot take it; export the package again "
            "or evaluate it on macOS"
        ) from error


class _Reader:
    """Collects what one program holds, in the order of its operations."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.dtype_name = proto("MIL_pb2").DataType.Name
        self.source = Constants(model_folder(path), self.dtype_name)
        self.constants: dict[str, Constant] = {}
        self.types: dict[str, TensorType | None] = {}
        self.stored: dict[str, str] = {}
        self.sizes: dict[str, int] = {}  # in bytes
        self.scales: dict[str, str] = {}  # zero point -> its scale
        self.operations: list[Operation] = []

    def read(self, spec: Any) -> MlProgram:
        function = spec.mlProgram.functions["main"]
        if function.opset not in function.block_specializations:
            raise FormatError(f"no block for operator set {function.opset!r}")
        block = function.block_specializations[function.opset]
        inputs = {item.name: tensor_type(item.type, self.dtype_name) for item in function.inputs}
        self.types.update(inputs)
        for operation in block.operations:
            self._operation(operation)
        outputs = tuple(block.outputs)
        if unknown := [name for name in outputs if name not in self.types]:
            raise FormatError(f"output {unknown[0]!r} is not defined")
        used = {name for operation in self.operations for name in operation.operands()}
        constants = {name: _runtime(self.constants[name]) for name in used & set(self.constants)}
        return MlProgram(
            path=self.path,
            description=spec.description,
            inputs=inputs,
            outputs=outputs,
            operations=_with_lifetimes(self.operations, {*outputs, *constants}),
            constants=constants,
            types=self.types,
            stored=self.stored,
            stored_bytes=self._stored_bytes(),
        )

    def _operation(self, operation: Any) -> None:
        outputs = {
            item.name: None
            if operation.type == "classify"  # a string and a dictionary
            else tensor_type(item.type, self.dtype_name)
            for item in operation.outputs
        }
        if operation.type == "const":
            self._constant(next(iter(outputs)), operation.attributes["val"])
        elif operation.type in CONSTEXPR:
            self._compressed(operation, outputs)
        elif operation.type in OPERATORS:
            self.operations.append(self._bound(operation, outputs))
        else:
            raise FormatError(f"operator {operation.type!r} ({next(iter(outputs), '')})")
        self.types.update(outputs)

    def _constant(self, name: str, value: Any) -> None:
        content = self.source.read(value)
        self.constants[name] = content
        if not isinstance(content, np.ndarray):
            self.types[name] = None
            return
        declared = tensor_type(value.type, self.dtype_name)
        self.types[name], self.stored[name] = declared, declared.dtype
        blob = value.WhichOneof("value") == "blobFileValue"
        # integers outside the weights file are axes, shapes and strides
        if declared.shape and (blob or declared.dtype.startswith("float")):
            self.sizes[name] = constant_bytes(declared)

    def _stored_bytes(self) -> dict[str, int]:
        total: Counter[str] = Counter()
        for name, size in self.sizes.items():
            total[self.stored[self.scales.get(name, name)]] += size
        return dict(total)

    def _pair_zero_point(self, names: Mapping[str, str]) -> None:
        for parameter in _ZERO_POINT:
            if parameter in names and "scale" in names:
                self.scales[names[parameter]] = names["scale"]

    def _compressed(self, operation: Any, outputs: Mapping[str, TensorType | None]) -> None:
        names = self._arguments(operation)
        for parameter, value in operation.attributes.items():  # where iOS16 keeps them
            if parameter != "name":
                names[parameter] = f"{operation.outputs[0].name}.{parameter}"
                self._constant(names[parameter], value)
        self._pair_zero_point(names)
        try:
            arguments = {parameter: self.constants[name] for parameter, name in names.items()}
            result = CONSTEXPR[operation.type](**arguments)
            data = next(names[parameter] for parameter in _DATA if parameter in names)
        except (LookupError, TypeError, ValueError, StopIteration) as error:
            raise FormatError(f"operator {operation.type!r} with {sorted(names)}") from error
        if {"lut", "shape"} <= names.keys():  # iOS16 declares packed indices as bytes
            self.stored[data] = f"uint{(len(arguments['lut']) - 1).bit_length()}"
        results = result if isinstance(result, tuple) else (result,)
        for (name, declared), value in zip(outputs.items(), results, strict=True):
            if declared is None or value.shape != declared.shape:
                raise FormatError(f"operator {operation.type!r} gives {name} {value.shape}")
            self.constants[name] = value
            self.stored[name] = self.stored[data]

    def _bound(self, operation: Any, outputs: Mapping[str, TensorType | None]) -> Operation:
        names = self._arguments(operation)
        arguments: dict[str, str | tuple[str, ...]] = dict(names)
        if "values" in operation.inputs:
            bindings = operation.inputs["values"].arguments
            arguments["values"] = tuple(binding.name for binding in bindings)
        bound = Operation(type=operation.type, arguments=arguments, outputs=outputs)
        if unknown := [name for name in bound.operands() if name not in self.types]:
            raise FormatError(f"operator {bound.type!r} ({bound.name}) reads {unknown[0]!r}")
        try:
            inspect.signature(OPERATORS[bound.type]).bind(**arguments)
        except TypeError as error:
            raise FormatError(f"operator {bound.type!r} ({bound.name}), {error}") from error
        self._check_dtype(bound, names)
        self._pair_zero_point(names)
        return bound

    def _arguments(self, operation: Any) -> dict[str, str]:
        """Name of each parameter's (first) value; literals become constants of their own."""
        names = {}
        for parameter, argument in operation.inputs.items():
            binding = argument.arguments[0]
            names[parameter] = binding.name
            if binding.WhichOneof("binding") == "value":
                names[parameter] = f"{operation.outputs[0].name}.{parameter}"
                self._constant(names[parameter], binding.value)
        return names

    def _check_dtype(self, operation: Operation, names: Mapping[str, str]) -> None:
        """Check the declared result against the type that the arguments give it."""
        if operation.type == "classify":
            return
        if operation.type in {"cast", "quantize"}:
            wanted = self.constants[names.get("dtype") or names["output_dtype"]]
            dtype = SHORT_NAMES.get(str(wanted), str(wanted))
        else:
            like = ("scale",) if operation.type == "dequantize" else _RESULT_LIKE
            source = self.types[next(names[parameter] for parameter in like if parameter in names)]
            dtype = source.dtype if source is not None else "string"
        for name, declared in operation.outputs.items():
            if declared is None or declared.dtype != dtype or dtype not in TORCH_DTYPES:
                found = declared.dtype if declared is not None else "no tensor"
                raise FormatError(
                    f"operator {operation.type!r} declares {name} {found} where {dtype} follows"
                )


def _runtime(value: Constant) -> Any:
    """A constant as the operators take it: a tensor with float32 for every float type."""
    if not isinstance(value, np.ndarray):
        return value
    if value.dtype == np.float16:
        value = value.astype(np.float32)
    return torch.from_numpy(np.array(value))


def _with_lifetimes(operations: list[Operation], kept: set[str]) -> tuple[Operation, ...]:
    """Note after which operation each value dies."""
    seen = set(kept)
    done = []
    for operation in reversed(operations):
        used = {*operation.operands(), *operation.outputs}
        done.append(replace(operation, frees=tuple(sorted(used - seen))))
        seen |= used
    return tuple(reversed(done))
