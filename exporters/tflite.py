"""TFLite: litert-torch converts, the saved file runs in LiteRT's interpreter on XNNPACK.

The converter makes the float graph and, at ``w8a8``, folds the quantize/dequantize pairs into
integer kernels. What it does otherwise than the recipes say is put right in its file (see
`tinyvit_edge.exporters._tflite_rewrites`): operators that it quantized without being asked, the
float16, weight-only and run-time int8 storage, and the types and names of input and output; and
concatenations of more tensors than XNNPACK takes.

LiteRT's interpreter is the successor of ``tflite-runtime``, whose last release (2.14) is too old
for these files.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar, Literal, cast

from tinyvit_edge.errors import ConversionError, InputError
from tinyvit_edge.exporters import Audit, Exported
from tinyvit_edge.exporters._quiet import first_line, quiet_converter, quiet_stderr
from tinyvit_edge.precision import PRECISIONS

if TYPE_CHECKING:
    from pathlib import Path

    import numpy as np
    from numpy.typing import NDArray
    from torch import Tensor

    from tinyvit_edge.deployment import FormOptions
    from tinyvit_edge.exporters import Runner
    from tinyvit_edge.exporters._tflite_rewrites import IntegerWeight
    from tinyvit_edge.exporters._tflite_tables import Table
    from tinyvit_edge.program import Program
    from tinyvit_edge.quantization.qdq import (
        DynamicLinear,
        Int8AttentionBias,
        StaticLayer,
        WeightOnlyLayer,
    )

__all__ = ["TfliteExporter", "delegation"]

_MAX_RANK = 4
_COMPUTE = {
    "float": "float32",
    "half": "float32 on CPU: weights are widened at load; GPU delegates may compute in half",
    "dynamic": "int8 Linear layers, inputs quantized per token at run time; the rest float32",
    "static": "int8 Linear and convolution layers; the rest float32",
}


@dataclass(frozen=True, slots=True, kw_only=True)
class TfliteExporter:
    """Exporter to ``.tflite``."""

    name: ClassVar[str] = "tflite"
    artifact: ClassVar[str] = "model.tflite"
    requires: ClassVar[tuple[str, ...]] = ("litert-torch", "ai-edge-litert")
    unsupported: ClassVar[Mapping[str, str]] = {
        row.name: "TFLite has no tables of weights, and no convolution in blocks of 4 bits"
        for row in PRECISIONS.values()
        if row.coded
    }
    evaluation: ClassVar[Literal["runtime"]] = "runtime"
    timed: ClassVar[bool] = True
    rounding: ClassVar[float] = 1e-6

    @property
    def form(self) -> FormOptions:
        """Deployment form: XNNPACK quantizes a run-time range per token. ``fp16`` is what GPU
        delegates are given, some of which take no operator on constants alone: no strip there.
        """
        from tinyvit_edge.deployment import FormOptions

        return FormOptions(half_biases="int8", dynamic_range="token", requantize_weights=True)

    def export(self, program: Program, path: Path) -> Exported:
        """Write ``program`` as a ``.tflite`` file with input ``image`` and output ``logits``."""
        from tinyvit_edge.exporters import _tflite_file as tflite_file
        from tinyvit_edge.exporters._tflite_edit import join_in_steps

        model = tflite_file.parse(_convert(program))
        _apply_precision(model, program)
        join_in_steps(model)
        _check(model, program)
        _describe(model, program)
        path.write_bytes(tflite_file.serialise(model))
        partitions, outside = delegation(path)
        return Exported(
            details={
                "operators": len(model.subgraphs[0].operators),
                "xnnpack_partitions": partitions,
                "operators_outside_xnnpack": list(outside),
                "compute": _COMPUTE[program.precision.activations] + program.precision.exception,
            }
        )

    def load(self, path: Path, *, threads: int) -> Runner:
        """Load a ``.tflite`` file into LiteRT's interpreter, with its default delegate."""
        interpreter = _interpreter(path, threads)
        inputs, outputs = interpreter.get_input_details(), interpreter.get_output_details()
        if not (_is_one(inputs, rank=4) and _is_one(outputs, rank=2)):
            raise InputError(
                f"{path}: not an image classifier of this package: expected one float32 input "
                "(1, 3, S, S) and one float32 output (1, classes); export it again"
            )
        source, target = inputs[0]["index"], outputs[0]["index"]

        def run(image: NDArray[np.float32]) -> NDArray[np.float32]:
            interpreter.set_tensor(source, image)
            interpreter.invoke()
            return cast("NDArray[np.float32]", interpreter.get_tensor(target))  # a copy

        return run

    def audit(self, path: Path) -> Audit:
        """Read constants' types and kernels' multiply-accumulates back from a ``.tflite`` file."""
        from tinyvit_edge.exporters._tflite_audit import audit
        from tinyvit_edge.exporters._tflite_file import read

        return audit(read(path))


def delegation(path: Path) -> tuple[int, tuple[str, ...]]:
    """How XNNPACK takes a saved file on this host.

    Returns:
        The number of partitions, and the names of the operators that stay outside them.
    """
    interpreter = _interpreter(path, threads=1)
    producers: dict[int, Any] = {}
    for operator in interpreter._get_ops_details():
        # delegates come last in the list, and take the place of what they replace
        producers.update(dict.fromkeys(operator["outputs"].tolist(), operator))
    wanted = [details["index"] for details in interpreter.get_output_details()]
    met: dict[int, str] = {}
    while wanted:
        operator = producers.get(wanted.pop())
        if operator is not None and operator["index"] not in met:
            met[operator["index"]] = operator["op_name"]
            wanted += operator["inputs"].tolist()
    names = tuple(met.values())
    return names.count("DELEGATE"), tuple(sorted(name for name in names if name != "DELEGATE"))


def _convert(program: Program) -> bytes:
    from torch import nn

    from tinyvit_edge.program import INPUT_NAME, OUTPUT_NAME
    from tinyvit_edge.quantization.qdq import dequantized

    class Named(nn.Module):
        """Gives the signature its names."""

        def __init__(self) -> None:
            super().__init__()
            self.module = dequantized(program.module)

        def forward(self, image: Tensor) -> dict[str, Tensor]:
            return {OUTPUT_NAME: self.module(image)}

    try:
        with _quiet():
            import litert_torch

            converted = litert_torch.convert(
                Named().eval(),
                sample_kwargs={INPUT_NAME: program.example_input()},
                quant_config=_quantization_mode(program),
            )
            content: bytes = converted.model_content()
    except Exception as error:
        reason = first_line(error)
        raise ConversionError(
            f"{program.model_name} {program.precision.name}: litert-torch failed: {reason}"
        ) from error
    return content


def _quantization_mode(program: Program) -> Any:
    """The converter's switch for folding quantize/dequantize pairs into integer kernels.

    The quantizer in it is not run: only its being static is looked at.
    """
    if program.precision.activations != "static":
        return None
    from litert_torch.quantize import pt2e_quantizer
    from litert_torch.quantize.quant_config import QuantConfig

    config = pt2e_quantizer.get_symmetric_quantization_config(is_dynamic=False)
    return QuantConfig(pt2e_quantizer=pt2e_quantizer.PT2EQuantizer().set_global(config))


def _apply_precision(model: Any, program: Program) -> None:
    from tinyvit_edge.exporters import _tflite_rewrites as rewrites
    from tinyvit_edge.exporters._tflite_tables import store_tables
    from tinyvit_edge.quantization.qdq import DynamicLinear, Int8AttentionBias, WeightOnlyLayer

    precision = program.precision
    if precision.activations == "static":
        rewrites.restore_float_compute(model)
        rewrites.restore_float_io(model)
    weights = {
        name: _integer_weight(layer)
        for name, layer in program.module.named_modules()
        if isinstance(layer, (DynamicLinear, WeightOnlyLayer))
    }
    if precision.activations == "dynamic":
        rewrites.quantize_fully_connected(model, weights)
    elif precision.weight_only:
        rewrites.store_int8(model, weights)
    tables = {
        name: _table(bias)
        for name, bias in program.module.named_modules()
        if isinstance(bias, Int8AttentionBias)
    }
    store_tables(model, tables)
    if precision.weights == "float16":
        rewrites.store_half(model)


def _check(model: Any, program: Program) -> None:
    """Check the file against the target's profile and, at ``w8a8``, every layer's weight."""
    from tinyvit_edge.exporters import _tflite_file as tflite_file
    from tinyvit_edge.quantization.qdq import StaticLayer

    rank = tflite_file.largest_rank(model)
    if rank > _MAX_RANK:
        raise ConversionError(
            f"{program.model_name}: the converter made a tensor of rank {rank}; mobile delegates "
            f"take {_MAX_RANK} at most"
        )
    integer = tflite_file.integer_weights(model)
    for name, layer in program.module.named_modules():
        if isinstance(layer, StaticLayer) and _integers(layer).tobytes() not in integer:
            raise ConversionError(
                f"layer {name}: the TFLite converter did not make it an integer kernel of the "
                "weights that the recipe chose"
            )


def _integers(layer: StaticLayer) -> NDArray[np.int8]:
    """A static layer's int8 weight in the order of the file."""
    import torch

    weight = layer.weight
    if weight.is_floating_point():
        scale = layer.weight_scale.reshape(-1, *[1] * (weight.ndim - 1))
        weight = torch.round(weight / scale).to(torch.int8)
    return _file_order(weight, layer.conv)


def _integer_weight(layer: DynamicLinear | WeightOnlyLayer) -> IntegerWeight:
    from tinyvit_edge.exporters._tflite_rewrites import IntegerWeight
    from tinyvit_edge.quantization.qdq import WeightOnlyLayer

    conv = layer.conv if isinstance(layer, WeightOnlyLayer) else None
    return IntegerWeight(
        real=_file_order(layer.dequantized_weight(), conv),
        integers=_file_order(layer.weight, conv),
        scale=layer.weight_scale.numpy(),
        axis=3 if _is_depthwise(conv) else 0,
    )


def _table(bias: Int8AttentionBias) -> Table:
    from tinyvit_edge.attention import strip_columns
    from tinyvit_edge.exporters._tflite_tables import Table

    return Table(
        real=bias().numpy(),
        integers=bias.values.numpy(),
        scale=bias.scale,
        columns=strip_columns(bias.values, bias.parts),
    )


def _file_order(weight: Tensor, conv: tuple[Any, ...] | None) -> NDArray[Any]:
    """Convolution (out, kh, kw, in), depthwise (1, kh, kw, out), Linear (out, in)."""
    if conv is not None:
        weight = weight.permute(1, 2, 3, 0) if _is_depthwise(conv) else weight.permute(0, 2, 3, 1)
    ordered: NDArray[Any] = weight.contiguous().numpy()
    return ordered


def _is_depthwise(conv: tuple[Any, ...] | None) -> bool:
    return conv is not None and conv[-1] > 1  # groups


def _describe(model: Any, program: Program) -> None:
    from tinyvit_edge.exporters import _tflite_file as tflite_file
    from tinyvit_edge.program import INPUT_NAME, OUTPUT_NAME

    tflite_file.name_tensors(model, image=INPUT_NAME, logits=OUTPUT_NAME)
    values = {
        "model_name": program.model_name,
        "precision": program.precision.name,
        "labels": list(program.labels),
        "preprocessing": program.preprocessing.to_dict(),
        "weights_sha256": program.weights_sha256,
    }
    tflite_file.write_metadata(
        model, values, description=f"{program.model_name} {program.precision.name}"
    )


def _interpreter(path: Path, threads: int) -> Any:
    """Open a file; the runtime checks the flatbuffer, the schema is not imported."""
    try:
        # the C++ side announces the delegate on the error stream and has no switch for it
        with quiet_stderr():
            from ai_edge_litert.interpreter import Interpreter

            interpreter = Interpreter(model_path=str(path), num_threads=threads)
            interpreter.allocate_tensors()
    except (ValueError, RuntimeError) as error:
        reason = first_line(error)
        raise InputError(
            f"{path}: not a readable TFLite model ({reason}); export it again"
        ) from error
    return interpreter


def _is_one(details: list[dict[str, Any]], *, rank: int) -> bool:
    """Whether there is one tensor, float32, of a rank and of batch 1."""
    if len(details) != 1 or details[0]["dtype"].__name__ != "float32":
        return False
    shape = details[0]["shape"].tolist()
    return len(shape) == rank and shape[0] == 1


@contextmanager
def _quiet() -> Iterator[None]:
    """Silence the converter: its progress lines, its libraries' warnings and C++ logs."""
    switch = "LITERT_TORCH_SHOW_PROGRESS"
    before = os.environ.get(switch)
    os.environ[switch] = "n"
    try:
        with quiet_converter():
            yield
    finally:
        os.environ.pop(switch)
        if before is not None:
            os.environ[switch] = before


if TYPE_CHECKING:
    from tinyvit_edge.exporters import Exporter

    _: Exporter = TfliteExporter()
