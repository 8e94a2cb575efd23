"""How long a run will still take, from the steps that are done and from an earlier run."""

from __future__ import annotations

import threading
from collections.abc import Callable, Mapping, Sequence

__all__ = ["TimeLeft", "about"]

_MINUTE = 60


class TimeLeft:
    """The steps of a run, of which some are done; may be told from several threads."""

    def __init__(
        self,
        steps: Sequence[str],
        *,
        earlier: Mapping[str, float] | None = None,
        parallel: Mapping[str, int] | None = None,
        say: Callable[[str], None] = lambda _: None,
    ) -> None:
        """Begin with nothing done.

        Args:
            steps: names of all steps, without repeats.
            earlier: seconds that steps took in an earlier run, of any machine.
            parallel: how many steps go on at a time, for those that do not go alone.
            say: is told of each step that is done.
        """
        self._say = say
        self._steps, self._earlier, self._parallel = list(steps), earlier or {}, parallel or {}
        self._done: dict[str, float] = {}
        self._lock = threading.Lock()

    @property
    def seconds(self) -> dict[str, float]:
        """What each step that was done anew took."""
        with self._lock:
            return {step: seconds for step, seconds in self._done.items() if seconds}

    def done(self, step: str, seconds: float | None, *, outcome: str | None = None) -> None:
        """Say that a step is over, and how far things are.

        Args:
            step: its name.
            seconds: what it took; None where that says nothing of how fast this run is.
            outcome: what to say in place of the seconds.
        """
        with self._lock:
            self._done[step] = seconds or 0.0
            head = f"{len(self._done)}/{len(self._steps)} {step}"
            left = self._left()
        took = outcome or f"{seconds or 0.0:.1f} s"
        self._say(f"{head}: {took}" + (f", {about(left)} left" if left else ""))

    def _left(self) -> float:
        waiting = [step for step in self._steps if step not in self._done]
        return sum(self._expected(step) / self._parallel.get(step, 1) for step in waiting)

    def _expected(self, step: str) -> float:
        """As before, by how much slower this run is; as the mean of what it did where it is new."""
        worked = {one: seconds for one, seconds in self._done.items() if seconds}
        if step not in self._earlier:
            return sum(worked.values()) / (len(worked) or 1)
        known = [one for one in worked if self._earlier.get(one)]
        then = sum(self._earlier[one] for one in known)
        return self._earlier[step] * (sum(worked[one] for one in known) / then if then else 1)


def about(seconds: float) -> str:
    """A duration as people say it: "about 40 s", "about 3 min"."""
    if seconds < _MINUTE:
        return f"about {max(5, 5 * round(seconds / 5))} s"
    return f"about {round(seconds / _MINUTE)} min"
