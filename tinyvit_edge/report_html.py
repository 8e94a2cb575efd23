"""The report as one HTML file: no scripts, no requests, the style sheet and the plots inside."""

from __future__ import annotations

import itertools
import math
import shlex
from collections.abc import Callable, Iterable, Sequence
from html import escape
from urllib.parse import quote

from tinyvit_edge.report import Accuracy, Conversion, Gate, Quantization, Report, Row
from tinyvit_edge.report_audit import audit_section
from tinyvit_edge.report_page import card, figure, page, scrolling_table
from tinyvit_edge.report_plots import Bar, Point, bars, legend, scatter, series_of
from tinyvit_edge.report_table import (
    COLUMNS,
    NOT_MEASURED,
    SQNR_LIMIT_DB,
    STATUS_WORDS,
    agreement,
    agreement_lines,
    decibels,
    footnotes,
    headline,
    milliseconds,
    percent,
)

__all__ = ["render_html"]

_COMPARED = {
    "Conversion loss": "PyTorch at the same precision",
    "Quantization loss": "the fp32 PyTorch model",
}
_SIGNS = {"min": "≥ ", "max": "≤ ", None: ""}


def render_html(report: Report) -> str:
    """The whole page, as text to be written in UTF-8."""
    title = f"{report.model.variant} on mobile runtimes"
    sections = (
        _header(report, title),
        _facts(report),
        _results(report),
        _plots(report),
        audit_section(report.rows),
        _gates(report.rows),
        _timings(report.rows),
        _artifacts(report.rows),
        _command(report),
        _footer(report),
    )
    return page(title, sections)


def _header(report: Report, title: str) -> str:
    statuses = [row.status for row in report.rows]
    worst = next((s for s in ("failed", "gate_failed", "skipped") if s in statuses), "ok")
    when = f" · {escape(report.created)}" if report.created else ""
    return (
        f'<header><p class="eyebrow">tinyvit-edge report{when}</p><h1>{escape(title)}</h1>'
        f'<p class="verdict {worst}">{escape(headline(report))}</p></header><main>'
    )


def _facts(report: Report) -> str:
    model, host = report.model, report.host
    images = report.reference.n if report.reference else None
    about_model = {
        "variant": model.variant,
        "parameters": f"{model.params:,}",
        "classes": f"{model.num_classes:,}",
        "fp32 PyTorch top-1": _accuracy(report.reference),
        "labelled images": f"{images:,}" if images is not None else NOT_MEASURED,
        "weights SHA-256": model.weights_sha256,
    }
    about_host = {
        "system": f"{host['os']}, {host['machine']}",
        "CPU": f"{host['cpu']}, {host['logical_cores']} logical cores",
        "Python": host["python"],
        "packages": ", ".join(f"{name} {version}" for name, version in host["packages"].items()),
    }
    cards = (card("Model", about_model), card("Host", about_host))
    return f'<h2>What was measured, and where</h2><div class="pair">{"".join(cards)}</div>'


def _accuracy(accuracy: Accuracy | None) -> str:
    if accuracy is None or accuracy.top1 is None:
        return NOT_MEASURED
    return f"{percent(accuracy.top1)} %"


def _results(report: Report) -> str:
    texts, marks = footnotes(report.rows)
    heads = "".join(
        f'<th scope="col" title="{escape(c.meaning, quote=True)}">{escape(c.title)}</th>'
        for c in COLUMNS
    )
    head = (
        '<tr><th scope="col" class="words">artifact</th>'
        f'<th scope="col" class="words">status</th>{heads}</tr>'
    )
    noted = dict(zip(map(id, report.rows), marks, strict=True))
    body = _by_target(report.rows, lambda row: _result(row, noted[id(row)]))
    notes = "".join(
        f'<li id="note-{number}">{escape(text)}</li>' for number, text in enumerate(texts, 1)
    )
    caption = "A dash: not measured, or not applicable."
    return (
        f"<h2>Results</h2>{scrolling_table('Results', caption, head, body)}"
        + (f'<ol class="notes">{notes}</ol>' if notes else "")
        + "".join(f"<p>{escape(line)}</p>" for line in agreement_lines(report))
        + _legend_of_columns()
    )


def _result(row: Row, numbers: Sequence[int]) -> str:
    links = ", ".join(
        f'<a href="#note-{number}" aria-label="note {number}">{number}</a>' for number in numbers
    )
    mark = f"<sup>{links}</sup>" if links else ""
    cells = "".join(f"<td>{escape(column.cell(row))}</td>" for column in COLUMNS)
    return f'<td class="words">{_badge(row.status, STATUS_WORDS[row.status])}{mark}</td>{cells}'


def _badge(status: str, words: str) -> str:
    return f'<span class="status {status}">{escape(words)}</span>'


def _legend_of_columns() -> str:
    facts = "".join(f"<dt>{escape(c.title)}</dt><dd>{escape(c.meaning)}</dd>" for c in COLUMNS)
    return (
        '<details class="card"><summary>What the columns mean</summary>'
        f'<dl style="padding:0 1rem 1rem">{facts}</dl></details>'
    )


def _plots(report: Report) -> str:
    made = [row for row in report.rows if row.status in ("ok", "gate_failed")]
    series = series_of(row.target for row in report.rows)
    figures = (
        _tradeoff(report, made, series, "latency", "median latency, ms", _p50),
        _tradeoff(report, made, series, "size", "size, MB", _size),
        *_losses(made, series),
    )
    found = "".join(figure for figure in figures if figure)
    return f'<h2>Trade-offs and losses</h2><div class="pair">{found}</div>' if found else ""


def _p50(row: Row) -> float | None:
    return row.latency.p50_ms if row.latency else None


def _size(row: Row) -> float | None:
    return row.size_bytes / 1e6 if row.size_bytes else None


def _top1(row: Row) -> float | None:
    return row.accuracy.top1 if row.accuracy else None


def _tradeoff(
    report: Report,
    rows: Sequence[Row],
    series: dict[str, int],
    name: str,
    x_title: str,
    x_of: Callable[[Row], float | None],
) -> str:
    labelled = any(_top1(row) is not None for row in rows)
    y_of, measure = (_top1, "top-1 accuracy") if labelled else (agreement, "top-1 agreement")
    points, missing = [], []
    for row in rows:
        x, y = x_of(row), y_of(row)
        if x and y is not None:
            points.append(Point(series=row.target, label=row.precision, x=x, y=100 * y))
        else:
            missing.append(_name(row))
    if not points:
        return ""
    top1 = report.reference.top1 if report.reference and labelled else None
    line = None if top1 is None else (100 * top1, f"fp32 PyTorch {percent(top1)} %")
    title = f"{measure.capitalize()} against {name}"
    drawn = scatter(
        points,
        series=series,
        title=title,
        x_title=x_title,
        y_title=f"{measure}, %",
        y_line=line,
    )
    why = "" if labelled else "No labelled images: agreement with the fp32 PyTorch model instead. "
    return _figure(title, f"Up and to the left is better. {why}", drawn, missing, points, series)


def _sqnr(part: Conversion | Quantization | None) -> float | None:
    return None if part is None else part.sqnr_db


def _losses(rows: Sequence[Row], series: dict[str, int]) -> Iterable[str]:
    values = {
        "Conversion loss": [(row, _sqnr(row.conversion)) for row in rows],
        "Quantization loss": [(row, _sqnr(row.quantization)) for row in rows],
    }
    finite = [v for found in values.values() for _, v in found if v and v < SQNR_LIMIT_DB]
    limit = max(20.0, math.ceil(max(finite, default=0.0) / 20) * 20)  # one scale for both
    for title, against in _COMPARED.items():
        measured = [_sqnr_bar(row, value) for row, value in values[title] if value is not None]
        missing = [_name(row) for row, value in values[title] if value is None]
        if measured:
            x_title = "SQNR of the logits, dB"
            drawn = bars(measured, series=series, title=title, x_title=x_title, limit=limit)
            text = f"SQNR against {against}; longer is closer."
            yield _figure(title, text, drawn, missing, measured, series)


def _sqnr_bar(row: Row, value: float) -> Bar:
    return Bar(
        series=row.target,
        label=row.precision,
        value=value,
        text=decibels(value),
        full=value >= SQNR_LIMIT_DB,
    )


def _figure(
    title: str,
    text: str,
    drawn: str,
    missing: Sequence[str],
    shown: Sequence[Point] | Sequence[Bar],
    series: dict[str, int],
) -> str:
    left_out = f" Left out, no figure: {', '.join(missing)}." if missing else ""
    present = {item.series for item in shown}
    key = legend({name: number for name, number in series.items() if name in present})
    return figure(title, text.strip() + left_out, key + drawn)


def _name(row: Row) -> str:
    return f"{row.target} {row.precision}"


def _gates(rows: Sequence[Row]) -> str:
    gated = [row for row in rows if row.gates]
    if not gated:
        return ""
    words = ("gate", "bound", "measured", "result", "why this bound")
    left = (0, 3, 4)
    head = "".join(
        f'<th scope="col"{" class=words" if index in left else ""}>{word}</th>'
        for index, word in enumerate(words)
    )
    found = "".join(_gates_of(row, f"<tr>{head}</tr>") for row in gated)
    return f'<h2>Gates</h2><div class="stack">{found}</div>'


def _gates_of(row: Row, head: str) -> str:
    passed = sum(gate.passed for gate in row.gates)
    status = "ok" if passed == len(row.gates) else "gate_failed"
    body = "".join(f"<tr>{_gate(gate)}</tr>" for gate in row.gates)
    table = scrolling_table(f"Gates of {_name(row)}", "", head, f"<tbody>{body}</tbody>", "")
    summary = f"{escape(_name(row))} {_badge(status, f'{passed} of {len(row.gates)} passed')}"
    state = "" if status == "ok" else " open"
    return f'<details class="card"{state}><summary>{summary}</summary>{table}</details>'


def _gate(gate: Gate) -> str:
    result = _badge("ok", "passed") if gate.passed else _badge("gate_failed", "failed")
    bound = _SIGNS[gate.direction] + _number(gate.bound)
    return (
        f'<th scope="row">{escape(gate.name)}</th><td>{bound}</td>'
        f'<td>{_number(gate.measured)}</td><td class="words">{result}</td>'
        f'<td class="words wide">{escape(gate.reason or "")}</td>'
    )


def _number(value: float | None) -> str:
    return NOT_MEASURED if value is None else f"{value:.4g}"


def _timings(rows: Sequence[Row]) -> str:
    timed = [row for row in rows if row.latency and row.latency.p50_ms is not None]
    words = (
        "p50, ms",
        "p90, ms",
        "p99, ms",
        "load, ms",
        "peak memory, MB",
        "CPU / wall",
        "threads",
        "warm-up",
        "runs",
        "device",
    )
    head = "".join(f'<th scope="col">{word}</th>' for word in words)
    head = f'<tr><th scope="col" class="words">artifact</th>{head}</tr>'
    caption = "One image at a time, one process per artifact's runtime."
    table = scrolling_table("Latency", caption, head, _by_target(timed, _timing))
    return f"<h2>Latency in detail</h2>{table}" if timed else ""


def _timing(row: Row) -> str:
    latency = row.latency
    assert latency is not None  # `_timings` asks for timed rows only
    times = (latency.p50_ms, latency.p90_ms, latency.p99_ms, latency.load_ms)
    memory = NOT_MEASURED if latency.peak_rss_mb is None else f"{latency.peak_rss_mb:.0f}"
    ratio = NOT_MEASURED if latency.cpu_over_wall is None else f"{latency.cpu_over_wall:.2f}"
    counts = (latency.threads, latency.warmup, latency.runs)
    cells = [*map(milliseconds, times), memory, ratio]
    cells += [NOT_MEASURED if count is None else str(count) for count in counts]
    device = " · ".join(filter(None, (latency.device_kind, latency.cpu))) or NOT_MEASURED
    return "".join(f"<td>{escape(cell)}</td>" for cell in (*cells, device))


def _artifacts(rows: Sequence[Row]) -> str:
    made = [row for row in rows if row.artifact]
    words = ("file", "bytes", "export, s", "same bytes again", "evaluated by", "SHA-256")
    left = (0, 3, 4, 5)
    head = "".join(
        f'<th scope="col"{" class=words" if index in left else ""}>{word}</th>'
        for index, word in enumerate(words)
    )
    head = f'<tr><th scope="col" class="words">artifact</th>{head}</tr>'
    caption = "Links work where this page lies beside the bundles."
    table = scrolling_table("Artifacts", caption, head, _by_target(made, _artifact))
    return f"<h2>Artifacts</h2>{table}" if made else ""


def _artifact(row: Row) -> str:
    path = row.artifact or ""
    size = NOT_MEASURED if row.size_bytes is None else f"{row.size_bytes:,}"
    seconds = NOT_MEASURED if row.seconds is None else f"{row.seconds:.1f}"
    again = {True: "yes", False: "no", None: NOT_MEASURED}[row.reproducible]
    return (
        # "./" keeps a name with a colon from being read as a URL scheme
        f'<td class="words"><a href="./{quote(path)}">{escape(path)}</a></td>'
        f'<td>{size}</td><td>{seconds}</td><td class="words">{again}</td>'
        f'<td class="words">{escape(row.evaluation or NOT_MEASURED)}</td>'
        f'<td class="words"><span class="hash">{escape(row.sha256 or NOT_MEASURED)}</span></td>'
    )


def _command(report: Report) -> str:
    if not report.command:
        return ""
    command = escape(shlex.join(report.command))
    return f'<h2>Make it again</h2><pre class="card">{command}</pre>'


def _footer(report: Report) -> str:
    version = f" {report.tool_version}" if report.tool_version else ""
    return (
        f"</main><footer>Written by tinyvit-edge{escape(version)}; the same figures are in "
        f"report.json, schema version {report.schema_version}.</footer>"
    )


def _by_target(rows: Sequence[Row], cells: Callable[[Row], str]) -> str:
    """One table body per run of rows of a target, each row led by its name."""
    groups = itertools.groupby(rows, key=lambda row: row.target)
    return "".join(
        f"<tbody>{''.join(f'<tr>{_row_head(row)}{cells(row)}</tr>' for row in group)}</tbody>"
        for _, group in groups
    )


def _row_head(row: Row) -> str:
    return f'<th scope="row"><span>{escape(row.target)}</span> {escape(row.precision)}</th>'
