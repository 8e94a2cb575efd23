"""The report: what a run made and measured, as values, as JSON, and as files for people.

``assets/report.schema.json`` is the contract of ``report.json`` and says what every key means.
The values here are canonical: numpy scalars become Python's, and what JSON has no number for is
replaced when a value is made. A NaN or an infinity becomes None, but an SQNR is clamped to
`SQNR_LIMIT_DB` instead, because +infinity is what a bit-exact artifact measures.
"""

from __future__ import annotations

import json
import math
import textwrap
from collections.abc import Mapping
from dataclasses import dataclass, field, fields, is_dataclass
from pathlib import Path
from typing import Any, Literal, TypeVar

from tinyvit_edge.errors import InputError
from tinyvit_edge.files import atomic_file, write_json
from tinyvit_edge.report_table import SQNR_LIMIT_DB, render_markdown, render_table

__all__ = [
    "SQNR_LIMIT_DB",
    "Accuracy",
    "Audited",
    "Conversion",
    "Disagreement",
    "Gate",
    "Int8",
    "Latency",
    "LeftFloat",
    "ModelInfo",
    "Quantization",
    "Report",
    "Row",
    "read_report",
    "remove_report",
    "render_markdown",
    "render_table",
    "write_report",
]

Status = Literal["ok", "gate_failed", "failed", "skipped", "unsupported"]
Evaluation = Literal["runtime", "reference-evaluated", "predicted"]

_FILES = ("report.json", "report.html")
_SCHEMA = Path(__file__).parent / "assets" / "report.schema.json"
_T = TypeVar("_T", bound="_Section")


class _Section:
    """A part of the report whose JSON keys are its field names."""

    __slots__ = ()

    def __post_init__(self) -> None:
        for name in _names(self):
            object.__setattr__(self, name, _canonical(name, getattr(self, name)))

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON values, every key present."""
        return {name: _plain(getattr(self, name)) for name in _names(self)}

    @classmethod
    def from_dict(cls: type[_T], data: Mapping[str, Any]) -> _T:
        """The inverse of `to_dict`; absent keys take their defaults."""
        return cls(**data)


@dataclass(frozen=True, slots=True, kw_only=True)
class Conversion(_Section):
    """Conversion loss: the artifact in its runtime against the same-precision PyTorch model."""

    sqnr_db: float | None = None
    max_abs: float | None = None
    cosine: float | None = None
    kl: float | None = None
    """Nats, mean over images."""
    top1_agreement: float | None = None
    reference: str | None = None
    """What it was compared with."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Quantization(_Section):
    """Quantization loss: the artifact in its runtime against the fp32 PyTorch model."""

    sqnr_db: float | None = None
    kl: float | None = None
    top1_agreement: float | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Accuracy(_Section):
    """Fraction of `n` labelled images whose first class is the label."""

    top1: float | None = None
    n: int | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Latency(_Section):
    """One image at a time, in a process of its own."""

    p50_ms: float | None = None
    p90_ms: float | None = None
    p99_ms: float | None = None
    threads: int | None = None
    runs: int | None = None
    warmup: int | None = None
    cpu_over_wall: float | None = None
    load_ms: float | None = None
    peak_rss_mb: float | None = None
    """10^6 bytes."""
    device_kind: str | None = None
    cpu: str | None = None
    speedup_vs_fp32: float | None = None
    """p50 of the same target's fp32 artifact over this one's; above 1 is faster."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Int8(_Section):
    """How much of the artifact is int8, as fractions in 0..1."""

    weight_bytes_fraction: float | None = None
    mac_fraction: float | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class LeftFloat(_Section):
    """Products of one kind that the artifact computes in floating point."""

    kind: str
    count: int
    macs: int
    reason: str
    """What the recipe says to it."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Audited(_Section):
    """What was read back from the saved file, as `tinyvit_edge.exporters.Audit` says, and why."""

    weight_bytes: Mapping[str, int]
    macs: Mapping[str, int]
    quantize: int
    dequantize: int
    needless: int
    left_float: tuple[LeftFloat, ...] = ()
    left_out: Mapping[str, str] = field(default_factory=dict)
    """Layers that the calibration of a ``-mixed`` row leaves in floating point, and why."""

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> Audited:
        """The inverse of `to_dict`."""
        return cls(**{**data, "left_float": tuple(map(LeftFloat.from_dict, data["left_float"]))})


@dataclass(frozen=True, slots=True, kw_only=True)
class Gate(_Section):
    """One bound on one measure; a `name` that contains "sqnr" is in dB."""

    name: str
    passed: bool
    measured: float | None
    bound: float | None
    direction: Literal["min", "max"] | None = None
    """``min``: measured >= bound passes; ``max``: measured <= bound passes."""
    reason: str | None = None
    """Why this bound."""

    def __post_init__(self) -> None:
        kind = "sqnr_db" if "sqnr" in self.name.lower() else "measured"
        object.__setattr__(self, "passed", bool(self.passed))
        object.__setattr__(self, "measured", _canonical(kind, self.measured))
        object.__setattr__(self, "bound", _canonical(kind, self.bound))


@dataclass(frozen=True, slots=True, kw_only=True)
class Row(_Section):
    """One target at one precision."""

    target: str
    precision: str
    status: Status
    reason: str | None = None
    """Never None where `status` is not ``ok``."""
    bundle: str | None = None
    artifact: str | None = None
    """POSIX style, relative to the report's folder, as is `bundle`."""
    size_bytes: int | None = None
    sha256: str | None = None
    conversion: Conversion | None = None
    quantization: Quantization | None = None
    accuracy: Accuracy | None = None
    latency: Latency | None = None
    int8: Int8 | None = None
    audit: Audited | None = None
    """None where the file can be read on its own platform only."""
    evaluation: Evaluation | None = None
    reproducible: bool | None = None
    gates: tuple[Gate, ...] = ()
    notes: tuple[str, ...] = ()
    lint: tuple[Mapping[str, Any], ...] = ()
    """Each a `tinyvit_edge.lint.Finding`, where ``--lint`` asked for them."""
    seconds: float | None = None
    """Wall time of the export."""
    details: Mapping[str, Any] = field(default_factory=dict)

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> Row:
        """The inverse of `to_dict`; absent keys take their defaults."""
        sections = {
            name: part.from_dict(data[name])
            for name, part in _ROW_SECTIONS.items()
            if data.get(name) is not None
        }
        gates = tuple(Gate.from_dict(gate) for gate in data.get("gates", ()))
        lists = {name: tuple(data.get(name, ())) for name in ("notes", "lint")}
        return cls(**{**data, **sections, **lists, "gates": gates})


_ROW_SECTIONS: Mapping[str, type[_Section]] = {
    "conversion": Conversion,
    "quantization": Quantization,
    "accuracy": Accuracy,
    "latency": Latency,
    "int8": Int8,
    "audit": Audited,
}


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelInfo(_Section):
    """The checkpoint that everything was made from."""

    variant: str
    params: int
    weights_sha256: str
    num_classes: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Disagreement(_Section):
    """How often two targets at the same precision choose different first classes."""

    precision: str
    targets: tuple[str, str]
    fraction: float
    """Of the `n` images that both ran on, in 0..1."""
    n: int

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> Disagreement:
        """The inverse of `to_dict`."""
        first, second = data["targets"]
        return cls(**{**data, "targets": (first, second)})


@dataclass(frozen=True, slots=True, kw_only=True)
class Report(_Section):
    """Everything one run made and measured."""

    schema_version: int = 1
    created: str | None = None
    """UTC, ISO 8601."""
    command: tuple[str, ...] = ()
    tool_version: str | None = None
    host: Mapping[str, Any]
    """As `tinyvit_edge.host.host_info` gives it; further keys are kept."""
    model: ModelInfo
    reference: Accuracy | None = None
    """Accuracy of the fp32 PyTorch model; ``reference.accuracy`` in JSON."""
    rows: tuple[Row, ...]
    disagreements: tuple[Disagreement, ...] = ()
    """Of every two targets that ran at the same precision."""

    @property
    def exit_code(self) -> int:
        """4 if a conversion failed, else 1 if a gate failed, else 0 if anything was made.

        Where nothing was: 3 if packages were missing, 2 if all that was asked is unsupported.
        """
        statuses = {row.status for row in self.rows}
        for status, code in (("failed", 4), ("gate_failed", 1), ("ok", 0), ("skipped", 3)):
            if status in statuses:
                return code
        return 2

    def to_dict(self) -> dict[str, Any]:
        """What ``report.json`` holds."""
        data = {name: _plain(getattr(self, name)) for name in _names(self)}
        return {**data, "reference": {"accuracy": data["reference"]}}

    @classmethod
    def from_dict(cls, data: Mapping[str, Any], *, source: str = "report") -> Report:
        """The inverse of `to_dict`.

        Args:
            data: the parsed ``report.json``.
            source: what an error calls it, such as the file's path.

        Raises:
            InputError: it violates the schema; the message names the first violated path.
        """
        _validate(data, source)
        accuracy = (data.get("reference") or {}).get("accuracy")
        parts = {
            "command": tuple(data.get("command", ())),
            "model": ModelInfo.from_dict(data["model"]),
            "reference": None if accuracy is None else Accuracy.from_dict(accuracy),
            "rows": tuple(Row.from_dict(row) for row in data["rows"]),
            "disagreements": tuple(map(Disagreement.from_dict, data.get("disagreements", ()))),
        }
        return cls(**{**data, **parts})


def write_report(report: Report, out_dir: Path) -> Path:
    """Write ``report.json`` and ``report.html``, each whole or not at all; return the first.

    Raises:
        InputError: the report violates the schema, or the folder cannot be written.
    """
    from tinyvit_edge.report_html import render_html

    path, page = (out_dir / name for name in _FILES)
    data = report.to_dict()
    _validate(data, str(path))
    write_json(path, data)
    with atomic_file(page) as temporary:
        temporary.write_text(render_html(report), encoding="utf-8")
    return path


def remove_report(out_dir: Path) -> None:
    """Remove what `write_report` wrote there, if anything."""
    for name in _FILES:
        (out_dir / name).unlink(missing_ok=True)


def read_report(path: Path) -> Report:
    """Read ``report.json``, or the one in the folder `path`.

    Raises:
        InputError: absent, not JSON, or against the schema.
    """
    file = path / "report.json" if path.is_dir() else path
    try:
        data = json.loads(file.read_text(encoding="utf-8"))
    except OSError as error:
        raise InputError(
            f"{file}: {error.strerror or error}; give a report.json, or the folder it is in"
        ) from error
    except ValueError as error:
        raise InputError(f"{file}: not JSON ({error}); run deploy again to write it") from error
    return Report.from_dict(data, source=str(file))


def _validate(data: object, source: str) -> None:
    from jsonschema import Draft202012Validator

    schema = json.loads(_SCHEMA.read_text(encoding="utf-8"))
    error = next(iter(Draft202012Validator(schema).iter_errors(data)), None)
    if error is not None:
        where = "/".join(str(part) for part in error.absolute_path) or "the top level"
        what = textwrap.shorten(error.message, 200, placeholder=" ...")
        raise InputError(f"{source}: not a valid report: {where}: {what}; run deploy again")


def _names(value: object) -> tuple[str, ...]:
    assert is_dataclass(value)
    return tuple(item.name for item in fields(value))


def _canonical(name: str, value: Any) -> Any:
    value = value.item() if hasattr(value, "item") else value  # numpy's and torch's scalars
    if not isinstance(value, float):
        return value
    if name == "sqnr_db" and not math.isnan(value):
        return max(-SQNR_LIMIT_DB, min(SQNR_LIMIT_DB, value))
    return value if math.isfinite(value) else None


def _plain(value: Any) -> Any:
    if isinstance(value, _Section):
        return value.to_dict()
    if isinstance(value, Mapping):
        return {str(key): _plain(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(item) for item in value]
    if isinstance(value, Path):
        return value.as_posix()
    return _canonical("", value)
