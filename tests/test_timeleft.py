"""Time left, from steps whose times are written by hand."""

from __future__ import annotations

import pytest

from tinyvit_edge.timeleft import TimeLeft, about


def test_the_first_run_expects_what_it_has_seen():
    """Oracle: four steps of 60 s, two of which go on at a time."""
    said: list[str] = []
    left = TimeLeft(["a", "b", "c", "d"], parallel={"c": 2, "d": 2}, say=said.append)
    for step in "abcd":
        left.done(step, 60.0)
    assert said == [
        "1/4 a: 60.0 s, about 2 min left",
        "2/4 b: 60.0 s, about 1 min left",
        "3/4 c: 60.0 s, about 30 s left",
        "4/4 d: 60.0 s",
    ]
    assert left.seconds == dict.fromkeys("abcd", 60.0)


def test_an_earlier_run_is_scaled_to_this_ones_speed():
    """Oracle: twice as slow as before, so 2 x 100 s are left."""
    said: list[str] = []
    left = TimeLeft(["a", "b"], earlier={"a": 10.0, "b": 100.0}, say=said.append)
    left.done("a", 20.0)
    assert said == ["1/2 a: 20.0 s, about 3 min left"]


def test_what_is_unchanged_says_nothing_of_speed():
    """Oracle: the earlier run's own time of the step that is left."""
    said: list[str] = []
    left = TimeLeft(["a", "b"], earlier={"a": 10.0, "b": 40.0}, say=said.append)
    left.done("a", None, outcome="unchanged")
    assert said == ["1/2 a: unchanged, about 40 s left"]
    assert left.seconds == {}


@pytest.mark.parametrize(
    ("seconds", "words"),
    [(0.4, "about 5 s"), (33, "about 35 s"), (59, "about 60 s"), (89, "about 1 min"),
     (600, "about 10 min")],
)  # fmt: skip
def test_durations_are_rounded_as_people_say_them(seconds, words):
    """Oracle: written by hand."""
    assert about(seconds) == words
