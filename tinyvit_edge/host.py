"""What this host is: operating system, CPU, and the versions of the packages."""

from __future__ import annotations

import functools
import os
import platform
import subprocess
from importlib import metadata
from pathlib import Path
from typing import Any

__all__ = ["cpu_name", "host_info"]

_PACKAGES = (
    "torch",
    "executorch",
    "coremltools",
    "onnx",
    "onnxruntime",
    "litert-torch",
    "ai-edge-litert",
    "numpy",
    "transformers",
)


def host_info() -> dict[str, Any]:
    """Operating system, CPU, Python, and the versions of the packages that shape an artifact."""
    mac = platform.mac_ver()[0]
    return {
        "os": f"macOS {mac}" if mac else f"{platform.system()} {platform.release()}",
        "machine": platform.machine(),
        "cpu": cpu_name(),
        "logical_cores": os.cpu_count() or 1,
        "python": platform.python_version(),
        "packages": {name: version for name in _PACKAGES if (version := _version(name))},
    }


@functools.cache
def cpu_name() -> str:
    """The CPU's marketing name, or the machine type where the system does not tell."""
    named = _cpu_of_macos() if platform.system() == "Darwin" else _cpu_of_linux()
    return named or platform.processor() or platform.machine() or "unknown"


def _cpu_of_linux() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        return ""
    pairs = (line.partition(":") for line in lines)
    # ARM kernels have no "model name"; a board may call itself "Hardware" or "Model"
    found = {key.strip().lower(): " ".join(value.split()) for key, _, value in pairs}
    return next((found[key] for key in ("model name", "hardware", "model") if key in found), "")


def _cpu_of_macos() -> str:
    command = ["/usr/sbin/sysctl", "-n", "machdep.cpu.brand_string"]
    try:
        return subprocess.run(command, capture_output=True, text=True, timeout=5).stdout.strip()
    except (OSError, subprocess.SubprocessError):
        return ""


def _version(distribution: str) -> str | None:
    try:
        return metadata.version(distribution)
    except metadata.PackageNotFoundError:
        return None
