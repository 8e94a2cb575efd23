r"""Where an artifact's time goes: milliseconds by kind of operator, by its own runtime's profiler.

    python benchmarks/operators.py out/onnx-w8a8/model.onnx out/executorch-w8a8/model.pte \
        out/tflite-w8a8/model.tflite

ONNX Runtime's profile, ExecuTorch's event trace and LiteRT's profiler (XNNPACK's operators, in
both) are read; one thread, images of noise. A Markdown table a file goes to stdout, all of them
to --json.
"""

from __future__ import annotations

import argparse
import json
import tempfile
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np

from tinyvit_edge.exporters._quiet import quiet_stderr
from tinyvit_edge.host import host_info
from tinyvit_edge.types import FloatArray

_WARM_UP = 5
# what ExecuTorch's trace calls the run as a whole, and loading
_WHOLE = ("DELEGATE_CALL", "Method::execute", "Method::init", "Program::load_method")
# What XNNPACK's runtime makes of dequantize, GELU, quantize, and has no name for: there are as many
# of it in a trace as GELUs are missing.
_UNNAMED = {"Invalid Unary Op": "8-bit GELU, by a table"}


@dataclass(frozen=True, kw_only=True)
class Kind:
    """All operators of one kind in one run."""

    name: str
    count: int
    milliseconds: float


def main() -> None:
    """Parse the command line, profile, print."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("files", nargs="+", type=Path, help=".onnx, .pte and .tflite")
    parser.add_argument("--image-size", type=int, default=224)
    parser.add_argument("--runs", type=int, default=30)
    parser.add_argument("--json", type=Path)
    args = parser.parse_args()
    shape = (1, 3, args.image_size, args.image_size)
    image = np.random.default_rng(0).normal(size=shape).astype(np.float32)
    found = {}
    for path in args.files:
        if path.suffix not in PROFILERS:
            parser.error(f"{path}: no profiler for {path.suffix}; give {', '.join(PROFILERS)}")
        found[str(path)] = PROFILERS[path.suffix](path, image, args.runs)
        print(markdown(path, found[str(path)]))
    if args.json is not None:
        kinds = {path: [asdict(kind) for kind in found[path]] for path in found}
        args.json.write_text(json.dumps({"host": host_info(), "files": kinds}, indent=2) + "\n")


def onnx_kinds(path: Path, image: FloatArray, runs: int) -> list[Kind]:
    """Kernels of ONNX Runtime's optimized graph."""
    import onnxruntime as ort

    with tempfile.TemporaryDirectory() as folder:
        options = ort.SessionOptions()
        options.intra_op_num_threads = 1
        options.enable_profiling = True
        options.profile_file_prefix = str(Path(folder) / "profile")
        session = ort.InferenceSession(path, options, providers=["CPUExecutionProvider"])
        for _ in range(_WARM_UP + runs):
            session.run(None, {session.get_inputs()[0].name: image})
        events = json.loads(Path(session.end_profiling()).read_text())
    nodes: dict[str, tuple[str, list[float]]] = {}
    for event in events:
        if event.get("cat") == "Node" and event["name"].endswith("_kernel_time"):
            _, times = nodes.setdefault(event["name"], (event["args"]["op_name"], []))
            times.append(event["dur"] / 1000)
    return _kinds((kind, median(times[_WARM_UP:])) for kind, times in nodes.values())


def executorch_kinds(path: Path, image: FloatArray, runs: int) -> list[Kind]:
    """Operators of ExecuTorch's delegates."""
    import torch

    with quiet_stderr(), tempfile.TemporaryDirectory() as folder:
        from executorch.devtools import Inspector
        from executorch.extension.pybindings import _C

        _C._unsafe_reset_threadpool(1)
        program = _C._load_program(
            str(path),
            enable_etdump=True,
            debug_buffer_size=0,
            program_verification=_C.Verification.InternalConsistency,
        )
        method = program.load_method("forward")
        for _ in range(runs):
            method([torch.from_numpy(image)])
        trace = str(Path(folder) / "trace.etdp")
        program.write_etdump_result_to_file(trace)
        blocks = Inspector(etdump_path=trace).event_blocks
    events: Iterator[Any] = (event for block in blocks for event in block.events)
    return _kinds(
        (name, event.perf_data.p50)
        for event in events
        if event.perf_data is not None and (name := event.name.split(" #")[0]) not in _WHOLE
    )


def tflite_kinds(path: Path, image: FloatArray, runs: int) -> list[Kind]:
    """Operators of XNNPACK, and those that LiteRT runs itself."""
    import litert_profiler

    with quiet_stderr():
        return _kinds(litert_profiler.profile(path, image, runs=runs))


PROFILERS: dict[str, Callable[[Path, FloatArray, int], list[Kind]]] = {
    ".onnx": onnx_kinds,
    ".pte": executorch_kinds,
    ".tflite": tflite_kinds,
}


def _kinds(operators: Iterable[tuple[str, float]]) -> list[Kind]:
    counts: Counter[str] = Counter()
    times: dict[str, float] = {}
    for name, milliseconds in operators:
        kind = _UNNAMED.get(name, name)
        counts[kind] += 1
        times[kind] = times.get(kind, 0.0) + milliseconds
    kinds = [Kind(name=k, count=counts[k], milliseconds=ms) for k, ms in times.items()]
    return sorted(kinds, key=lambda kind: -kind.milliseconds)


def markdown(path: Path, kinds: list[Kind]) -> str:
    """The table, and a line for the whole."""
    total = sum(kind.milliseconds for kind in kinds)
    lines = [
        f"{path}: {total:.2f} ms",
        "",
        "| operator | count | ms | share, % |",
        "| --- | --: | --: | --: |",
    ]
    lines += [
        f"| {kind.name} | {kind.count} | {kind.milliseconds:.2f}"
        f" | {100 * kind.milliseconds / total:.1f} |"
        for kind in kinds
    ]
    return "\n".join([*lines, ""])


if __name__ == "__main__":
    main()
