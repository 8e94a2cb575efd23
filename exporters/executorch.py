"""ExecuTorch: one ``.pte`` whose whole graph runs in the XNNPACK delegate.

``fp32``         float32.
``fp16``         float16 kernels, input and output float32. XNNPACK has them for CPUs with
                 ARMv8.2-A's FP16 arithmetic, which phones have had since about 2018, and for AVX2
                 (`xnn_is_f16_compatible_config` in its ``src/xnnpack/hardware-config.h``);
                 elsewhere the file does not load.
``w8-dynamic``   qd8 kernels: Linear layers quantize each row of their input at run time.
``w8a8``         qs8 kernels with qc8 weights, for Linear layers and convolutions.

The options ``portable`` (reference kernels) and ``coreml`` (made here, run on Apple devices) take
float programs.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, ClassVar, Literal, get_args

from tinyvit_edge.errors import ConversionError, InputError, UnsupportedError
from tinyvit_edge.exporters import Exported
from tinyvit_edge.exporters._quiet import first_line, quiet_converter, quiet_stderr
from tinyvit_edge.precision import PRECISIONS

if TYPE_CHECKING:
    from pathlib import Path

    from tinyvit_edge.deployment import FormOptions
    from tinyvit_edge.exporters import Audit, Evaluation, Runner
    from tinyvit_edge.exporters._executorch_program import Contents
    from tinyvit_edge.program import Program
    from tinyvit_edge.types import FloatArray

__all__ = ["ExecuTorchExporter", "read_metadata"]

Delegate = Literal["xnnpack", "portable", "coreml"]

_METADATA = "metadata"
_ARITHMETIC = {
    "float": "float32",
    "half": "float16",
    "dynamic": "int8 in Linear layers, one run-time range per row; float32 elsewhere",
    "static": "int8 in Linear layers and convolutions; float32 elsewhere",
}
_NO_WEIGHT_ONLY = (
    "its XNNPACK backend gives no layer integer weights and float inputs; see w8-dynamic and w8a8"
)
_NO_INT8 = {
    "portable": "the runtime's wheel has no portable kernels for quantized operators",
    "coreml": "int8 for Core ML is the business of the coreml target",
}


@dataclass(frozen=True, slots=True, kw_only=True)
class ExecuTorchExporter:
    """The ``executorch`` target.

    Raises:
        InputError: a delegate that does not exist.
    """

    delegate: Delegate = "xnnpack"
    """Who runs the graph: XNNPACK, ExecuTorch's own portable kernels (for comparison: tens of
    times slower), or Core ML."""
    name: ClassVar[str] = "executorch"
    artifact: ClassVar[str] = "model.pte"
    evaluation: ClassVar[Evaluation] = "runtime"
    timed: ClassVar[bool] = True
    rounding: ClassVar[float] = 1e-6

    def __post_init__(self) -> None:
        if self.delegate not in get_args(Delegate):
            raise InputError(
                f"executorch: --delegate is {self.delegate!r}; "
                f"choose from {', '.join(get_args(Delegate))}"
            )

    @property
    def requires(self) -> tuple[str, ...]:
        """ExecuTorch, and coremltools for its Core ML delegate."""
        return ("executorch", "coremltools") if self.delegate == "coreml" else ("executorch",)

    @property
    def unsupported(self) -> Mapping[str, str]:
        """Only XNNPACK takes int8, and it not for weights alone."""
        reason = _NO_INT8.get(self.delegate)
        return {
            row.name: reason or _NO_WEIGHT_ONLY
            for row in PRECISIONS.values()
            if row.weight_only or (reason and row.quantized)
        }

    @property
    def form(self) -> FormOptions:
        """LayerNorm from Linear layers for XNNPACK, which leaves its own outside the delegate, and
        softmax from its steps; run-time ranges cover a row.
        """
        from tinyvit_edge.deployment import FormOptions

        if self.delegate != "xnnpack":
            return FormOptions(dynamic_range="token")
        return FormOptions(
            layer_norm="linear",
            softmax="bounded",
            half_biases="float16 strip",
            dynamic_range="token",
        )

    def export(self, program: Program, path: Path) -> Exported:
        """Write a program as a ``.pte``.

        Raises:
            UnsupportedError: the delegate does not take this precision.
            ConversionError: the lowering failed, or an ``fp32`` program is not one XNNPACK
                partition; the message names the operators left outside.
        """
        from tinyvit_edge.exporters import require_precision
        from tinyvit_edge.exporters._executorch_program import contents

        require_precision(self, program.precision)
        lowered = _lower(program, self.delegate)
        found = contents(lowered.executorch_program)
        if self.delegate == "xnnpack" and program.precision.name == "fp32":
            _check_one_partition(program, found)
        with path.open("wb") as file:
            lowered.write_to_file(file)
        return Exported(
            details=_details(program, self.delegate, found),
            reproducible=self.delegate != "coreml",  # its payloads have random names
        )

    def load(self, path: Path, *, threads: int) -> Runner:
        """Open a file in ExecuTorch's runtime. The number of threads is the process's.

        Raises:
            InputError: the file is missing, corrupt, or not an image classifier.
            UnsupportedError: the Core ML delegate, which runs on Apple devices only.
        """
        if self.delegate == "coreml":
            raise UnsupportedError(
                f"{path} has a Core ML delegate, which runs in ExecuTorch's iOS and macOS runtime "
                f"only: run it there, or export with --delegate xnnpack"
            )
        with quiet_stderr():
            program = _open(path, threads=threads)
            method = _method(program, "forward", path)
        return _Runner(program, method)

    def audit(self, path: Path) -> Audit:
        """Read constants and multiply-accumulates back from the file.

        Raises:
            InputError: the file cannot be read as a program.
            UnsupportedError: the Core ML delegate's payload is not read here.
        """
        from tinyvit_edge.exporters._executorch_program import audit

        return audit(path)


def read_metadata(path: Path) -> dict[str, Any]:
    """What the file says of itself: the result of its constant method ``metadata``.

    Raises:
        InputError: the file is not a program of this exporter.
    """
    with quiet_stderr():
        (text,) = _method(_open(path), _METADATA, path)([])
    made: dict[str, Any] = json.loads(text)
    return made


class _Runner:
    """A loaded ``forward``."""

    def __init__(self, program: Any, method: Any) -> None:
        # the method reads the program's memory
        self._program, self._method = program, method

    def __call__(self, image: FloatArray) -> FloatArray:
        import numpy as np
        import torch

        tensor = torch.from_numpy(np.require(image, np.float32, ["C", "W"]))
        (logits,) = self._method([tensor])
        out: FloatArray = logits.numpy().copy()  # the runtime writes the next result here
        return out


def _lower(program: Program, delegate: Delegate) -> Any:
    """The program as ExecuTorch's program manager, before it is written."""
    try:
        with quiet_converter():
            from executorch.exir import to_edge_transform_and_lower

            from tinyvit_edge.exporters._executorch_graph import tidied

            with tidied():
                edge = to_edge_transform_and_lower(
                    _adapted(program, delegate).exported(),
                    partitioner=_partitioners(program, delegate),
                    constant_methods={_METADATA: _metadata(program)},
                )
            return edge.to_executorch()
    except Exception as error:  # whatever a partitioner or a pass raises
        raise ConversionError(
            f"ExecuTorch cannot lower {program.model_name} at {program.precision.name} to "
            f"{delegate}: {type(error).__name__}: {first_line(error)}; try another "
            "--delegate or --precision"
        ) from error


def _adapted(program: Program, delegate: Delegate) -> Program:
    """The program with the module that the delegate wants."""
    from tinyvit_edge.exporters._executorch_form import (
        HalfCompute,
        HalfStorage,
        integer_movement,
    )

    half = program.precision.weights == "float16"
    if delegate == "xnnpack":
        made = HalfCompute(program.module) if half else integer_movement(program.module)
        return replace(program, module=made)
    if delegate == "portable" and half:
        return replace(program, module=HalfStorage(program.module))
    return program


def _partitioners(program: Program, delegate: Delegate) -> list[Any]:
    if delegate == "portable":
        return []
    if delegate == "xnnpack":
        from executorch.backends.xnnpack.partition.xnnpack_partitioner import XnnpackPartitioner

        return [XnnpackPartitioner()]
    import coremltools as ct
    from executorch.backends.apple.coreml.compiler import CoreMLBackend
    from executorch.backends.apple.coreml.partition import CoreMLPartitioner

    half = program.precision.weights == "float16"
    specs = CoreMLBackend.generate_compile_specs(
        minimum_deployment_target=ct.target.iOS17,
        compute_precision=ct.precision.FLOAT16 if half else ct.precision.FLOAT32,
    )
    return [CoreMLPartitioner(compile_specs=specs)]


def _metadata(program: Program) -> str:
    return json.dumps(
        {
            "model_name": program.model_name,
            "precision": program.precision.name,
            "preprocessing": program.preprocessing.to_dict(),
            "labels": program.labels,
            "weights_sha256": program.weights_sha256,
        },
        sort_keys=True,
    )


def _check_one_partition(program: Program, found: Contents) -> None:
    if len(found.delegates) == 1 and not found.operators:
        return
    outside = ", ".join(f"{name} x{calls}" for name, calls in found.operators.items()) or "nothing"
    raise ConversionError(
        f"{program.model_name} at fp32 became {len(found.delegates)} XNNPACK partitions with "
        f"{outside} outside, where one and nothing is due: use this target's deployment form"
    )


def _details(program: Program, delegate: Delegate, found: Contents) -> dict[str, Any]:
    from importlib.metadata import version

    details = {
        "executorch": version("executorch"),
        "delegate": delegate,
        "partitions": len(found.delegates),
        "operators_outside": dict(found.operators),
        "weights": program.precision.weights,
        "arithmetic": _ARITHMETIC[program.precision.activations] + program.precision.exception,
    }
    if program.precision.weights == "float16":
        details |= _HALF[delegate]
    return details


_HALF = {
    "xnnpack": {
        "weights": "float16; convolutions float32, which the runtime narrows when it loads them",
        "gelu": "tanh form",
        "needs": "a CPU with float16 arithmetic (ARMv8.2-A FP16) or AVX2",
    },
    "portable": {"arithmetic": "float32, from float16 weights"},
    "coreml": {},
}


def _open(path: Path, *, threads: int | None = None) -> Any:
    import torch  # noqa: F401  # the runtime's library needs torch's to be loaded

    # `executorch.runtime` is this module behind the whole exporter package: 3 s and 130 MB more
    from executorch.extension.pybindings import _C

    if not path.is_file():
        raise InputError(f"{path} is not a file: give a .pte that `export executorch` wrote")
    if threads is not None:
        _C._unsafe_reset_threadpool(threads)  # a delegate keeps the pool it was loaded with
    try:
        return _C._load_program(
            str(path),
            enable_etdump=False,
            debug_buffer_size=0,
            program_verification=_C.Verification.InternalConsistency,
        )
    except RuntimeError as error:
        raise _unreadable(path, error) from error


def _method(program: Any, name: str, path: Path) -> Any:
    try:
        return program.load_method(name)
    except RuntimeError as error:
        raise _unreadable(path, error) from error


def _unreadable(path: Path, error: RuntimeError) -> InputError:
    return InputError(f"{path} does not load in ExecuTorch ({first_line(error)}): export it again")
