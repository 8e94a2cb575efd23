"""What a person sees while a command works: bars on a terminal, plain lines in a pipe.

Everything goes to stderr; stdout is for results.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from rich.progress import Progress

__all__ = ["Display", "QuietDisplay", "make_display"]


class QuietDisplay:
    """Says nothing; what the Python functions use unless told otherwise."""

    def say(self, message: str) -> None:
        """Print one line."""

    @contextmanager
    def track(self, what: str, total: int) -> Iterator[Callable[[int], None]]:
        """Show the progress of `total` steps; yields a function that advances by n."""
        yield lambda _: None


class Display(QuietDisplay):
    """Writes to stderr through rich."""

    def __init__(self) -> None:
        from rich.console import Console

        self._console = Console(stderr=True, highlight=False, soft_wrap=True)
        self._bars: Progress | None = None

    def say(self, message: str) -> None:
        """Print one line."""
        self._console.print(message, markup=False)

    @contextmanager
    def track(self, what: str, total: int) -> Iterator[Callable[[int], None]]:
        """Show the progress of `total` steps; yields a function that advances by n."""
        start = time.perf_counter()
        if self._console.is_terminal:
            with self._bar(what, total) as advance:
                yield advance
        else:
            yield lambda _: None
        self.say(f"{what}: {time.perf_counter() - start:.1f} s")

    @contextmanager
    def _bar(self, what: str, total: int) -> Iterator[Callable[[int], None]]:
        from rich import progress as rich_progress

        columns = (
            rich_progress.TextColumn("{task.description}"),
            rich_progress.BarColumn(),
            rich_progress.MofNCompleteColumn(),
            rich_progress.TimeRemainingColumn(compact=True),
        )
        # rich allows one live display a console, so nested and parallel bars share it
        outermost = self._bars is None
        if self._bars is None:
            self._bars = rich_progress.Progress(*columns, console=self._console, transient=True)
            self._bars.start()
        bars = self._bars
        task = bars.add_task(what, total=total)
        try:
            yield lambda count: bars.update(task, advance=count)
        finally:
            bars.remove_task(task)
            if outermost:
                bars.stop()
                self._bars = None


def make_display(*, quiet: bool) -> QuietDisplay:
    """A display for the command line."""
    return QuietDisplay() if quiet else Display()
