"""What the tests of both phone apps need: golden vectors, syntax trees, tools or a skip."""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest

REPOSITORY = Path(__file__).parents[1]
APPS = REPOSITORY / "apps"


def tool(name: str, package: str) -> str:
    """The path of a program; the test is skipped where it is missing."""
    found = shutil.which(name)
    if found is None:
        pytest.skip(f"needs {name} ({package})")
    return found


def file_of(path: str, package: str) -> Path:
    """A file of a Debian package; the test is skipped where it is missing."""
    if not Path(path).exists():
        pytest.skip(f"needs {path} (Debian: {package})")
    return Path(path)


def run(*command: str | Path, **options: Any) -> subprocess.CompletedProcess[str]:
    """Run a command to its end; what it prints is in the result."""
    return subprocess.run(
        [str(part) for part in command],
        capture_output=True,
        text=True,
        check=False,
        timeout=600,
        **options,
    )


def write_goldens(folder: Path) -> Path:
    """Run `apps/goldens.py`, as a developer of the apps would."""
    done = run(sys.executable, APPS / "goldens.py", folder, cwd=REPOSITORY)
    assert done.returncode == 0, done.stderr
    return folder


def sources(folder: Path, *suffixes: str) -> list[Path]:
    """The files below a folder that git knows or would take, by suffix."""
    listed = run(
        "git", "ls-files", "--cached", "--others", "--exclude-standard", folder, cwd=REPOSITORY
    )
    assert listed.returncode == 0, listed.stderr
    paths = [REPOSITORY / line for line in listed.stdout.splitlines()]
    return sorted(path for path in paths if path.suffix in suffixes)


def syntax_errors(language: str, files: Sequence[Path]) -> list[str]:
    """Where tree-sitter's grammar of a language does not take a file; it is in the dev extra."""
    tree_sitter = pytest.importorskip("tree_sitter")
    grammar = pytest.importorskip(f"tree_sitter_{language}")
    parser = tree_sitter.Parser(tree_sitter.Language(grammar.language()))

    def errors(node: Any) -> Iterator[Any]:
        if node.type == "ERROR" or node.is_missing:
            yield node
        elif node.has_error:
            for child in node.children:
                yield from errors(child)

    return [
        f"{file.relative_to(APPS)}:{node.start_point[0] + 1}: {node.text.decode()[:60]!r}"
        for file in files
        for node in errors(parser.parse(file.read_bytes()).root_node)
    ]


def documented_bounds() -> dict[str, float]:
    """The bounds in dB by which `docs/bundle.md` tells implementations to check logits."""
    text = (REPOSITORY / "docs" / "bundle.md").read_text(encoding="utf-8")
    found = re.search(
        r">= (\d+) dB SQNR at fp32, >= (\d+) dB at fp16;.*judge int8 by top-1 and >= (\d+) dB",
        text,
    )
    assert found, "docs/bundle.md no longer says the bounds in these words"
    return dict(zip(("FLOAT32", "FLOAT16", "QUANTIZED"), map(float, found.groups()), strict=True))


def git_ignores(path: Path) -> bool:
    """Whether git would leave a file at this path alone."""
    return run("git", "check-ignore", "-q", path, cwd=REPOSITORY).returncode == 0
