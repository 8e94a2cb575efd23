"""What an audit found, beside what the recipe says to it: for manifests, reports and people."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

from tinyvit_edge.report import Audited, LeftFloat

if TYPE_CHECKING:
    from tinyvit_edge.exporters import Audit
    from tinyvit_edge.precision import Precision
    from tinyvit_edge.quantization.calibration import Calibration

__all__ = ["audited", "left_out"]

_UNASKED = "the recipe does not leave it so"


def left_out(precision: Precision, calibration: Calibration | None) -> dict[str, str]:
    """Layers that a ``-mixed`` row leaves in floating point, and why; empty at other rows."""
    if not precision.mixed or calibration is None:
        return {}
    return dict(calibration.left_float or {})


def audited(audit: Audit, precision: Precision, layers: Mapping[str, str]) -> Audited:
    """Put the recipe's reasons beside what was found.

    Args:
        audit: what was read back from the file.
        precision: the recipe's row.
        layers: what `left_out` gives.
    """
    return Audited(
        weight_bytes=audit.weight_bytes,
        macs=audit.macs,
        quantize=audit.quantize,
        dequantize=audit.dequantize,
        needless=audit.needless,
        left_float=tuple(
            LeftFloat(
                kind=kind,
                count=share.count,
                macs=share.macs,
                reason=precision.why_float.get(kind, _UNASKED),
            )
            for kind, share in audit.left_float.items()
        ),
        left_out=layers,
    )
