"""Target processes: what they measure, how they end, and what their failures become."""

from __future__ import annotations

import subprocess
import sys
import threading
import time
from pathlib import Path

import numpy as np
import pytest

from tinyvit_edge.bench import Entry, measure_latency
from tinyvit_edge.bundle import read_bundle
from tinyvit_edge.errors import ConversionError, InputError
from tinyvit_edge.parallel import run_parallel
from tinyvit_edge.worker import TargetProcess

IMAGE = np.zeros((1, 3, 64, 64), np.float32)


@pytest.fixture
def artifact(deployed) -> Path:
    """An ONNX file."""
    return read_bundle(deployed.out / "onnx-fp32").artifact


def test_peak_memory_is_the_childs_own(artifact):
    """Oracle: a small runtime beside a parent that holds 600 MB."""
    held = np.ones(600_000_000 // 8)
    with TargetProcess("onnx") as process:
        process.load(artifact)
        peak = process.time(IMAGE, 2).peak_rss_mb
    assert held.nbytes == 600_000_000
    assert 20 < peak < 400


def test_files_in_the_current_folder_are_not_imported(artifact, tmp_path, monkeypatch):
    """Oracle: a script of the user's that has the name of the runtime's package."""
    (tmp_path / "onnxruntime.py").write_text("raise SystemExit('imported')")
    monkeypatch.chdir(tmp_path)
    with TargetProcess("onnx") as process:
        process.load(artifact)
        assert process.run(IMAGE).shape == (1, 10)


def test_a_killed_child_is_a_conversion_error_that_says_so():
    """Oracle: the signal's name."""
    with TargetProcess("onnx") as process:
        process.kill()
        with pytest.raises(ConversionError, match="SIGKILL"):
            process.run(IMAGE)
        assert not process.alive


def test_an_error_in_the_child_is_told_from_the_users(tmp_path):
    """Oracle: a file that is no artifact, opened by the child."""
    damaged = tmp_path / "model.onnx"
    damaged.write_bytes(b"not a model")
    with TargetProcess("onnx") as process, pytest.raises(InputError) as caught:
        process.load(damaged)
    assert caught.value.in_child


def test_one_failing_artifact_does_not_stop_the_others_timing(artifact, tmp_path):
    """Oracle: the whole file's latency, and the damaged one's error."""
    damaged = tmp_path / "model.onnx"
    damaged.write_bytes(b"not a model")
    whole = Entry(key="whole", target="onnx", artifact=artifact, image=IMAGE)
    broken = Entry(key="broken", target="onnx", artifact=damaged, image=IMAGE)
    lost = []
    found = measure_latency([broken, whole], runs=3, lost=lambda entry, _: lost.append(entry))
    assert list(found) == ["whole"]
    assert lost == [broken]
    with pytest.raises(InputError):
        measure_latency([broken], runs=3)


def test_parallel_work_keeps_its_order_and_stops_together():
    """Oracle: the clock; the slow call waits for a child that would answer in a minute."""
    assert run_parallel(lambda n, _: n * n, range(5), jobs=2) == [0, 1, 4, 9, 16]
    started = threading.Event()

    def work(item, cancelled):
        if item == "fails":
            started.wait(30)
            raise InputError("no space left")
        with TargetProcess("onnx") as process:
            started.set()
            while not cancelled():
                process.audit  # noqa: B018
                time.sleep(0.01)

    start = time.monotonic()
    with pytest.raises(InputError, match="no space"):
        run_parallel(work, ["waits", "fails"], jobs=2)
    assert time.monotonic() - start < 30


def test_children_leave_no_log_behind(tmp_path):
    """Oracle: the folder for temporary files, given to a process that is killed outright."""
    code = (
        "import os; from tinyvit_edge.worker import TargetProcess; "
        "process = TargetProcess('onnx'); os._exit(0)"
    )
    environment = {"TMPDIR": str(tmp_path), "PATH": "/usr/bin:/bin"}
    subprocess.run([sys.executable, "-c", code], env=environment, check=True)
    assert list(tmp_path.iterdir()) == []
