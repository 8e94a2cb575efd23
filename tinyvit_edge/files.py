"""Files that are whole or absent: write to a temporary name beside the target, then rename."""

from __future__ import annotations

import errno
import hashlib
import json
import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from tinyvit_edge.errors import InputError

__all__ = [
    "atomic_directory",
    "atomic_file",
    "check_writable",
    "sha256_of",
    "size_of",
    "write_json",
]


_DISK_FULL = (errno.ENOSPC, errno.EDQUOT)


@contextmanager
def atomic_file(path: Path) -> Iterator[Path]:
    """Yield a temporary path to write; on success it replaces `path`, on an error it is removed.

    Raises:
        InputError: the folder cannot be written, or its disk is full.
    """
    temporary = _reserve(path)
    try:
        with _explained(path, *_DISK_FULL):  # other errors of the body are the body's
            yield temporary
        with _explained(path):
            temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)


def check_writable(directory: Path) -> None:
    """Check that files can be made in a folder, or that it can be made; nothing is left behind.

    Raises:
        InputError: it cannot be made, is a file, or cannot be written.
    """
    with _explained(directory):
        _refuse_file(directory)
        nearest = directory.absolute()
        while not nearest.exists():
            nearest = nearest.parent
        with tempfile.TemporaryFile(dir=nearest):
            pass


@contextmanager
def atomic_directory(path: Path) -> Iterator[Path]:
    """Yield a temporary directory to fill; on success it replaces `path` as a whole.

    Raises:
        InputError: the parent cannot be written, its disk is full, or `path` is a file.
    """
    with _explained(path):
        _refuse_file(path)
        path = path.resolve()  # a link to a folder stays a link
    temporary = _reserve(path)
    try:
        with _explained(path):
            temporary.mkdir()
        with _explained(path, *_DISK_FULL):
            yield temporary
        with _explained(path):
            _swap(temporary, path)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def _refuse_file(path: Path) -> None:
    if path.exists() and not path.is_dir():
        raise InputError(f"{path} is a file: give a folder to write to")


def _swap(temporary: Path, path: Path) -> None:
    # a rename cannot replace a folder that holds files, so the old one steps aside first
    if not path.exists():
        temporary.rename(path)
        return
    retired = _reserve(path)
    path.rename(retired)
    try:
        temporary.rename(path)
    except BaseException:  # an interrupt too
        retired.rename(path)
        raise
    shutil.rmtree(retired, ignore_errors=True)


def _reserve(path: Path) -> Path:
    with _explained(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        # the suffix stays last: some converters go by it
        handle = tempfile.mkdtemp(prefix=".tmp-", dir=path.parent)
        Path(handle).rmdir()
    return Path(f"{handle}{path.suffix}")


_CAUSES = {
    errno.ENOSPC: "no space left; free some, or choose another place",
    errno.EDQUOT: "no space left in the quota; free some, or choose another place",
    errno.ENOTDIR: "a file stands where a folder must be; choose another place",
    errno.EEXIST: "a file stands where a folder must be; choose another place",
    errno.EISDIR: "a folder has that name; choose another",
}


@contextmanager
def _explained(path: Path, *causes: int) -> Iterator[None]:
    """Turn an `OSError`, or those of some causes, into one line that names `path`."""
    try:
        yield
    except OSError as error:
        if causes and error.errno not in causes:
            raise
        cause = _CAUSES.get(error.errno or 0, f"{error.strerror or error}; choose another place")
        raise InputError(f"cannot write {path}: {cause}") from error


def write_json(path: Path, value: Any) -> None:
    """Write a JSON file atomically, indented, with a final newline; NaN is refused."""
    text = json.dumps(value, indent=2, allow_nan=False, ensure_ascii=False) + "\n"
    with atomic_file(path) as temporary:
        temporary.write_text(text, encoding="utf-8")


def sha256_of(path: Path) -> str:
    """Hex SHA-256 of a file, or of a folder: relative names and contents in sorted order.

    Raises:
        FileNotFoundError: nothing is there.
    """
    digest = hashlib.sha256()
    for file in _files(path):
        if file != path:
            digest.update(f"{file.relative_to(path).as_posix()}\0{file.stat().st_size}\0".encode())
        with file.open("rb") as stream:
            while block := stream.read(1 << 20):
                digest.update(block)
    return digest.hexdigest()


def size_of(path: Path) -> int:
    """Size in bytes of a file, or of all files of a folder."""
    return sum(file.stat().st_size for file in _files(path))


def _files(path: Path) -> list[Path]:
    if not path.is_dir():
        path.stat()
        return [path]
    return sorted(Path(root) / name for root, _, names in os.walk(path) for name in names)
