"""LiteRT's own profiler, which its Python package leaves out and its shared library has.

The calls are those of LiteRT's C API (``litert/c/*.h``) in ai-edge-litert 2.3.
"""

from __future__ import annotations

import ctypes
import re
from collections.abc import Iterator
from pathlib import Path
from time import perf_counter

import numpy as np

from tinyvit_edge.errors import InputError
from tinyvit_edge.exporters import _tflite_file as tflite_file
from tinyvit_edge.types import FloatArray

__all__ = ["profile"]

_CPU, _HOST_MEMORY, _FLOAT32, _WRITE = 1, 1, 1, 1
_MAX_RANK = 8
# node type, start, first, average in ms, share, running share, memory, times called
_LINE = re.compile(
    r"^\s*(\S.*?)\s+[\d.]+\s+[\d.]+\s+([\d.]+)\s+[\d.]+%\s+[\d.]+%\s+[\d.]+\s+(\d+)\s"
)
_Handle = ctypes.c_void_p


class _Layout(ctypes.Structure):
    _fields_ = (
        ("rank", ctypes.c_uint, 7),
        ("has_strides", ctypes.c_uint, 1),
        ("dimensions", ctypes.c_int32 * _MAX_RANK),
        ("strides", ctypes.c_uint32 * _MAX_RANK),
    )


class _TensorType(ctypes.Structure):
    _fields_ = (("element_type", ctypes.c_int), ("layout", _Layout))


@ctypes.CFUNCTYPE(None, ctypes.c_void_p)
def _keep(_: int) -> None:
    """Python frees the texts of the options."""


class _Library:
    """The C API: a call that reports an error raises `InputError`."""

    def __init__(self) -> None:
        import ai_edge_litert

        folder = Path(ai_edge_litert.__file__).parent
        self._library = ctypes.CDLL(str(folder / "libLiteRt.so"))

    def call(self, name: str, *arguments: object) -> None:
        if status := getattr(self._library, f"LiteRt{name}")(*arguments):
            raise InputError(f"LiteRT {name} gives error {status}: is this a TFLite file?")

    def make(self, name: str, *arguments: object) -> _Handle:
        handle = _Handle()
        self.call(name, *arguments, ctypes.byref(handle))
        return handle


def profile(path: Path, image: FloatArray, *, runs: int) -> tuple[list[tuple[str, float]], float]:
    """Time each operator of a ``.tflite`` file, XNNPACK's included, on one thread.

    Args:
        path: takes one float32 image and gives float32 logits.
        image: (1, 3, S, S).
        runs: profiled runs, after as many that are not.

    Returns:
        Kind and mean milliseconds of every operator; and those of a run.

    Raises:
        InputError: LiteRT refuses the file.
    """
    api = _Library()
    environment = api.make("CreateEnvironment", 0, None)
    model = api.make("CreateModelFromFile", environment, str(path).encode())
    options = api.make("CreateOptions")
    api.call("SetOptionsHardwareAccelerators", options, _CPU)
    texts = {b"runtime_options_string": b"enable_profiling = true", b"xnnpack": b"num_threads = 1"}
    buffers = {name: ctypes.create_string_buffer(text) for name, text in texts.items()}
    for name, buffer in buffers.items():
        payload = ctypes.cast(buffer, ctypes.c_void_p)
        api.call("AddOpaqueOptions", options, api.make("CreateOpaqueOptions", name, payload, _keep))
    compiled = api.make("CreateCompiledModel", environment, model, options)
    graph = tflite_file.parse(path.read_bytes()).subgraphs[0]
    logits = graph.tensors[graph.outputs[0]]
    inputs = (_Handle * 1)(_buffer(api, environment, image.shape))
    outputs = (_Handle * 1)(_buffer(api, environment, tuple(logits.shape)))
    _fill(api, inputs[0], image)
    one = ctypes.c_size_t(1)

    def run() -> None:
        api.call("RunCompiledModel", compiled, ctypes.c_size_t(0), one, inputs, one, outputs)

    for _ in range(runs):
        run()
    profiler = api.make("CompiledModelGetProfiler", compiled)
    api.call("StartProfiler", profiler)
    start = perf_counter()
    for _ in range(runs):
        run()
    mean = 1000 * (perf_counter() - start) / runs
    api.call("StopProfiler", profiler)
    summary = ctypes.c_char_p()
    api.call("GetProfileSummary", profiler, compiled, ctypes.byref(summary))
    return list(_operators((summary.value or b"").decode(), runs)), mean


def _buffer(api: _Library, environment: _Handle, shape: tuple[int, ...]) -> _Handle:
    kind = _TensorType(element_type=_FLOAT32)
    kind.layout.rank = len(shape)
    kind.layout.dimensions[: len(shape)] = shape
    size = ctypes.c_size_t(4 * int(np.prod(shape)))
    return api.make(
        "CreateManagedTensorBuffer", environment, _HOST_MEMORY, ctypes.byref(kind), size
    )


def _fill(api: _Library, buffer: int, image: FloatArray) -> None:
    place = _Handle()
    api.call("LockTensorBuffer", _Handle(buffer), ctypes.byref(place), _WRITE)
    ctypes.memmove(place, np.ascontiguousarray(image).ctypes.data, image.nbytes)
    api.call("UnlockTensorBuffer", _Handle(buffer))


def _operators(summary: str, runs: int) -> Iterator[tuple[str, float]]:
    """Lines of the first table, which has an operator a line.

    Operators with the same place in several delegates share a line, which then has their average.
    """
    table = summary.partition("Run Order")[2].partition("Top by Computation Time")[0]
    for line in table.splitlines():
        if found := _LINE.match(line):
            kind = found.group(1).removeprefix("Delegate/")
            yield from [(kind, float(found.group(2)))] * (int(found.group(3)) // runs)
