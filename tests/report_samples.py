"""Reports that look like those of a run."""

from __future__ import annotations

import io
from dataclasses import replace
from typing import Any

from rich.console import Console

from tinyvit_edge.host import host_info
from tinyvit_edge.report import (
    Accuracy,
    Conversion,
    Gate,
    Int8,
    Latency,
    ModelInfo,
    Quantization,
    Report,
    Row,
    render_table,
)

SHA = "0123456789abcdef" * 4


def made(target: str = "onnx", precision: str = "w8a8", **changes: Any) -> Row:
    row = Row(
        target=target,
        precision=precision,
        status="ok",
        bundle=f"{target}-{precision}",
        artifact=f"{target}-{precision}/model.{target}",
        size_bytes=1_352_411,
        sha256=SHA,
        conversion=Conversion(
            sqnr_db=48.25,
            max_abs=0.01,
            cosine=0.99999,
            kl=1e-6,
            top1_agreement=1.0,
            reference="qdq",
        ),
        quantization=Quantization(sqnr_db=22.41, kl=2e-3, top1_agreement=0.995),
        accuracy=Accuracy(top1=0.98164, n=599),
        latency=Latency(
            p50_ms=1.234,
            p90_ms=1.4,
            p99_ms=1.9,
            threads=1,
            runs=50,
            warmup=10,
            cpu_over_wall=0.99,
            load_ms=21.0,
            peak_rss_mb=188.0,
            device_kind="cpu",
            cpu="A CPU",
            speedup_vs_fp32=1.62,
        ),
        int8=Int8(weight_bytes_fraction=0.93, mac_fraction=0.881),
        evaluation="runtime",
        reproducible=True,
        gates=(
            Gate(
                name="conversion.sqnr_db",
                passed=True,
                measured=48.25,
                bound=30.0,
                direction="min",
                reason="one step of the output scale",
            ),
        ),
        notes=("int8 is not faster than fp32 here: 0.93x",),
        seconds=3.5,
        details={"partitions": 1},
    )
    return replace(row, **changes)


def missing(status: Any, target: str = "tflite", reason: str = "litert-torch is absent") -> Row:
    return Row(target=target, precision="fp16", status=status, reason=reason)


def report_of(*rows: Row, **changes: Any) -> Report:
    report = Report(
        created="2025-01-02T03:04:05Z",
        command=("tinyvit-edge", "deploy", "--data", "my photos"),
        tool_version="0.1.0",
        host=host_info(),
        model=ModelInfo(variant="small", params=1_234_567, weights_sha256=SHA, num_classes=10),
        reference=Accuracy(top1=0.9866, n=599),
        rows=rows,
    )
    return replace(report, **changes)


def full_report() -> Report:
    return report_of(
        made("onnx", "fp32", quantization=None, notes=()),
        made("onnx", "w8a8"),
        missing("unsupported", "onnx", "onnx can do fp32, w8-dynamic, w8a8"),
        made("executorch", "w8a8", status="gate_failed", reason="SQNR 11.2 dB is below 30 dB"),
        missing("failed", "tflite", "could not lower aten.unfold"),
        made("coreml", "w8a8", latency=None, evaluation="reference-evaluated", notes=()),
    )


def printed(report: Report, **options: Any) -> str:
    stream = io.StringIO()
    render_table(report, Console(file=stream, **options))
    return stream.getvalue()
