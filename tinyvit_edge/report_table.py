"""The report as a table: columns are rows of data, shared by the terminal, Markdown and HTML."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from tinyvit_edge.report_audit import audit_lines

if TYPE_CHECKING:
    from rich.console import Console
    from rich.table import Table

    from tinyvit_edge.report import Report, Row

__all__ = [
    "COLUMNS",
    "NOT_MEASURED",
    "SQNR_LIMIT_DB",
    "STATUS_WORDS",
    "Column",
    "agreement",
    "agreement_lines",
    "decibels",
    "footnotes",
    "headline",
    "milliseconds",
    "percent",
    "print_whole",
    "render_markdown",
    "render_table",
]

SQNR_LIMIT_DB = 300.0
"""Written for a bit-exact artifact, whose SQNR is infinite; float64 itself ends near 320 dB."""

NOT_MEASURED = "-"

STATUS_WORDS = {
    "ok": "ok",
    "gate_failed": "gate failed",
    "failed": "failed",
    "skipped": "skipped",
    "unsupported": "unsupported",
}
_STATUS_STYLES = {
    "ok": "green",
    "gate_failed": "bold red",
    "failed": "bold red",
    "skipped": "yellow",
    "unsupported": "dim",
}
_REFERENCE_EVALUATED = (
    "reference-evaluated: the saved package was evaluated without Core ML; its latency needs an "
    "Apple device"
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Column:
    """One measure of a row."""

    title: str
    short: str
    """Title of a narrow table, at most two short lines."""
    meaning: str
    cell: Callable[[Row], str]


def percent(fraction: float | None) -> str:
    """0.98765 -> "98.77"; only 1 itself is shown as 100.00."""
    if fraction is None:
        return NOT_MEASURED
    return f"{100 * fraction if fraction >= 1 else min(100 * fraction, 99.99):.2f}"


def decibels(value: float | None) -> str:
    """One decimal, and "exact" for a bit-exact artifact."""
    if value is None:
        return NOT_MEASURED
    return "exact" if value >= SQNR_LIMIT_DB else f"{value:.1f}"


def milliseconds(value: float | None) -> str:
    """Three significant digits or more."""
    if value is None:
        return NOT_MEASURED
    return f"{value:.3f}" if value < 1 else f"{value:.2f}" if value < 100 else f"{value:.0f}"


def agreement(row: Row) -> float | None:
    """Fraction of images whose first class is that of the fp32 PyTorch model."""
    if row.quantization is not None:
        return row.quantization.top1_agreement
    if row.precision == "fp32" and row.conversion is not None:
        return row.conversion.top1_agreement
    return None


def _megabytes(row: Row) -> str:
    return NOT_MEASURED if row.size_bytes is None else f"{row.size_bytes / 1e6:.2f}"


def _speedup(row: Row) -> str:
    value = row.latency.speedup_vs_fp32 if row.latency else None
    return NOT_MEASURED if value is None else f"{value:.2f}x"


def _int8_macs(row: Row) -> str:
    value = row.int8.mac_fraction if row.int8 else None
    return NOT_MEASURED if value is None else f"{100 * value:.1f}"


COLUMNS = (
    Column(
        title="size, MB",
        short="size\nMB",
        meaning="the artifact, in 10^6 bytes",
        cell=_megabytes,
    ),
    Column(
        title="conversion SQNR, dB",
        short="conv.\ndB",
        meaning="SQNR against PyTorch at the same precision: what the conversion lost",
        cell=lambda row: decibels(row.conversion.sqnr_db if row.conversion else None),
    ),
    Column(
        title="quantization SQNR, dB",
        short="quant.\ndB",
        meaning="SQNR against the fp32 PyTorch model: what the precision lost",
        cell=lambda row: decibels(row.quantization.sqnr_db if row.quantization else None),
    ),
    Column(
        title="agreement, %",
        short="agree\n%",
        meaning="images whose first class is that of the fp32 PyTorch model",
        cell=lambda row: percent(agreement(row)),
    ),
    Column(
        title="top-1, %",
        short="top-1\n%",
        meaning="accuracy on labelled images",
        cell=lambda row: percent(row.accuracy.top1 if row.accuracy else None),
    ),
    Column(
        title="p50, ms",
        short="p50\nms",
        meaning="median latency of one image",
        cell=lambda row: milliseconds(row.latency.p50_ms if row.latency else None),
    ),
    Column(
        title="speed vs fp32",
        short="vs\nfp32",
        meaning="fp32 latency of the same target over this one; above 1 is faster",
        cell=_speedup,
    ),
    Column(
        title="int8 MACs, %",
        short="int8\nMAC %",
        meaning="multiply-accumulates done in int8",
        cell=_int8_macs,
    ),
)


def footnotes(rows: Sequence[Row]) -> tuple[list[str], list[list[int]]]:
    """Texts without repeats, and for each row the 1-based numbers of its own."""
    texts: dict[str, int] = {}
    marks = [
        [texts.setdefault(text, len(texts) + 1) for text in dict.fromkeys(_remarks(row))]
        for row in rows
    ]
    return list(texts), marks


def _remarks(row: Row) -> list[str]:
    remarks = [" ".join(note.split()) for note in row.notes]
    if row.status != "ok":
        reason = " ".join((row.reason or "no reason given").split())
        remarks.insert(0, f"{STATUS_WORDS[row.status]}: {reason}")
    if row.evaluation == "reference-evaluated":
        remarks.append(_REFERENCE_EVALUATED)
    return remarks


def agreement_lines(report: Report) -> list[str]:
    """For each precision, how far its targets choose the same classes: the worst two."""
    lines = []
    for precision in dict.fromkeys(one.precision for one in report.disagreements):
        pairs = [one for one in report.disagreements if one.precision == precision]
        worst = max(pairs, key=lambda one: one.fraction)
        if worst.fraction == 0:
            lines.append(f"{precision}: all targets choose the same classes on {worst.n} images")
            continue
        lines.append(
            f"{precision}: {' and '.join(worst.targets)} choose different classes on"
            f" {percent(worst.fraction)} % of {worst.n} images"
            + (", and no two targets on more" if len(pairs) > 1 else "")
        )
    return lines


def headline(report: Report) -> str:
    """One sentence that says how many rows came out how."""
    counts = {
        word: sum(row.status == status for row in report.rows)
        for status, word in STATUS_WORDS.items()
    }
    others = [f"{count} {word}" for word, count in counts.items() if count and word != "ok"]
    return ", ".join([f"{counts['ok']} of {len(report.rows)} ok", *others])


def render_table(report: Report, console: Console) -> None:
    """Print the model and host, the table, its footnotes, and how many rows came out how.

    Nothing is cut or wrapped to the console's width, so that a log keeps every figure; it fits in
    100 columns. Colours appear on a terminal only.
    """
    from rich import box
    from rich.table import Table
    from rich.text import Text

    texts, marks = footnotes(report.rows)
    table = Table(box=box.SIMPLE_HEAD, padding=(0, 1, 0, 0), pad_edge=False, show_edge=False)
    for title in ("target", "precision", "status"):
        table.add_column(title, no_wrap=True, vertical="bottom")
    for column in COLUMNS:
        table.add_column(column.short, justify="right", no_wrap=True)
    table.add_column("notes", no_wrap=True)
    previous = ""
    for row, numbers in zip(report.rows, marks, strict=True):
        if previous not in ("", row.target):
            table.add_section()
        previous = row.target
        status = Text(STATUS_WORDS[row.status], style=_STATUS_STYLES[row.status])
        cells = [Text(column.cell(row)) for column in COLUMNS]
        noted = Text(",".join(map(str, numbers)))
        table.add_row(Text(row.target), Text(row.precision), status, *cells, noted)
    console.print(Text(_about(report)), soft_wrap=True)
    console.print()
    print_whole(table, console)
    console.print()
    for number, text in enumerate(texts, 1):
        console.print(Text(f"{number:>2}  {text}"), soft_wrap=True)
    for line in (*agreement_lines(report), *audit_lines(report)):
        console.print(Text(line), soft_wrap=True)
    console.print(Text(headline(report), style="bold"), soft_wrap=True)


def print_whole(table: Table, console: Console) -> None:
    """Print a table at its own width, whatever the console's."""
    table.width = console.measure(table, options=console.options.update(max_width=1000)).maximum
    console.print(table, crop=False, no_wrap=True, overflow="ignore")


def _about(report: Report) -> str:
    model = report.model
    about = f"{model.variant}: {model.params:,} parameters, {model.num_classes} classes"
    if report.reference is not None and report.reference.top1 is not None:
        about += f"; fp32 PyTorch top-1 {percent(report.reference.top1)} %"
        about += f" of {report.reference.n} images" if report.reference.n else ""
    threads = {row.latency.threads for row in report.rows if row.latency and row.latency.threads}
    count = threads.pop() if len(threads) == 1 else 0
    at = f", {count} thread{'s' if count > 1 else ''}" if count else ""
    return f"{about}; {report.host['cpu']}{at}"


def render_markdown(report: Report) -> str:
    """A GitHub-flavoured table, with footnotes below it; ends with a newline."""
    texts, marks = footnotes(report.rows)
    titles = ["target", "precision", "status", *(column.title for column in COLUMNS)]
    rules = ["---", "---", "---", *("--:" for _ in COLUMNS)]
    lines = [titles, rules]
    for row, numbers in zip(report.rows, marks, strict=True):
        noted = f" <sup>{', '.join(map(str, numbers))}</sup>" if numbers else ""
        status = STATUS_WORDS[row.status] + noted
        lines.append([row.target, row.precision, status, *(c.cell(row) for c in COLUMNS)])
    blocks = [
        [f"| {' | '.join(line)} |" for line in lines],
        [f"{number}. {_escaped(text)}" for number, text in enumerate(texts, 1)],
        [f"- {_escaped(line)}" for line in (*agreement_lines(report), *audit_lines(report))],
    ]
    return "\n\n".join("\n".join(block) for block in blocks if block) + "\n"


def _escaped(text: str) -> str:
    return "".join(f"\\{letter}" if letter in "\\`*_<>[]|" else letter for letter in text)
