"""What saved files store and compute in which type, in words and as a part of the page."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING

from tinyvit_edge.report_page import text_table

if TYPE_CHECKING:
    from tinyvit_edge.report import Audited, Report, Row

__all__ = ["audit_lines", "audit_section"]

_WORDS = {
    "linear": ("Linear layer", "Linear layers"),
    "conv": ("convolution", "convolutions"),
    "attention": ("product of attention", "products of attention"),
}
_INTEGERS = frozenset({"int8", "uint8", "uint6", "int4", "uint4"})
_SHOWN = 3  # layers that a line names
_UNITS = ((1e9, "GMAC"), (1e6, "MMAC"), (1e3, "kMAC"), (1.0, "MAC"))


def audit_lines(report: Report) -> list[str]:
    """A line a precision that has integers: what is computed in them, what is not, and why not.

    Targets whose files compute alike share it.
    """
    alike: dict[tuple[str, str], list[Row]] = {}
    for row in report.rows:
        if row.audit is not None and _quantized(row.audit):
            alike.setdefault((row.precision, _arithmetic(row.audit)), []).append(row)
    lines = []
    for (precision, text), rows in alike.items():
        counts = ", ".join(f"{row.target} {_pair(row.audit)}" for row in rows if row.audit)
        lines.append(f"{precision}: {text}; quantize/dequantize: {counts}")
    found = [(row.precision, row.audit) for rows in alike.values() for row in rows if row.audit]
    return [*lines, *_reasons(found)]


def audit_section(rows: Sequence[Row]) -> str:
    """The audits as HTML: a table of what is computed in which type, and the reasons under it."""
    audits = [(row, row.audit) for row in rows if row.audit is not None]
    if not audits:
        return ""
    titles = ("artifact", "weights", "products", "left float", "quantize", "dequantize", "needless")
    cells = [
        (
            f"{row.target} {row.precision}",
            _bytes(audit.weight_bytes),
            ", ".join(f"{dtype} {_macs(macs, audit)}" for dtype, macs in audit.macs.items()),
            "; ".join(_left(audit)) or "nothing",
            str(audit.quantize),
            str(audit.dequantize),
            str(audit.needless),
        )
        for row, audit in audits
    ]
    caption = (
        "Read back from the saved files; conversions that belong to an int8 layer not counted."
    )
    reasons = [(line,) for line in _reasons([(row.precision, a) for row, a in audits], shown=None)]
    why = text_table("Left float", "", ("what is computed in floating point, and why",), reasons)
    table = text_table("Saved files", caption, titles, cells)
    return f"<h2>What is really int8</h2>{table}{why if reasons else ''}"


def _quantized(audit: Audited) -> bool:
    """Whether weights are integers; shapes and biases are integers of more bits."""
    return not _INTEGERS.isdisjoint(audit.weight_bytes)


def _arithmetic(audit: Audited) -> str:
    """Such as "int8 14.7 of 14.9 MMAC, float 8 products of attention (0.26 MMAC)"."""
    size, unit = _unit(audit)
    int8, total = audit.macs.get("int8", 0) / size, sum(audit.macs.values()) / size
    if not int8:
        return f"all {total:.3g} {unit} in floating point"
    left = ", ".join(_left(audit)) or "nothing"
    return f"int8 {int8:.3g} of {total:.3g} {unit}, float {left}"


def _left(audit: Audited) -> list[str]:
    return [
        f"{left.count} {_WORDS[left.kind][left.count > 1]} ({_macs(left.macs, audit)})"
        for left in audit.left_float
    ]


def _pair(audit: Audited | None) -> str:
    if audit is None:
        return ""
    needless = f" ({audit.needless} needless)" if audit.needless else ""
    return f"{audit.quantize}/{audit.dequantize}{needless}"


def _reasons(audits: Sequence[tuple[str, Audited]], *, shown: int | None = _SHOWN) -> list[str]:
    """Every reason once, after the precisions and kinds that it is of; then layers left out."""
    precisions: dict[str, dict[str, None]] = {}
    kinds: dict[str, dict[str, None]] = {}
    layers: dict[str, str] = {}
    for precision, audit in audits:
        for left in audit.left_float:
            precisions.setdefault(left.reason, {})[precision] = None
            kinds.setdefault(left.reason, {})[_WORDS[left.kind][True]] = None
        if audit.left_out:
            layers[precision] = _named(audit.left_out, shown)
    lines = [
        f"{_listed(names)} in float ({', '.join(precisions[reason])}): {reason}"
        for reason, names in kinds.items()
    ]
    return lines + [f"{precision} leaves out {text}" for precision, text in layers.items()]


def _named(layers: Mapping[str, str], shown: int | None) -> str:
    texts = [f"{name} ({reason})" for name, reason in layers.items()]
    rest = len(texts[shown:]) if shown is not None else 0
    return ", ".join(texts[:shown]) + (f" and {rest} more" if rest else "")


def _listed(names: Iterable[str]) -> str:
    *others, last = names
    return f"{', '.join(others)} and {last}" if others else last


def _macs(count: int, audit: Audited) -> str:
    size, unit = _unit(audit)
    return f"{count / size:.3g} {unit}"


def _unit(audit: Audited) -> tuple[float, str]:
    """The unit that suits all of an artifact's work."""
    total = sum(audit.macs.values())
    return next((one for one in _UNITS if total >= one[0]), _UNITS[-1])


def _bytes(sizes: Mapping[str, int]) -> str:
    return ", ".join(f"{dtype} {size:,} B" for dtype, size in sizes.items())
