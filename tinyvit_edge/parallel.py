"""Run several target processes at a time, and stop them together."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable
from concurrent.futures import FIRST_EXCEPTION, ThreadPoolExecutor, wait
from typing import TypeVar

from tinyvit_edge.worker import kill_all

__all__ = ["run_parallel"]

Item = TypeVar("Item")
Result = TypeVar("Result")

_AGAIN_S = 0.2


def run_parallel(
    work: Callable[[Item, Callable[[], bool]], Result], items: Iterable[Item], *, jobs: int
) -> list[Result]:
    """Call ``work(item, cancelled)`` for each item in up to `jobs` threads.

    Each call mostly waits for a `TargetProcess`. The first exception, Ctrl-C included, kills
    every target process and makes ``cancelled()`` true, so that no call goes on for long; then
    it is raised.

    Returns:
        The results in the order of the items.
    """
    stop = threading.Event()
    with ThreadPoolExecutor(jobs) as pool:
        futures = [pool.submit(work, item, stop.is_set) for item in items]
        try:
            done, _ = wait(futures, return_when=FIRST_EXCEPTION)
            for future in done:
                future.result()  # raises the exception, however many calls before it go on
            return [future.result() for future in futures]
        except BaseException:
            stop.set()
            pool.shutdown(wait=False, cancel_futures=True)
            kill_all()
            while wait(futures, timeout=_AGAIN_S).not_done:  # one may have started meanwhile
                kill_all()
            raise
