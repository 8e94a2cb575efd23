"""Files that are whole or absent, whatever interrupts their writing."""

from __future__ import annotations

import errno
import hashlib
import json
import math
import os
import shutil
import signal
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import Any

import pytest

from tinyvit_edge.errors import InputError
from tinyvit_edge.files import (
    atomic_directory,
    atomic_file,
    check_writable,
    sha256_of,
    size_of,
    write_json,
)

_NOBODY = 65534

Atomic = Callable[[Path], AbstractContextManager[Path]]


def fill(temporary: Path, content: str) -> None:
    """What a writer does in either context, directory or file."""
    if temporary.is_dir():
        (temporary / "a").write_text(content)
        (temporary / "deep").mkdir()
        (temporary / "deep" / "b").write_text(content)
    else:
        temporary.write_text(content)


def content_of(path: Path) -> dict[str, str]:
    files = [path] if path.is_file() else [f for f in path.rglob("*") if f.is_file()]
    return {f.relative_to(path.parent).as_posix(): f.read_text() for f in files}


def write(atomic: Atomic, path: Path, content: str) -> None:
    with atomic(path) as temporary:
        fill(temporary, content)


@pytest.fixture(params=[atomic_file, atomic_directory], ids=lambda f: f.__name__)
def atomic(request: pytest.FixtureRequest) -> Atomic:
    made: Atomic = request.param
    return made


def test_what_was_written_replaces_what_was_there(atomic: Atomic, tmp_path: Path) -> None:
    """Oracle: the new content alone, nothing of the old, and no other name beside it."""
    path = tmp_path / "new" / "folder" / "model.bin"
    write(atomic, path, "one")
    if path.is_dir():
        (path / "stale").write_text("old")
    write(atomic, path, "two")
    assert set(content_of(path).values()) == {"two"}
    assert [p.name for p in path.parent.iterdir()] == ["model.bin"]


def test_the_temporary_name_is_beside_the_target_and_keeps_its_suffix(
    atomic: Atomic, tmp_path: Path
) -> None:
    """Oracle: a rename within one folder, and converters that go by the suffix."""
    with atomic(tmp_path / "model.mlpackage") as temporary:
        fill(temporary, "x")
        assert temporary.parent == tmp_path
        assert temporary.suffix == ".mlpackage"
        assert not (tmp_path / "model.mlpackage").exists()


@pytest.mark.parametrize("error", [ValueError("x"), KeyboardInterrupt(), SystemExit(3)])
def test_an_error_leaves_the_old_content_whole_and_no_litter(
    error: BaseException, atomic: Atomic, tmp_path: Path
) -> None:
    """Oracle: the folder's listing from before the attempt."""
    path = tmp_path / "kept"
    write(atomic, path, "old")
    before = content_of(path)

    def attempt() -> None:
        with atomic(path) as temporary:
            fill(temporary, "half")
            raise error

    with pytest.raises(type(error)):
        attempt()
    assert content_of(path) == before
    assert [p.name for p in tmp_path.iterdir()] == ["kept"]


def test_an_error_of_the_first_attempt_leaves_nothing(atomic: Atomic, tmp_path: Path) -> None:
    """Oracle: an empty folder."""

    def attempt() -> None:
        with atomic(tmp_path / "never") as temporary:
            fill(temporary, "half")
            raise RuntimeError

    with pytest.raises(RuntimeError):
        attempt()
    assert list(tmp_path.iterdir()) == []


_KILLED = """
import os, signal, sys
from pathlib import Path
from tinyvit_edge import files
with getattr(files, sys.argv[1])(Path(sys.argv[2])) as temporary:
    target = temporary / "a" if temporary.is_dir() else temporary
    target.write_text("half")
    os.kill(os.getpid(), signal.SIGKILL)
"""


def test_a_killed_process_leaves_the_old_content_whole(atomic: Atomic, tmp_path: Path) -> None:
    """Oracle: the content from before; SIGKILL gives no code a chance to clean up."""
    path = tmp_path / "kept"
    write(atomic, path, "old")
    before = content_of(path)
    arguments = [sys.executable, "-c", _KILLED, atomic.__name__, str(path)]
    killed = subprocess.run(arguments, check=False)
    assert killed.returncode == -signal.SIGKILL
    assert content_of(path) == before
    write(atomic, path, "new")
    assert set(content_of(path).values()) == {"new"}


@pytest.mark.parametrize("error", [OSError(errno.EIO, "bad disk"), KeyboardInterrupt()])
def test_an_error_between_the_two_renames_brings_the_old_folder_back(
    error: BaseException, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Oracle: the content from before; the new folder's rename fails once the old is aside."""
    path = tmp_path / "kept"
    write(atomic_directory, path, "old")
    before = content_of(path)
    rename, calls = Path.rename, []

    def second_fails(self: Path, target: Path) -> Path:
        calls.append(self)
        if len(calls) == 2:
            raise error
        return rename(self, target)

    monkeypatch.setattr(Path, "rename", second_fails)
    with pytest.raises(InputError if isinstance(error, OSError) else type(error)):
        write(atomic_directory, path, "new")
    assert len(calls) >= 2
    assert content_of(path) == before
    assert [p.name for p in tmp_path.iterdir()] == ["kept"]


@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EDQUOT])
def test_a_full_disk_is_one_line(code: int, atomic: Atomic, tmp_path: Path) -> None:
    """Oracle: the error that the operating system gives for a full disk or a quota."""
    path = tmp_path / "model.bin"

    def attempt() -> None:
        with atomic(path) as temporary:
            fill(temporary, "half")
            raise OSError(code, os.strerror(code))

    with pytest.raises(InputError) as caught:
        attempt()
    assert_one_line(caught.value, path, "no space left")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="only Linux has /dev/full")
def test_a_device_that_is_really_full_is_one_line(tmp_path: Path) -> None:
    """Oracle: the kernel's ENOSPC."""

    def attempt() -> None:
        with atomic_file(tmp_path / "model.bin") as temporary:
            temporary.symlink_to("/dev/full")
            temporary.write_bytes(b"x")

    with pytest.raises(InputError, match="no space left"):
        attempt()
    assert list(tmp_path.iterdir()) == []
    assert Path("/dev/full").exists()


def test_other_errors_of_the_operating_system_pass_through(atomic: Atomic, tmp_path: Path) -> None:
    """Oracle: the very error; a missing input must not be called an output that fails."""
    with pytest.raises(FileNotFoundError), atomic(tmp_path / "x"):
        (tmp_path / "missing").read_text()


def assert_one_line(error: Exception, path: Path, *words: str) -> None:
    message = str(error)
    assert "\n" not in message
    assert str(path) in message
    for word in words:
        assert word in message


# --- places that cannot be written ------------------------------------------------------------


@contextmanager
def without_privileges() -> Iterator[None]:
    """Root may write everywhere, so become somebody else for a while."""
    if os.geteuid() != 0:
        yield
        return
    try:
        os.seteuid(_NOBODY)
    except OSError:
        pytest.skip("cannot give up the rights of root here")
    try:
        yield
    finally:
        os.seteuid(0)


@pytest.fixture
def open_folder() -> Iterator[Path]:
    """A folder whose parents anyone may enter, unlike `tmp_path`'s."""
    folder = Path(tempfile.mkdtemp(prefix="tinyvit-edge-test-"))
    folder.chmod(0o755)
    yield folder
    for place, folders, _ in os.walk(folder):
        for name in folders:
            (Path(place) / name).chmod(0o700)
    shutil.rmtree(folder)


def attempts(path: Path) -> list[tuple[str, Callable[[], Any]]]:
    return [
        ("file", lambda: write(atomic_file, path, "x")),
        ("directory", lambda: write(atomic_directory, path, "x")),
        ("check", lambda: check_writable(path)),
        ("json", lambda: write_json(path, {})),
    ]


@pytest.mark.parametrize("mode", [0o555, 0o000], ids=["read-only", "closed"])
@pytest.mark.parametrize("below", ["x", "deep/er/x"])
def test_a_place_without_permission_is_one_line(below: str, mode: int, open_folder: Path) -> None:
    """Oracle: a folder that others may not write, or not even enter."""
    locked = open_folder / "locked"
    locked.mkdir()
    locked.chmod(mode)
    for name, attempt in attempts(locked / below):
        with without_privileges(), pytest.raises(InputError) as caught:
            attempt()
        assert_one_line(caught.value, locked / below, "cannot write")
        assert name
    assert list(locked.iterdir()) == []


@pytest.mark.parametrize("below", ["file/x", "file/deep/x"])
def test_a_file_where_a_folder_must_be_is_one_line(below: str, tmp_path: Path) -> None:
    """Oracle: a path that goes through a file; the file stays."""
    (tmp_path / "file").write_text("kept")
    for _, attempt in attempts(tmp_path / below):
        with pytest.raises(InputError) as caught:
            attempt()
        assert_one_line(caught.value, tmp_path / below)
    assert content_of(tmp_path / "file") == {"file": "kept"}
    assert [p.name for p in tmp_path.iterdir()] == ["file"]


@pytest.mark.parametrize(
    "attempt", [check_writable, lambda path: write(atomic_directory, path, "x")]
)
def test_a_file_in_place_of_the_folder_is_one_line(
    attempt: Callable[[Path], None], tmp_path: Path
) -> None:
    """Oracle: the file's content from before."""
    path = tmp_path / "out"
    path.write_text("kept")
    with pytest.raises(InputError) as caught:
        attempt(path)
    assert_one_line(caught.value, path, "is a file")
    assert path.read_text() == "kept"


@pytest.mark.parametrize(
    "attempt", [lambda path: write_json(path, {}), lambda path: write(atomic_file, path, "x")]
)
def test_a_folder_in_place_of_the_file_is_one_line(
    attempt: Callable[[Path], None], tmp_path: Path
) -> None:
    """Oracle: the folder's content from before."""
    path = tmp_path / "report.json"
    path.mkdir()
    (path / "kept").write_text("kept")
    with pytest.raises(InputError) as caught:
        attempt(path)
    assert_one_line(caught.value, path)
    assert (path / "kept").read_text() == "kept"
    assert [p.name for p in tmp_path.iterdir()] == ["report.json"]


def test_check_writable_leaves_nothing_behind(tmp_path: Path) -> None:
    """Oracle: the listing, for a folder that is there and for one that could be made."""
    check_writable(tmp_path / "a" / "b")
    check_writable(tmp_path)
    assert list(tmp_path.iterdir()) == []


# --- JSON, digests, sizes ---------------------------------------------------------------------


def test_json_is_indented_utf8_with_a_final_newline(tmp_path: Path) -> None:
    """Oracle: the bytes."""
    path = tmp_path / "x.json"
    write_json(path, {"b": ["é", 1.5], "a": None})
    expected = '{\n  "b": [\n    "é",\n    1.5\n  ],\n  "a": null\n}\n'
    assert path.read_bytes() == expected.encode()
    assert json.loads(path.read_bytes()) == {"b": ["é", 1.5], "a": None}


@pytest.mark.parametrize("value", [math.nan, math.inf, {"a": [-math.inf]}, {"a": object()}])
def test_json_refuses_what_json_has_no_value_for(value: Any, tmp_path: Path) -> None:
    """Oracle: RFC 8259; the file from before stays."""
    path = tmp_path / "x.json"
    write_json(path, 1)
    with pytest.raises((ValueError, TypeError)):
        write_json(path, value)
    assert path.read_text() == "1\n"
    assert [p.name for p in tmp_path.iterdir()] == ["x.json"]


def make_tree(root: Path, files: dict[str, bytes]) -> Path:
    for name, content in files.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)
    return root


TREE = {"b/z": b"12", "a": b"345", "b/y/x": b"", "c.txt": b"6789"}


def test_digest_of_a_file_is_its_sha256(tmp_path: Path) -> None:
    """Oracle: hashlib on the whole content, larger than one block."""
    path = tmp_path / "x"
    path.write_bytes(bytes(range(256)) * 5000)
    assert sha256_of(path) == hashlib.sha256(path.read_bytes()).hexdigest()
    assert size_of(path) == 256 * 5000


def test_digest_of_a_folder_depends_on_content_alone(tmp_path: Path) -> None:
    """Oracle: the same tree made in the opposite order, elsewhere; hashlib on the sorted files."""
    one = make_tree(tmp_path / "one", TREE)
    two = make_tree(tmp_path / "other" / "two", dict(reversed(TREE.items())))
    assert sha256_of(one) == sha256_of(two)
    assert size_of(one) == size_of(two) == 9
    stream = b"".join(f"{name}\0{len(TREE[name])}\0".encode() + TREE[name] for name in sorted(TREE))
    assert sha256_of(one) == hashlib.sha256(stream).hexdigest()


@pytest.mark.parametrize(
    "other",
    [
        {**TREE, "a": b"346"},
        {**{k: v for k, v in TREE.items() if k != "a"}, "aa": b"345"},
        {k: v for k, v in TREE.items() if k != "b/y/x"},
        {**TREE, "a": b"34", "b/z": b"512"},
        {**TREE, "a": b"12", "b/z": b"345"},
    ],
    ids=["byte", "name", "empty file", "boundary", "swapped"],
)
def test_digest_of_a_folder_sees_every_change(other: dict[str, bytes], tmp_path: Path) -> None:
    """Oracle: a tree that differs in one byte, name, file or place."""
    one, two = make_tree(tmp_path / "one", TREE), make_tree(tmp_path / "two", other)
    assert sha256_of(one) != sha256_of(two)


def test_digest_of_known_content(tmp_path: Path) -> None:
    """Oracle: the SHA-256 of "abc", FIPS 180-2, appendix B.1."""
    path = tmp_path / "abc"
    path.write_bytes(b"abc")
    assert sha256_of(path) == "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"
