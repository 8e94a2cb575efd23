"""`teach` as people start it: killed and continued, on two processes, and asked for nonsense."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

EPOCHS = 40
Content = Callable[[Path], dict[str, bytes]]


@pytest.fixture(scope="module")
def photos(digits_images: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A flat folder of 23 digits, which is no multiple of the batch."""
    folder = tmp_path_factory.mktemp("photos")
    for path in sorted((digits_images / "heldout").rglob("*.png"))[::25][:23]:
        shutil.copy(path, folder)
    return folder


def command(photos: Path, out: Path) -> list[str]:
    """The bundled model teaches 40 views of each digit, in batches of 4."""
    return [
        *("-m", "tinyvit_edge", "teach", "--teacher", "digits", "--data", str(photos)),
        *("--epochs", str(EPOCHS), "--top-k", "3", "--image-size", "48", "--batch", "4"),
        *("--workers", "0", "--threads", "1", "--amp", "fp32", "-q", "--out", str(out)),
    ]


@pytest.fixture(scope="module")
def whole(
    photos: Path, content: Content, tmp_path_factory: pytest.TempPathFactory
) -> dict[str, bytes]:
    """The store of one process that nobody stopped."""
    out = tmp_path_factory.mktemp("whole") / "store"
    subprocess.run([sys.executable, *command(photos, out)], check=True)
    return content(out)


def test_killed_store_ends_as_if_it_had_not_been(
    photos: Path, whole: dict[str, bytes], content: Content, tmp_path: Path
) -> None:
    """Kill -9 on the way, twice; every file equals the uninterrupted run's, to the byte."""
    out = tmp_path / "store"
    for epoch in (1, EPOCHS // 4):
        process = subprocess.Popen([sys.executable, *command(photos, out)])
        deadline = time.monotonic() + 120
        while not any((out / f"epoch-{epoch:04d}").glob("*")):
            assert time.monotonic() < deadline
            assert process.poll() is None
            time.sleep(0.002)
        os.kill(process.pid, signal.SIGKILL)
        process.wait()
        assert content(out) != whole
    subprocess.run([sys.executable, *command(photos, out)], check=True)
    assert content(out) == whole


def test_two_processes_write_the_store_of_one(
    photos: Path, whole: dict[str, bytes], content: Content, tmp_path: Path
) -> None:
    """Under torchrun with gloo; the oracle is one process's store, to the byte."""
    out = tmp_path / "store"
    launcher = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    subprocess.run(
        [sys.executable, *launcher, *command(photos, out)],
        check=True,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        capture_output=True,
    )
    assert content(out) == whole


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--teacher", "efficientnet-lite3"], "other teachers: efficientnet-lite2"),
        (["--teacher", "timm:no_such_model"], "no_such_model"),
        (["--teacher", "digits", "--augment", "lite"], "choose distill, light"),
        (["--teacher", "digits", "--amp", "int8"], "choose auto"),
        (["--teacher", "digits", "--check"], "not a store"),
    ],
)
def test_bad_input_is_one_line(
    photos: Path, tmp_path: Path, arguments: list[str], words: str, cli: Callable[..., Any]
) -> None:
    """Exit code 2, one line on stderr, nothing written."""
    out = tmp_path / "store"
    status, _, err = cli("teach", *arguments, "--data", photos, "--out", out)
    assert status == 2
    lines = err.strip().splitlines()
    assert len(lines) == 1
    assert words in lines[0]
    assert not out.exists()


def test_folder_without_images_is_one_line(tmp_path: Path, cli: Callable[..., Any]) -> None:
    """The folder is named."""
    (tmp_path / "empty").mkdir()
    out = tmp_path / "store"
    status, _, err = cli("teach", "--teacher", "digits", "--data", tmp_path / "empty", "--out", out)
    assert status == 2
    assert err.count("\n") == 1
    assert str(tmp_path / "empty") in err
    assert not out.exists()


def test_other_lesson_in_the_same_folder_is_refused(
    photos: Path, content: Content, tmp_path: Path, cli: Callable[..., Any]
) -> None:
    """What differs is named, and the store stays as it was."""
    out = tmp_path / "store"
    arguments = ["teach", "--teacher", "digits", "--data", photos, "--workers", 0, "--out", out]
    assert cli(*arguments, "-q")[0] == 0
    before = content(out)
    status, _, err = cli(*arguments, "--top-k", 2)
    assert status == 2
    assert "top_k" in err
    assert content(out) == before
