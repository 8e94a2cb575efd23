"""An ONNX file by the rules of ONNX Runtime's mobile execution providers."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Any

from tinyvit_edge.exporters._onnx_profile import check, inferred
from tinyvit_edge.exporters._quiet import quiet_stderr
from tinyvit_edge.lint import Finding

__all__ = ["lint"]

_SUPPORTED = "coreml_supported_mlprogram_ops.md"  # a list in ONNX Runtime's own package


def lint(path: Path) -> tuple[Finding, ...]:
    """Judge a ``.onnx`` file, after what ONNX Runtime folds when it loads it.

    Raises:
        InputError: the file is not readable.
    """
    from onnxruntime.tools.mobile_helpers import usability_checker
    from onnxruntime.tools.onnx_model_utils import optimize_model

    violations = check(path)
    with tempfile.TemporaryDirectory() as folder, quiet_stderr():
        folded = Path(folder) / "folded.onnx"
        optimize_model(path, folded)
        model = inferred(folded)
    shapes = True  # both providers want them known
    return (
        Finding(
            rule="profile",
            device="TFLite converters",
            passed=not violations,
            found=f"{len(violations)} breaches of the TFLite-compatible profile",
            remedy=str(violations[0]) if violations else None,
        ),
        _partitions(
            "Core ML", usability_checker.check_coreml_partitions(model, shapes, _SUPPORTED)
        ),
        _partitions("NNAPI", usability_checker.check_nnapi_partitions(model, shapes)),
    )


def _partitions(device: str, info: Any) -> Finding:
    """What an execution provider takes, by type of operator."""
    left = info.num_nodes - info.num_supported_nodes
    operators = sorted({*info.unsupported_ops, *info.ops_with_unsupported_rank})
    return Finding(
        rule="one partition",
        device=f"{device} execution provider",
        passed=info.num_partitions == 1 and not left,
        found=f"{info.num_partitions} partitions, {left} of {info.num_nodes} nodes outside"
        + (f": {', '.join(operators)}" if operators else ""),
        remedy="compare with the CPU provider before choosing this one: nodes outside cost copies",
    )
