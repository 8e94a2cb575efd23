"""Plots as inline SVG, drawn with the page's own colours so that they follow its dark mode.

A target keeps its colour and its marker in every plot. The colours are the classes ``t0`` to
``t5`` of the style sheet (Okabe and Ito's palette, told apart with any colour vision); a shape
per target says the same again for print and for those who see no colour.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from html import escape

__all__ = ["Bar", "Point", "bars", "legend", "line", "scatter", "series_of"]

Box = tuple[float, float, float, float]

_WIDTH, _HEIGHT = 420.0, 310.0
_LEFT, _RIGHT, _TOP, _BOTTOM = 46.0, 14.0, 26.0, 44.0
_INSET = 16.0  # keeps markers at the extremes off the frame
_MARKER = 5.5
_GLYPH, _LINE = 6.6, 13.0  # advance and height of a 11 px letter of a system sans-serif
_ROW, _GAP, _VALUE = 18.0, 7.0, 40.0
_LOG_RATIO = 20.0  # a wider range hides its small end on a linear axis
_SERIES = 6

# Vertices on the unit circle, by angle in degrees; no vertices is a circle.
_SHAPES: tuple[tuple[float, ...], ...] = (
    (),
    (45, 135, 225, 315),
    (-90, 30, 150),
    (0, 90, 180, 270),
    (90, 210, 330),
    (-90, -18, 54, 126, 198),
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Point:
    """One artifact in a scatter plot."""

    series: str
    label: str
    x: float
    y: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Bar:
    """One artifact in a bar chart; `full` draws the whole width whatever `value` is."""

    series: str
    label: str
    value: float
    text: str
    full: bool = False


def series_of(names: Iterable[str]) -> dict[str, int]:
    """Number the distinct names in order of appearance."""
    return {name: index for index, name in enumerate(dict.fromkeys(names))}


def legend(series: Mapping[str, int]) -> str:
    """An HTML list of marker and name."""
    items = (
        '<li><svg viewBox="-8 -8 16 16" width="16" height="16" aria-hidden="true">'
        f"{_marker(number, 0, 0)}</svg>{escape(name)}</li>"
        for name, number in series.items()
    )
    return f'<ul class="legend">{"".join(items)}</ul>'


def scatter(
    points: Sequence[Point],
    *,
    series: Mapping[str, int],
    title: str,
    x_title: str,
    y_title: str,
    y_line: tuple[float, str] | None = None,
) -> str:
    """Points with their labels; x from 0, or logarithmic where it spans a factor of 20.

    Args:
        points: at least one; x > 0.
        series: from `series_of`.
        title: what the plot is called for those who cannot see it.
        x_title: with its unit.
        y_title: with its unit.
        y_line: a value to mark across the plot, and its label.
    """
    x_axis = _Axis.of_x([p.x for p in points], start=_LEFT + _INSET, end=_WIDTH - _RIGHT - _INSET)
    heights = [p.y for p in points] + ([y_line[0]] if y_line else [])
    y_axis = _Axis.of_y(heights, start=_HEIGHT - _BOTTOM - _INSET, end=_TOP + _INSET)
    placed = [(point, x_axis.at(point.x), y_axis.at(point.y)) for point in points]
    parts = [*_grid(x_axis, y_axis, x_title, y_title)]
    occupied: list[Box] = [_around(x, y, _MARKER + 1) for _, x, y in placed]
    if y_line:
        parts += _reference(y_axis.at(y_line[0]), y_line[1], occupied)
    parts += _labels(placed, occupied)
    for point, x, y in placed:
        about = f"{point.series} {point.label}: {y_title} {point.y:.4g}, {x_title} {point.x:.4g}"
        parts.append(f"<g><title>{escape(about)}</title>")
        parts.append(f"{_marker(series[point.series], x, y)}</g>")
    facts = "; ".join(f"{p.series} {p.label} {p.x:.4g}, {p.y:.4g}" for p in points)
    return _svg(parts, _HEIGHT, title, f"{x_title}, then {y_title}: {facts}")


def bars(
    rows: Sequence[Bar],
    *,
    series: Mapping[str, int],
    title: str,
    x_title: str,
    limit: float,
) -> str:
    """Horizontal bars from 0 to `limit`, grouped by series; a negative value has no length."""
    ticks = _nice_ticks(0, limit, 8)
    end = _WIDTH - _VALUE
    start = 10 + _GLYPH * max(len(row.series) + 1 + len(row.label) for row in rows)
    axis = _Axis(low=0, high=limit, start=start, end=end, ticks=ticks)
    parts: list[str] = []
    y = 4.0
    previous = rows[0].series
    for row in rows:
        y += _GAP if row.series != previous else 0
        previous = row.series
        length = axis.at(limit if row.full else max(0.0, min(row.value, limit))) - start
        parts.append(_text(start - 8, y + 13, f"{row.series} {row.label}", "label end"))
        parts.append(
            f'<rect class="t{series[row.series] % _SERIES}" x="{start:.1f}" y="{y + 2:.1f}" '
            f'width="{max(length, 1):.1f}" height="{_ROW - 5:g}" rx="2"/>'
        )
        parts.append(_text(start + length + 5, y + 13, row.text, "label"))
        y += _ROW
    back = []
    for tick in ticks:
        x = axis.at(tick)
        back.append(_segment(x, 0, x, y + 4, "grid"))
        back.append(_text(x, y + 18, f"{tick:g}", "tick middle"))
    parts.append(_text((start + end) / 2, y + 36, x_title, "axis middle"))
    facts = "; ".join(f"{row.series} {row.label} {row.text}" for row in rows)
    return _svg([*back, *parts], y + 42, title, f"{x_title}: {facts}")


def line(
    points: Sequence[tuple[float, float]],
    *,
    title: str,
    x_title: str,
    y_title: str,
    x_lines: Sequence[tuple[float, str]] = (),
) -> str:
    """A curve through points (x, y); both axes linear.

    Args:
        points: at least one; x >= 0.
        title: what the plot is called for those who cannot see it.
        x_title: with its unit.
        y_title: with its unit.
        x_lines: values to mark on the x axis, and their labels.
    """
    last = max(x for x, _ in points) or 1.0
    low, high = min(y for _, y in points), max(y for _, y in points)
    if low == high:
        low, high = low - (abs(low) or 1.0) / 2, high + (abs(high) or 1.0) / 2
    x_axis = _Axis(
        low=0, high=last, start=_LEFT, end=_WIDTH - _RIGHT, ticks=_nice_ticks(0, last, 5)
    )
    y_axis = _Axis(
        low=low,
        high=high,
        start=_HEIGHT - _BOTTOM,
        end=_TOP + _INSET,
        ticks=_nice_ticks(low, high, 5),
    )
    parts = [*_grid(x_axis, y_axis, x_title, y_title)]
    for value, label in x_lines:
        x = x_axis.at(value)
        parts.append(_segment(x, _TOP, x, _HEIGHT - _BOTTOM, "reference"))
        parts.append(_text(x + 4, _TOP + 10, label, "reference-label"))
    path = " ".join(f"{x_axis.at(x):.1f},{y_axis.at(y):.1f}" for x, y in points)
    parts.append(f'<polyline class="curve t0" points="{path}"/>')
    (_, first), (_, final) = points[0], points[-1]
    facts = f"{y_title} over {x_title}: from {first:.4g} to {final:.4g}"
    return _svg(parts, _HEIGHT, title, facts)


@dataclass(frozen=True, slots=True, kw_only=True)
class _Axis:
    """Maps `low`..`high` to the pixels `start`..`end`."""

    low: float
    high: float
    start: float
    end: float
    ticks: Sequence[float]
    scale: Callable[[float], float] = float

    def at(self, value: float) -> float:
        low, high = self.scale(self.low), self.scale(self.high)
        return self.start + (self.scale(value) - low) / (high - low) * (self.end - self.start)

    @classmethod
    def of_x(cls, values: Sequence[float], *, start: float, end: float) -> _Axis:
        low, high = min(values), max(values)
        if high <= _LOG_RATIO * low:
            ticks = _nice_ticks(0, high, 5)
            # from the frame itself: 0 needs no room for a marker
            return cls(low=0, high=high, start=start - _INSET, end=end, ticks=ticks)
        decades = range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
        steps = (digit * 10.0**decade for decade in decades for digit in (1, 2, 5))
        ticks = [step for step in steps if low <= step <= high]
        return cls(low=low, high=high, start=start, end=end, ticks=ticks, scale=math.log10)

    @classmethod
    def of_y(cls, values: Sequence[float], *, start: float, end: float) -> _Axis:
        low, high = min(values), max(values)
        spare = max(0.0, 1.0 - (high - low)) / 2  # percent; a flat row stays in the middle
        low, high = low - spare, high + spare
        if max(values) <= 100 < high:
            low, high = low - (high - 100), 100.0
        return cls(low=low, high=high, start=start, end=end, ticks=_nice_ticks(low, high, 5))


def _nice_ticks(low: float, high: float, count: int) -> list[float]:
    rough = (high - low) / count
    unit = 10.0 ** math.floor(math.log10(rough))
    step = next(factor * unit for factor in (1, 2, 5, 10) if factor * unit >= rough * 0.999)
    first, last = math.ceil(low / step - 1e-9), math.floor(high / step + 1e-9)
    return [round(index * step, 10) for index in range(first, last + 1)]


def _grid(x_axis: _Axis, y_axis: _Axis, x_title: str, y_title: str) -> Iterable[str]:
    bottom, right = _HEIGHT - _BOTTOM, _WIDTH - _RIGHT
    for tick in x_axis.ticks:
        x = x_axis.at(tick)
        yield _segment(x, _TOP, x, bottom, "grid")
        yield _text(x, bottom + 16, f"{tick:g}", "tick middle")
    for tick in y_axis.ticks:
        y = y_axis.at(tick)
        yield _segment(_LEFT, y, right, y, "grid")
        yield _text(_LEFT - 6, y + 4, f"{tick:g}", "tick end")
    yield _segment(_LEFT, bottom, right, bottom, "frame")
    scale = " (logarithmic)" if x_axis.scale is math.log10 else ""
    yield _text((_LEFT + right) / 2, bottom + 36, x_title + scale, "axis middle")
    yield _text(2, 13, y_title, "axis")


def _reference(y: float, label: str, occupied: list[Box]) -> list[str]:
    """A dashed line across the plot, its label at the emptiest end of it."""
    width = _GLYPH * len(label)
    places = [
        (x, top, x + width, top + _LINE)
        for top in (y - _LINE - 2, y + 2)
        for x in (_LEFT + 4, _WIDTH - _RIGHT - width - 4, (_LEFT + _WIDTH - _RIGHT - width) / 2)
    ]
    box = min(places, key=lambda place: _cost(place, occupied))
    occupied.append(box)
    line = _segment(_LEFT, y, _WIDTH - _RIGHT, y, "reference")
    return [line, _text(box[0], box[3] - 3, label, "reference-label")]


def _labels(placed: Sequence[tuple[Point, float, float]], occupied: list[Box]) -> list[str]:
    """Put each label at the nearest free place around its marker, with a line to a far one.

    Neighbours so close that their markers touch share one label where it is the same.
    """
    parts: list[str] = []
    done: list[tuple[str, float, float]] = []
    for point, x, y in placed:
        if any(t == point.label and math.hypot(u - x, v - y) < 2 * _MARKER for t, u, v in done):
            continue
        done.append((point.label, x, y))
        width = _GLYPH * len(point.label)
        box = min(_places(x, y, width), key=lambda place: _cost(place, occupied))
        occupied.append(box)
        middle = ((box[0] + box[2]) / 2, (box[1] + box[3]) / 2)
        near_x = min(max(x, box[0]), box[2])
        near_y = min(max(y, box[1]), box[3])
        if math.hypot(near_x - x, near_y - y) > 2.5 * _MARKER:
            parts.append(_segment(x, y, near_x, near_y, "leader"))
        parts.append(_text(middle[0], box[3] - 3, point.label, "label middle"))
    return parts


def _places(x: float, y: float, width: float) -> Iterable[Box]:
    # nearest first: `min` keeps the first of equals
    for distance, angle in itertools.product((9, 18, 30, 44, 60, 78), range(0, 360, 30)):
        across, down = math.cos(math.radians(angle)), math.sin(math.radians(angle))
        centre_x = x + across * (distance + width / 2)
        centre_y = y + down * (distance + _LINE / 2)
        half = width / 2 + 1
        yield (centre_x - half, centre_y - _LINE / 2, centre_x + half, centre_y + _LINE / 2)


def _cost(box: Box, occupied: Sequence[Box]) -> float:
    outside = max(0.0, _LEFT - box[0]) + max(0.0, box[2] - _WIDTH) + max(0.0, _TOP - box[1])
    outside += max(0.0, box[3] - (_HEIGHT - _BOTTOM))
    return 1e3 * outside + sum(_overlap(box, other) for other in occupied)


def _overlap(one: Box, other: Box) -> float:
    across = min(one[2], other[2]) - max(one[0], other[0])
    down = min(one[3], other[3]) - max(one[1], other[1])
    return max(0.0, across) * max(0.0, down)


def _around(x: float, y: float, radius: float) -> Box:
    return (x - radius, y - radius, x + radius, y + radius)


def _marker(number: int, x: float, y: float) -> str:
    kind = f'class="mark t{number % _SERIES}"'
    angles = _SHAPES[number % len(_SHAPES)]
    if not angles:
        return f'<circle {kind} cx="{x:.1f}" cy="{y:.1f}" r="{_MARKER:g}"/>'
    radius = _MARKER * 1.25  # polygons look smaller than the circle around them
    turns = (math.radians(angle) for angle in angles)
    corners = (f"{x + radius * math.cos(t):.1f},{y + radius * math.sin(t):.1f}" for t in turns)
    return f'<polygon {kind} points="{" ".join(corners)}"/>'


def _segment(x1: float, y1: float, x2: float, y2: float, kind: str) -> str:
    return f'<line class="{kind}" x1="{x1:.1f}" y1="{y1:.1f}" x2="{x2:.1f}" y2="{y2:.1f}"/>'


def _text(x: float, y: float, text: str, kind: str) -> str:
    return f'<text class="{kind}" x="{x:.1f}" y="{y:.1f}">{escape(text)}</text>'


def _svg(parts: Iterable[str], height: float, title: str, description: str) -> str:
    words = escape(f"{title}. {description}", quote=True)
    return (
        f'<svg viewBox="0 0 {_WIDTH:g} {height:g}" role="img" aria-label="{words}">'
        f"{''.join(parts)}</svg>"
    )
