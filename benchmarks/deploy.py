"""What `deploy` costs in time and memory, from nothing and again with nothing changed.

    python benchmarks/deploy.py --data imagenette/val --calib imagenette/train --out /tmp/deploy

``--out`` must not exist: the first run is cold, the second finds everything that the first one
left. Seconds of a step are those that the command prints itself; several targets are worked on at a
time, so they add up to more than the whole. Memory is the largest sum of the
resident sets of the command and all its children, looked at ten times a second; pages that
processes share count once for each, so it is an upper bound. Linux only.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import subprocess
import sys
import tempfile
import time
from dataclasses import asdict, dataclass
from pathlib import Path

from tinyvit_edge.host import cpu_name

_STAGE = re.compile(r"^\d+/\d+ (?P<step>[^:]+): (?P<seconds>\d+\.\d) s")
_LOOK_S = 0.1


@dataclass(frozen=True, slots=True, kw_only=True)
class Run:
    """One call of `deploy`."""

    name: str
    seconds: float
    peak_rss_gb: float
    """10^9 bytes."""
    exit_code: int
    steps: dict[str, float]
    """Seconds by step, in order; none of steps that were not needed."""


def main() -> None:
    """Parse the command line, run twice, print."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--weights", default="imagenette")
    parser.add_argument("--data", required=True)
    parser.add_argument("--calib", required=True)
    parser.add_argument("--targets", default="onnx,executorch,tflite,coreml")
    parser.add_argument("--precisions", default="fp32,w8a8")
    parser.add_argument("--limit", default="500")
    parser.add_argument("--out", type=Path, required=True, help="a folder that does not exist yet")
    parser.add_argument("--cold-only", action="store_true")
    parser.add_argument("--json", type=Path)
    args = parser.parse_args()
    if args.out.exists():
        parser.error(f"--out {args.out} exists: a cold run needs a new folder")
    command = [sys.executable, "-m", "tinyvit_edge", "deploy"]
    for name in ("weights", "data", "calib", "targets", "precisions", "limit", "out"):
        command += [f"--{name}", str(getattr(args, name))]
    runs = [measure(name, command) for name in ("cold", "warm")[: 1 if args.cold_only else 2]]
    if args.json is not None:
        value = {
            "cpu": cpu_name(),
            "cores": os.cpu_count(),
            "command": command[1:],
            "runs": [asdict(run) for run in runs],
        }
        args.json.write_text(json.dumps(value, indent=2) + "\n")
    print(markdown(runs))


def measure(name: str, command: list[str]) -> Run:
    """Run a command, looking at its memory while it works.

    Raises:
        SystemExit: it ended otherwise than with success or a failed gate; with its last line.
    """
    start, peak = time.perf_counter(), 0
    with tempfile.TemporaryFile("w+") as said:
        process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=said)
        while process.poll() is None:
            peak = max(peak, tree_rss(process.pid))
            time.sleep(_LOOK_S)
        seconds = time.perf_counter() - start
        said.seek(0)
        lines = said.read().splitlines()
    if process.returncode not in (0, 1):
        raise SystemExit(f"{name}: ended with {process.returncode}: {lines[-1:]}")
    found = [match for line in lines if (match := _STAGE.match(line))]
    return Run(
        name=name,
        seconds=round(seconds, 1),
        peak_rss_gb=round(peak / 1e9, 2),
        exit_code=process.returncode,
        steps={match["step"]: float(match["seconds"]) for match in found},
    )


def tree_rss(root: int) -> int:
    """Bytes resident in a process and all its descendants."""
    children: dict[int, list[int]] = {}
    resident: dict[int, int] = {}
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            # after the name, which may hold anything: state, parent, ...; 24th in all is the RSS
            fields = (folder / "stat").read_text().rpartition(") ")[2].split()
        except OSError:  # it has just ended
            continue
        pid = int(folder.name)
        children.setdefault(int(fields[1]), []).append(pid)
        resident[pid] = int(fields[21]) * os.sysconf("SC_PAGE_SIZE")
    total, waiting = 0, [root]
    while waiting:
        pid = waiting.pop()
        total += resident.get(pid, 0)
        waiting += children.get(pid, [])
    return total


def markdown(runs: list[Run]) -> str:
    """The table."""
    steps = list(dict.fromkeys(step for run in runs for step in run.steps))
    lines = [
        "| step | " + " | ".join(f"{run.name}, s" for run in runs) + " |",
        "| --- |" + " --: |" * len(runs),
    ]
    for step in steps:
        cells = (f"{run.steps[step]:.1f}" if step in run.steps else "-" for run in runs)
        lines.append(f"| {step} | {' | '.join(cells)} |")
    lines.append(f"| whole command | {' | '.join(f'{run.seconds:.1f}' for run in runs)} |")
    lines.append(f"| peak memory, GB | {' | '.join(f'{run.peak_rss_gb:.2f}' for run in runs)} |")
    return "\n".join(lines)


if __name__ == "__main__":
    main()
