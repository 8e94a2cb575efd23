"""The arithmetic of the latency probe, without a clock."""

from __future__ import annotations

import numpy as np
import pytest

from tinyvit_edge.bench import _split, _summary, fp32_of, latency_notes, with_speedups
from tinyvit_edge.report import Latency
from tinyvit_edge.worker import Loaded, Timing


@pytest.mark.parametrize("total", [0, 1, 7, 9, 10, 11, 50, 101])
@pytest.mark.parametrize("parts", [1, 3, 10])
def test_runs_are_split_as_evenly_as_can_be(total: int, parts: int) -> None:
    """Oracle: the sum, no zeros, a spread of one at most, and no more rounds than asked."""
    rounds = _split(total, parts)
    assert sum(rounds) == total
    assert len(rounds) == min(total, parts)
    if rounds:
        assert min(rounds) >= 1
        assert max(rounds) - min(rounds) <= 1


def test_percentiles_are_over_the_runs_of_all_rounds() -> None:
    """Oracle: `numpy.percentile` of 1..100 ms, and sums and maxima by hand."""
    timings = [
        Timing(wall_ms=tuple(range(1, 41)), cpu_ms=1000.0, peak_rss_mb=90.0),
        Timing(wall_ms=tuple(range(41, 101)), cpu_ms=4050.0, peak_rss_mb=120.0),
    ]
    latency = _summary(timings, Loaded(load_ms=12.5))
    walls = np.arange(1.0, 101.0)
    assert (latency.p50_ms, latency.p90_ms, latency.p99_ms) == pytest.approx(
        tuple(np.percentile(walls, (50, 90, 99)))
    )
    assert latency.cpu_over_wall == pytest.approx(5050 / 5050)
    assert latency.load_ms == 12.5
    assert latency.peak_rss_mb == 120.0
    assert latency.device_kind == "host"
    assert latency.cpu


def test_speedup_is_over_the_same_targets_fp32() -> None:
    """Oracle: by hand: 10 / 4 on one target; the other has no fp32 to compare with."""
    latencies = {
        ("onnx", "fp32"): Latency(p50_ms=10.0, p90_ms=99.0),
        ("onnx", "w8a8"): Latency(p50_ms=4.0, p90_ms=99.0),
        ("onnx", "fp16"): Latency(p50_ms=20.0),
        ("tflite", "w8a8"): Latency(p50_ms=2.0),
        ("onnx", "w8-dynamic"): Latency(),
    }
    out = with_speedups(latencies, fp32_of)
    assert {key: latency.speedup_vs_fp32 for key, latency in out.items()} == {
        ("onnx", "fp32"): 1.0,
        ("onnx", "w8a8"): 2.5,
        ("onnx", "fp16"): 0.5,
        ("tflite", "w8a8"): None,
        ("onnx", "w8-dynamic"): None,
    }
    assert list(out) == list(latencies)
    assert out["onnx", "w8a8"].p90_ms == 99.0
    assert latencies["onnx", "w8a8"].speedup_vs_fp32 is None


@pytest.mark.parametrize(
    ("speedup", "quantized", "says"),
    [(0.5, True, True), (1.0, True, True), (1.01, True, False), (0.5, False, False)],
)
def test_an_int8_artifact_that_is_not_faster_says_so(
    speedup: float, quantized: bool, says: bool
) -> None:
    """Oracle: at half the speed it takes twice the time."""
    latency = Latency(speedup_vs_fp32=speedup, cpu_over_wall=1.0, threads=1)
    notes = latency_notes(latency, quantized=quantized)
    assert bool(notes) == says
    if says:
        (note,) = notes
        assert "int8 is not faster than fp32" in note
        assert f"{1 / speedup:.2f}x" in note


@pytest.mark.parametrize(
    ("threads", "ratio", "single"),
    [(4, 1.0, True), (4, 1.29, True), (4, 1.3, False), (1, 1.0, False)],
)
def test_threads_that_did_not_work_are_told(threads: int, ratio: float, single: bool) -> None:
    """Oracle: several threads that use little more than one thread's CPU time."""
    notes = latency_notes(Latency(threads=threads, cpu_over_wall=ratio), quantized=True)
    assert any("single-thread figure" in note for note in notes) == single
    assert not any("busy" in note for note in notes)
    if single:
        assert f"{threads} threads" in notes[0]
        assert f"{ratio:.2f}x" in notes[0]


@pytest.mark.parametrize(("ratio", "busy"), [(0.79, True), (0.3, True), (0.8, False), (1.0, False)])
def test_a_busy_machine_is_told(ratio: float, busy: bool) -> None:
    """Oracle: one thread that had the processor for less than four fifths of the time."""
    notes = latency_notes(Latency(threads=1, cpu_over_wall=ratio), quantized=False)
    assert any("busy" in note for note in notes) == busy
    assert len(notes) == int(busy)


def test_nothing_is_said_of_what_was_not_measured() -> None:
    """Oracle: a latency of nothing but a median."""
    assert latency_notes(Latency(p50_ms=3.0), quantized=True) == ()
