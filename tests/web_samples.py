"""The web app as a site of its own, and the driver that opens it in headless Chromium."""

from __future__ import annotations

import functools
import json
import os
import shutil
import subprocess
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

APP = Path(__file__).parents[1] / "apps" / "web"
_MADE = ("node_modules", "vendor", "bundles")
# npm's words where there is no registry to ask; any other failure is ours
_OFFLINE = ("ENOTFOUND", "EAI_AGAIN", "ECONNREFUSED", "ETIMEDOUT", "ENETUNREACH")
_OLDEST_NODE = 20  # playwright-core's
_SECONDS = 110


def chromium() -> str:
    """The browser's path; skips where there is none, or no Node to drive it with."""
    if shutil.which("npm") is None or _node() < _OLDEST_NODE:
        pytest.skip(f"needs npm, and Node {_OLDEST_NODE} or later")
    found = os.environ.get("CHROMIUM") or shutil.which("chromium")
    if found is None:
        pytest.skip("needs Chromium, in PATH or named by CHROMIUM")
    return found


def _node() -> int:
    shown = subprocess.run(["node", "--version"], capture_output=True, text=True, check=True)
    return int(shown.stdout.removeprefix("v").partition(".")[0])


def install(folder: Path) -> Path:
    """Copy the app to `folder` with its npm packages, as `make app-web` has them."""
    shutil.copytree(APP, folder, ignore=shutil.ignore_patterns(*_MADE))
    done = subprocess.run(
        ["npm", "ci", "--ignore-scripts", "--no-audit", "--no-fund"],
        cwd=folder,
        capture_output=True,
        text=True,
        check=False,
    )
    if any(word in done.stderr for word in _OFFLINE):
        pytest.skip("npm cannot reach its registry")
    assert done.returncode == 0, done.stderr
    subprocess.run(["node", "vendor.js"], cwd=folder, check=True)
    return folder


class _Quiet(SimpleHTTPRequestHandler):
    def log_message(self, *_: Any) -> None:
        """Say nothing."""


@contextmanager
def served(site: Path) -> Iterator[str]:
    """Serve a folder as a static host would; yields its address."""
    with ThreadingHTTPServer(
        ("127.0.0.1", 0), functools.partial(_Quiet, directory=str(site))
    ) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        try:
            yield f"http://127.0.0.1:{server.server_port}/"
        finally:
            server.shutdown()
            thread.join()


def drive(site: Path, scenario: str, **options: Any) -> dict[str, Any]:
    """Play one of ``e2e/scenarios.js`` on a site: {"result", "logs", "errors"}."""
    with served(site) as url:
        values = {"url": url, "chromium": chromium(), **options}
        done = subprocess.run(
            ["node", "e2e/drive.js", scenario, json.dumps(values, default=str)],
            cwd=site,
            capture_output=True,
            text=True,
            check=False,
            timeout=_SECONDS,
        )
    assert done.returncode == 0, done.stderr
    outcome: dict[str, Any] = json.loads(done.stdout)
    return outcome
