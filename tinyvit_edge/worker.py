"""One target in a process of its own: convert, run and time artifacts.

Thread pools of several runtimes in one process spin against each other, converters change global
state and print, and native code can crash. So each runs in a child that speaks over a pipe; what
it prints goes to a log whose last line explains a crash.

Messages are plain pickles: `Connection.send` would pass tensors by shared memory, which needs a
common multiprocessing parent. A request is ``(method name, arguments)``; a reply is
``("ok", value)`` or ``("error", exception)``.
"""

from __future__ import annotations

import os
import pickle
import resource
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Mapping
from dataclasses import dataclass
from multiprocessing import Pipe
from multiprocessing.connection import Connection
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any

from tinyvit_edge.errors import ConversionError, TinyVitEdgeError
from tinyvit_edge.exporters import Audit, Exported, Exporter, Runner, exporter

if TYPE_CHECKING:
    from tinyvit_edge.lint import Finding
    from tinyvit_edge.pixels import Pixels
    from tinyvit_edge.program import Program
    from tinyvit_edge.types import FloatArray

__all__ = ["Loaded", "TargetProcess", "Timing", "kill_all"]

_THREAD_VARIABLES = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS")
# "" on the path is the current folder, whose onnx.py or coreml.py would be imported for the package
_CHILD = (
    "import sys; sys.path[:] = filter(None, sys.path); "
    "from tinyvit_edge.worker import serve; serve({fd})"
)
_PATIENCE_S = 10.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Loaded:
    """What loading an artifact cost."""

    load_ms: float
    """Wall time of the load, the runtime's own import included."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Timing:
    """Times of consecutive runs of one image."""

    wall_ms: tuple[float, ...]
    cpu_ms: float
    """CPU time of the whole process over all the runs together."""
    peak_rss_mb: float
    """Largest resident memory of the process so far, in MB (10^6 bytes)."""


class TargetProcess:
    """Client of one child process; a context manager that ends the child."""

    def __init__(
        self, target: str, *, options: Mapping[str, Any] | None = None, threads: int = 1
    ) -> None:
        self.target = target
        self._log = tempfile.TemporaryFile()  # noqa: SIM115  closed with the process
        self._connection, theirs = Pipe()
        environment = os.environ | dict.fromkeys(_THREAD_VARIABLES, str(threads))
        self._process = subprocess.Popen(
            [sys.executable, "-c", _CHILD.format(fd=theirs.fileno())],
            pass_fds=(theirs.fileno(),),
            stdin=subprocess.DEVNULL,
            stdout=self._log,
            stderr=subprocess.STDOUT,
            env=environment,
        )
        theirs.close()
        with _lock:
            _live.add(self)
        self._call("start", target, dict(options or {}), threads)

    def __enter__(self) -> TargetProcess:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close(kill=kind is not None)

    @property
    def alive(self) -> bool:
        """Whether the child can still answer."""
        return self._process.poll() is None

    def close(self, *, kill: bool = False) -> None:
        """End the child, after what it is doing or at once."""
        if kill:
            self._process.kill()
        self._connection.close()  # the child ends when it next looks for a request
        try:
            self._process.wait(_PATIENCE_S)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        self._log.close()
        with _lock:
            _live.discard(self)

    def kill(self) -> None:
        """End the child at once; whoever waits for its answer gets a `ConversionError`."""
        self._process.kill()

    def export(self, program: Program, path: Path) -> Exported:
        """See `Exporter.export`."""
        exported: Exported = self._call("export", program, path)
        return exported

    def audit(self, path: Path) -> Audit:
        """See `Exporter.audit`."""
        audit: Audit = self._call("audit", path)
        return audit

    def lint(self, path: Path) -> tuple[Finding, ...]:
        """See `tinyvit_edge.lint.lint`."""
        findings: tuple[Finding, ...] = self._call("lint", path)
        return findings

    def lint_lowered(self, program: Program) -> tuple[Finding, ...]:
        """See `tinyvit_edge.lint.lint_lowered`."""
        findings: tuple[Finding, ...] = self._call("lint_lowered", program)
        return findings

    def load(self, path: Path) -> Loaded:
        """Load the artifact that `run` and `time` use."""
        loaded: Loaded = self._call("load", path)
        return loaded

    def run(self, images: FloatArray) -> FloatArray:
        """Logits (n, classes) of normalised images (n, 3, S, S), one image at a time."""
        logits: FloatArray = self._call("run", images)
        return logits

    def classify(self, pixels: Pixels, start: int, stop: int) -> FloatArray:
        """Logits (rows, classes) of the images from `start` to before `stop`, one at a time."""
        logits: FloatArray = self._call("classify", pixels, start, stop)
        return logits

    def time(self, image: FloatArray, runs: int) -> Timing:
        """Time consecutive runs of one normalised image (1, 3, S, S)."""
        timing: Timing = self._call("time", image, runs)
        return timing

    def _call(self, method: str, *arguments: Any) -> Any:
        try:
            self._connection.send_bytes(pickle.dumps((method, arguments)))
            status, value = pickle.loads(self._connection.recv_bytes())
        except (EOFError, OSError) as error:
            raise ConversionError(self._obituary(method)) from error
        if status == "error":
            value.in_child = True
            raise value
        return value

    def _obituary(self, method: str) -> str:
        try:
            code = self._process.wait(_PATIENCE_S)
        except subprocess.TimeoutExpired:
            self._process.kill()
            code = self._process.wait()
        how = f"was killed by {signal.Signals(-code).name}" if code < 0 else f"ended with {code}"
        self._log.seek(0)
        lines = self._log.read().decode(errors="replace").strip().splitlines()
        said = f"; its last words: {lines[-1][:200]}" if lines else ""
        return f"the {self.target} process {how} during {method}{said}"


_live: set[TargetProcess] = set()
_lock = threading.Lock()


def kill_all() -> None:
    """Kill every child of this Python process that still runs, from any thread."""
    with _lock:
        for process in _live:
            process.kill()


class _Server:
    """The child's side: one exporter, and at most one loaded artifact."""

    _exporter: Exporter
    _runner: Runner
    _threads: int

    def start(self, target: str, options: dict[str, Any], threads: int) -> None:
        self._exporter, self._threads = exporter(target, **options), threads

    def export(self, program: Program, path: Path) -> Exported:
        return self._exporter.export(program, path)

    def audit(self, path: Path) -> Audit:
        return self._exporter.audit(path)

    def lint(self, path: Path) -> tuple[Finding, ...]:
        from tinyvit_edge.lint import lint

        return lint(self._exporter.name, path)

    def lint_lowered(self, program: Program) -> tuple[Finding, ...]:
        from tinyvit_edge.lint import lint_lowered

        return lint_lowered(self._exporter.name, program)

    def load(self, path: Path) -> Loaded:
        start = time.perf_counter()
        self._runner = self._exporter.load(path, threads=self._threads)
        return Loaded(load_ms=1e3 * (time.perf_counter() - start))

    def run(self, images: FloatArray) -> FloatArray:
        import numpy as np

        return np.concatenate([self._runner(image[None]) for image in images])

    def classify(self, pixels: Pixels, start: int, stop: int) -> FloatArray:
        return self.run(pixels.tensors(start, stop))

    def time(self, image: FloatArray, runs: int) -> Timing:
        walls = []
        cpu = time.process_time()
        for _ in range(runs):
            start = time.perf_counter()
            self._runner(image)
            walls.append(1e3 * (time.perf_counter() - start))
        cpu_ms = 1e3 * (time.process_time() - cpu)
        return Timing(wall_ms=tuple(walls), cpu_ms=cpu_ms, peak_rss_mb=_peak_rss_mb())


def _peak_rss_mb() -> float:
    if sys.platform.startswith("linux"):
        # not ru_maxrss, which outlives fork and exec: it would be the parent's
        for line in Path("/proc/self/status").read_text().splitlines():
            if line.startswith("VmHWM:"):
                return int(line.split()[1]) * 1024 / 1e6
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e6  # bytes, on macOS


def serve(file_descriptor: int) -> None:
    """Answer requests until the other end closes; what the child process runs."""
    connection: Connection[Any, Any] = Connection(file_descriptor)
    server = _Server()
    while True:
        try:
            method, arguments = pickle.loads(connection.recv_bytes())
        except EOFError:
            return
        try:
            reply = ("ok", getattr(server, method)(*arguments))
        except TinyVitEdgeError as error:
            reply = ("error", error)
        except Exception as error:
            import traceback

            traceback.print_exc()
            line = str(error).strip().splitlines()
            summary = f"{type(error).__name__}: {line[0][:300] if line else 'no message'}"
            reply = ("error", ConversionError(f"{method} failed: {summary}"))
        connection.send_bytes(pickle.dumps(reply))
