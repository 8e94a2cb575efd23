"""What a sample app measured on a device: read from JSON, and shown as a table.

``assets/device_report.schema.json`` is the contract and says what every key means.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tinyvit_edge.errors import InputError
from tinyvit_edge.report_table import NOT_MEASURED, milliseconds

__all__ = ["DeviceReport", "is_device_report", "read_device_report", "render_lines"]

_SCHEMA = Path(__file__).parent / "assets" / "device_report.schema.json"
_REMEDY = "save the report in the app again"
_HARDLY = {
    "emulated": "an emulator: these times say nothing about a device",
    "simulated": "a simulator: these times say nothing about a device",
}


@dataclass(frozen=True, slots=True, kw_only=True)
class DeviceReport:
    """One bundle on one backend of one device; `data` is the whole of it, as in the file."""

    data: Mapping[str, Any]

    @property
    def bundle(self) -> Mapping[str, Any]:
        """Name, target, precision and artifact of the bundle that ran."""
        return dict(self.data["bundle"])

    @property
    def backend(self) -> str:
        """Runtime and processor."""
        return str(self.data["backend"])

    @property
    def inference(self) -> Mapping[str, Any] | None:
        """``first``, ``median``, ``p90`` (ms) and ``count``; None where nothing was timed."""
        found: Mapping[str, Any] | None = self.data["latency_ms"].get("inference")
        return found

    @property
    def exit_code(self) -> int:
        """1 if the parity check failed on the device, else 0."""
        parity = self.data.get("parity")
        return int(parity is not None and not parity["passed"])


def is_device_report(path: Path) -> bool:
    """Whether a file is JSON with a device report's keys, valid or not."""
    try:
        data = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return False
    return isinstance(data, dict) and {"device", "latency_ms"} <= data.keys()


def read_device_report(path: Path) -> DeviceReport:
    """Read a report that an app saved.

    Raises:
        InputError: absent, not JSON, or against the schema; the message names the first
            violated path.
    """
    from jsonschema import Draft202012Validator

    try:
        data = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise InputError(f"{path}: not a readable report ({error}); {_REMEDY}") from error
    schema = json.loads(_SCHEMA.read_text(encoding="utf-8"))
    wrong = next(iter(Draft202012Validator(schema).iter_errors(data)), None)
    if wrong is not None:
        where = "/".join(map(str, wrong.absolute_path)) or "the top level"
        raise InputError(f"{path}: not a valid device report: {where}: {wrong.message}; {_REMEDY}")
    return DeviceReport(data=data)


def render_lines(report: DeviceReport) -> list[str]:
    """The report for people: what ran where, a Markdown table of times, and the verdict."""
    data = report.data
    bundle, device, latency = data["bundle"], data["device"], data["latency_ms"]
    parts = (device.get(key) for key in ("manufacturer", "model", "browser", "os"))
    threads = data.get("threads")
    lines = [
        f"{bundle['name']} on {report.backend}"
        + (f", {threads} thread{'s' if threads > 1 else ''}" if threads else "")
        + f"; {', '.join(part for part in parts if part)} ({device['kind']})",
        "",
        "| step | first, ms | median, ms | p90, ms | runs |",
        "| --- | --: | --: | --: | --: |",
        f"| load | {milliseconds(latency.get('load'))} | | | |",
        *(_row(step, latency.get(step)) for step in ("preprocess", "inference")),
        "",
        _verdict(data.get("parity")),
    ]
    return [*lines, _HARDLY[device["kind"]]] if device["kind"] in _HARDLY else lines


def _row(step: str, times: Mapping[str, Any] | None) -> str:
    values = times or {}
    cells = [milliseconds(values.get(key)) for key in ("first", "median", "p90")]
    return f"| {step} | {' | '.join(cells)} | {values.get('count', NOT_MEASURED)} |"


def _verdict(parity: Mapping[str, Any] | None) -> str:
    if parity is None:
        return "parity: not checked on the device"
    count = f"{len(parity['images'])} golden image{'s' if len(parity['images']) != 1 else ''}"
    if parity["passed"]:
        return f"parity: {count} as where the bundle was made"
    worst = "; ".join(
        f"{image['name']}: {image['different_bytes']} bytes differ, SQNR "
        + ("-" if image.get("sqnr_db") is None else f"{image['sqnr_db']:.1f} dB")
        for image in parity["images"]
    )
    return f"parity: FAILED on {count} ({worst})"
