"""ONNX: opset 20, static shapes, convertible to TFLite; run by ONNX Runtime on the CPU.

``fp32``         float32.
``fp16``         float16 weights, each behind a Cast that the runtime folds when it loads the file:
                 half the size, float32 arithmetic. ONNX Runtime's CPU provider has too few float16
                 kernels to compute in half.
``w8-dynamic``   DynamicQuantizeLinear and MatMulInteger for Linear layers; uint8 activations with
                 one range a tensor.
``w8``           Cast and Mul behind int8 weights, folded likewise; float32 arithmetic.
``w8a8``         QuantizeLinear and DequantizeLinear around Linear layers and convolutions; uint8
                 activations, int8 weights, int32 biases. Linear layers give float32: rounding their
                 results to 8 bits would cost time here, where no kernel asks for it.
"""

from __future__ import annotations

import platform
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Literal

from tinyvit_edge.errors import ConversionError, InputError, UnsupportedError
from tinyvit_edge.exporters import Audit, Exported
from tinyvit_edge.exporters._onnx_audit import audit
from tinyvit_edge.exporters._onnx_file import (
    describe,
    own_zero_points,
    share_constants,
    store_biases,
    store_halves,
    strip,
    widen_at_load,
)
from tinyvit_edge.exporters._onnx_profile import OPSET, check, inferred
from tinyvit_edge.exporters._quiet import first_line, quiet_converter
from tinyvit_edge.precision import PRECISIONS

if TYPE_CHECKING:
    from tinyvit_edge.deployment import FormOptions
    from tinyvit_edge.exporters import Runner
    from tinyvit_edge.program import Program
    from tinyvit_edge.types import FloatArray

__all__ = ["OnnxExporter"]

_PROVIDER = "CPUExecutionProvider"
_FATAL_ONLY = 4


@dataclass(frozen=True, slots=True, kw_only=True)
class OnnxExporter:
    """The ``onnx`` target."""

    name: ClassVar[str] = "onnx"
    artifact: ClassVar[str] = "model.onnx"
    requires: ClassVar[tuple[str, ...]] = ("onnx", "onnxruntime", "onnxscript")
    unsupported: ClassVar[Mapping[str, str]] = {
        row.name: "opset 20 has neither tables of weights nor 4-bit types"
        for row in PRECISIONS.values()
        if row.coded
    }
    evaluation: ClassVar[Literal["runtime"]] = "runtime"
    timed: ClassVar[bool] = True
    rounding: ClassVar[float] = 1e-6

    @property
    def form(self) -> FormOptions:
        """Native LayerNorm, which is one kernel; attention biases by offset, because the runtime
        folds the gather when it loads the file; one run-time range a tensor, as
        DynamicQuantizeLinear takes it; QGemm gives float32. Its int8 convolutions, with the
        conversions around them, take as long as its float ones.
        """
        from tinyvit_edge.deployment import FormOptions

        return FormOptions(
            layer_norm="native",
            attention_bias="gathered",
            dynamic_range="tensor",
            linear_outputs="float",
            float_conv_cost=0.0,
        )

    def export(self, program: Program, path: Path) -> Exported:
        """Write a program as one self-contained ``.onnx`` file.

        Raises:
            ConversionError: torch's exporter failed, or the file breaks the TFLite-compatible
                profile; the message names the first node at fault.
        """
        model = _convert(program)
        strip(model)
        share_constants(model)
        widen_at_load(model)
        own_zero_points(model)
        if program.precision.activations == "static":
            store_biases(model)
        if program.precision.weights == "float16":
            store_halves(model)
        describe(model, program)
        path.write_bytes(model.SerializeToString(deterministic=True))
        if violations := check(path):
            more = f" and {len(violations) - 1} more" if len(violations) > 1 else ""
            raise ConversionError(
                f"the ONNX file of {program.model_name} at {program.precision.name} breaks the "
                f"TFLite-compatible profile at {violations[0]}{more}: rewrite that module in the "
                f"deployment form"
            )
        return Exported(details=_details(model, program))

    def load(self, path: Path, *, threads: int) -> Runner:
        """Open a file in ONNX Runtime's CPU provider; imports neither torch nor onnx.

        Raises:
            InputError: the file is missing, corrupt, or not an image classifier.
        """
        import numpy as np

        session = _session(path, threads)
        source, sink = session.get_inputs()[0].name, session.get_outputs()[0].name

        def run(image: FloatArray) -> FloatArray:
            logits = session.run([sink], {source: np.ascontiguousarray(image)})[0]
            return np.array(logits, dtype=np.float32)

        return run

    def audit(self, path: Path) -> Audit:
        """Read constants and multiply-accumulates back from the file.

        Raises:
            InputError: the file cannot be read as ONNX.
        """
        return audit(inferred(path))


def _convert(program: Program) -> Any:
    """The program as an `onnx.ModelProto`."""
    import torch

    from tinyvit_edge.exporters._onnx_translation import translation_table
    from tinyvit_edge.program import INPUT_NAME, OUTPUT_NAME

    try:
        with quiet_converter():
            converted = torch.onnx.export(
                program.exported(),
                (),
                dynamo=True,
                opset_version=OPSET,
                input_names=[INPUT_NAME],
                output_names=[OUTPUT_NAME],
                external_data=False,
                optimize=True,
                custom_translation_table=translation_table(),
                verbose=False,
            )
    except Exception as error:  # torch wraps whatever an operator's translation raises
        raise ConversionError(
            f"torch.onnx cannot convert {program.model_name} at {program.precision.name}: "
            f"{first_line(_root_cause(error))}"
        ) from error
    assert converted is not None
    return converted.model_proto


def _root_cause(error: BaseException) -> BaseException:
    while error.__cause__ is not None:
        error = error.__cause__
    return error


_ARITHMETIC = {
    "float": "float32",
    "half": "float32 (ONNX Runtime's CPU provider has few float16 kernels)",
    "dynamic": "uint8 x int8 in Linear layers, ranges at run time; float32 elsewhere",
    "static": "uint8 x int8 in Linear layers and convolutions; float32 elsewhere",
}


def _details(model: Any, program: Program) -> dict[str, Any]:
    operators = Counter(node.op_type for node in model.graph.node)
    return {
        "opset": OPSET,
        "ir_version": model.ir_version,
        "weights": program.precision.weights,
        "arithmetic": _ARITHMETIC[program.precision.activations] + program.precision.exception,
        "operators": dict(sorted(operators.items())),
    }


def _saturates() -> bool:
    """Whether int8 products may overflow here.

    x86 without VNNI adds two uint8 x int8 products in 16 bits, which saturates: 2 * 255 * 127.
    ONNX Runtime then has an exact mode, at half the speed.
    """
    if platform.machine() not in ("x86_64", "AMD64"):
        return False
    try:
        return "vnni" not in Path("/proc/cpuinfo").read_text()
    except OSError:
        return True


def _session(path: Path, threads: int) -> Any:
    import onnxruntime as ort

    options = ort.SessionOptions()
    options.intra_op_num_threads = threads
    options.inter_op_num_threads = 1
    options.execution_mode = ort.ExecutionMode.ORT_SEQUENTIAL
    options.log_severity_level = _FATAL_ONLY
    if _saturates():
        options.add_session_config_entry("session.x64quantprecision", "1")
    try:
        session = ort.InferenceSession(path, options, providers=[_PROVIDER])
    except Exception as error:  # the runtime's exceptions share no base class
        raise InputError(
            f"{path} is not a readable ONNX file ({first_line(error)}): export it again"
        ) from error
    if session.get_providers() != [_PROVIDER]:
        raise UnsupportedError(
            f"ONNX Runtime opened {path} with {session.get_providers()}, not {_PROVIDER}: "
            f"install the CPU build of onnxruntime"
        )
    inputs, outputs = session.get_inputs(), session.get_outputs()
    if len(inputs) != 1 or len(outputs) != 1 or len(inputs[0].shape) != 4:
        raise InputError(f"{path} is not an image classifier: export it again")
    return session
