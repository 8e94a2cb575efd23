r"""Where an artifact's time goes: milliseconds by kind of operator, by its own runtime's profiler.

    python benchmarks/operators.py out/onnx-w8a8/model.onnx out/executorch-w8a8/model.pte \
        out/tflite-w8a8/model.tflite

ONNX Runtime's profile, ExecuTorch's event trace and LiteRT's profiler (XNNPACK's operators, in
both) are read; one thread, images of noise. A Markdown table a file goes to stdout, all of them
to --json. Its last row is the run that the operators are of. What they leave of it is the runtime's
own time and, in XNNPACK, what it rounds down: to whole microseconds, for each operator.
"""

from __future__ import annotations

import argparse
import json
import tempfile
from collections import Counter
from collections.abc import Callable, Iterable
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import median

import numpy as np

from tinyvit_edge.exporters._quiet import quiet_stderr
from tinyvit_edge.host import host_info
from tinyvit_edge.types import FloatArray

_WARM_UP = 5
_RUN = "Method::execute"  # as ExecuTorch's trace calls it
# OPERATOR_CALL is around each kernel outside a delegate, which has an event of its own
_NO_OPERATORS = (_RUN, "DELEGATE_CALL", "OPERATOR_CALL", "Method::init", "Program::load_method")
# What XNNPACK's runtime makes of dequantize, GELU, quantize, and has no name for: there are as many
# of it in a trace as GELUs are missing.
_UNNAMED = {"Invalid Unary Op": "8-bit GELU, by a table"}


@dataclass(frozen=True, kw_only=True)
class Kind:
    """All operators of one kind in one run."""

    name: str
    count: int
    milliseconds: float


@dataclass(frozen=True, kw_only=True)
class Profile:
    """One file in its runtime."""

    kinds: list[Kind]
    run: float
    """Milliseconds of a run, with the profiler at work."""


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
        files = {path: asdict(profile) for path, profile in found.items()}
        args.json.write_text(json.dumps({"host": host_info(), "files": files}, indent=2) + "\n")


def onnx_profile(path: Path, image: FloatArray, runs: int) -> Profile:
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
    whole = [event["dur"] / 1000 for event in events if event["name"] == "model_run"]
    for event in events:
        if event.get("cat") == "Node" and event["name"].endswith("_kernel_time"):
            _, times = nodes.setdefault(event["name"], (event["args"]["op_name"], []))
            times.append(event["dur"] / 1000)
    kinds = _kinds((kind, median(times[_WARM_UP:])) for kind, times in nodes.values())
    return Profile(kinds=kinds, run=median(whole[_WARM_UP:]))


def executorch_profile(path: Path, image: FloatArray, runs: int) -> Profile:
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
    times = [
        (event.name.split(" #")[0], event.perf_data.p50)
        for block in blocks
        for event in block.events
        if event.perf_data is not None
    ]
    kinds = _kinds((name, time) for name, time in times if name not in _NO_OPERATORS)
    return Profile(kinds=kinds, run=dict(times)[_RUN])


def tflite_profile(path: Path, image: FloatArray, runs: int) -> Profile:
    """Operators of XNNPACK, and those that LiteRT runs itself."""
    import litert_profiler

    with quiet_stderr():
        operators, run = litert_profiler.profile(path, image, runs=runs)
    return Profile(kinds=_kinds(operators), run=run)


PROFILERS: dict[str, Callable[[Path, FloatArray, int], Profile]] = {
    ".onnx": onnx_profile,
    ".pte": executorch_profile,
    ".tflite": tflite_profile,
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


def markdown(path: Path, profile: Profile) -> str:
    """The table, under the file's name."""
    total = sum(kind.milliseconds for kind in profile.kinds)
    count = sum(kind.count for kind in profile.kinds)
    rows = [(kind.name, str(kind.count), kind.milliseconds) for kind in profile.kinds]
    rows += [("all operators", str(count), total), ("the run", "", profile.run)]
    lines = [
        f"{path}",
        "",
        "| operator | count | ms | of the run, % |",
        "| --- | --: | --: | --: |",
    ]
    lines += [
        f"| {name} | {number} | {time:.2f} | {100 * time / profile.run:.1f} |"
        for name, number, time in rows
    ]
    return "\n".join([*lines, ""])


if __name__ == "__main__":
    main()
