"""Builds apps/native, for its tests; what is missing for that skips them, by name."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import zipfile
from functools import cache
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
APP = ROOT / "apps" / "native"
BUILDS = ROOT / "build"
"""Git-ignored, and kept from run to run: only what changed is compiled again."""
SEARCH_PATH = os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]])
CMAKE_NEEDED = (3, 28)


def tool(name: str, remedy: str) -> str:
    """Path of a program; skips where it is missing."""
    found = shutil.which(name, path=SEARCH_PATH)
    if found is None:
        pytest.skip(f"{name} is missing: {remedy}")
    return found


def header(name: str, package: str) -> None:
    """Skips where a C++ header of a Debian package is missing."""
    if not Path("/usr/include", name).exists():
        pytest.skip(f"{name} is missing: apt-get install {package}")


def cmake() -> str:
    """Path of a CMake that is new enough; skips where there is none."""
    path = tool("cmake", "pip install cmake")
    said = subprocess.run([path, "--version"], capture_output=True, text=True, check=True).stdout
    found = re.search(r"(\d+)\.(\d+)", said)
    assert found is not None
    if tuple(map(int, found.groups())) < CMAKE_NEEDED:
        pytest.skip(f"CMake is older than {'.'.join(map(str, CMAKE_NEEDED))}: pip install cmake")
    return path


def build(name: str, executorch: Path, *options: str) -> Path:
    """Build the app, with warnings as errors; returns the folder with its programs.

    Args:
        name: of the folder below `BUILDS`.
        executorch: the unpacked package of the wheel to build against.
        options: of CMake.
    """
    header("nlohmann/json.hpp", "nlohmann-json3-dev")
    ninja, folder = tool("ninja", "pip install ninja"), BUILDS / name
    configure = [cmake(), "-S", str(APP), "-B", str(folder), "-G", "Ninja", *options]
    configure += [f"-DCMAKE_MAKE_PROGRAM={ninja}", "-DCMAKE_COMPILE_WARNING_AS_ERROR=ON"]
    configure += [f"-Dexecutorch_DIR={executorch / 'share' / 'cmake'}"]
    for command in (configure, [ninja, "-C", str(folder)]):
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stdout + done.stderr
    return folder


@cache
def host_programs() -> Path:
    """The folder with the programs, built for this host."""
    header("jpeglib.h", "libjpeg62-turbo-dev")
    header("png.h", "libpng-dev")
    package = find_spec("executorch")
    if package is None or package.submodule_search_locations is None:
        pytest.skip("executorch is missing: pip install 'tinyvit-edge[executorch]'")
    return build("native", Path(package.submodule_search_locations[0]))


def aarch64_executorch() -> Path:
    """The package of ExecuTorch's wheel for aarch64, of the version installed here, unpacked."""
    wanted = version("executorch")
    folder = BUILDS / f"executorch-{wanted}-aarch64"
    if not (folder / "executorch").exists():
        command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps"]
        command += ["--only-binary=:all:", "--platform", "manylinux_2_28_aarch64"]
        command += ["--python-version", "3.11", "--dest", str(folder), f"executorch=={wanted}"]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        if done.returncode != 0:
            pytest.skip(f"no aarch64 wheel of executorch: {done.stderr.strip().splitlines()[-1]}")
        (wheel,) = folder.glob("*.whl")
        unpacked = folder / "unpacked"
        with zipfile.ZipFile(wheel) as archive:
            archive.extractall(unpacked)
        (unpacked / "executorch").rename(folder / "executorch")
        shutil.rmtree(unpacked)
        wheel.unlink()
    return folder / "executorch"
