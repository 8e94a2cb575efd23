"""The report rendered: its terminal table, its Markdown, its HTML page and its plots."""

from __future__ import annotations

import itertools
import re
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path
from types import ModuleType

import pytest

import tinyvit_edge
from tinyvit_edge.host import host_info
from tinyvit_edge.report import (
    Accuracy,
    Disagreement,
    Gate,
    Latency,
    ModelInfo,
    Report,
    render_markdown,
)
from tinyvit_edge.report_html import render_html
from tinyvit_edge.report_plots import Bar, Point, bars, scatter, series_of
from tinyvit_edge.report_table import agreement_lines

ASSETS = Path(tinyvit_edge.__file__).parent / "assets"
HOSTILE = '<script src="//x.test/a.js">"&\'</script>'


# --- table and Markdown ---


@pytest.mark.parametrize("width", [40, 200])
def test_piped_table_keeps_every_figure(samples: ModuleType, width: int) -> None:
    """Oracle: the figures, formatted by hand; no escape codes; rows within 100 columns."""
    text = samples.printed(samples.full_report(), width=width)
    assert "\x1b" not in text
    lines = text.splitlines()
    row = next(line for line in lines if re.match(r"onnx +w8a8", line))
    expected = "onnx w8a8 ok 1.35 48.2 22.4 99.50 98.16 1.23 1.62x 88.1 1"
    assert row.split() == expected.split()
    table = [line.rstrip() for line in lines if re.match(r"target|onnx|exec|tfl|coreml|─", line)]
    assert len(table) == 2 + len(samples.full_report().rows)
    assert max(map(len, table)) <= 100


def test_terminal_table_is_coloured(samples: ModuleType) -> None:
    """Oracle: ANSI escapes appear on a terminal, and only there (above)."""
    assert "\x1b[" in samples.printed(
        samples.full_report(), force_terminal=True, color_system="standard"
    )


def test_rows_without_a_result_are_explained(samples: ModuleType) -> None:
    """Oracle: each reason and note is printed once, and marked in its row."""
    text = samples.printed(samples.full_report())
    notes = (
        "int8 is not faster than fp32 here: 0.93x",
        "unsupported: onnx can do fp32, w8-dynamic, w8a8",
        "gate failed: SQNR 11.2 dB is below 30 dB",
        "failed: could not lower aten.unfold",
        "reference-evaluated: the saved package was evaluated without Core ML; "
        "its latency needs an Apple device",
    )
    for number, note in enumerate(notes, 1):
        assert text.count(f" {number}  {note}\n") == 1
    assert re.search(r"executorch +w8a8 +gate failed .* 3,1 *\n", text)
    assert re.search(r"coreml .* - +- +88.1 +5 *\n", text)
    assert text.endswith("3 of 6 ok, 1 gate failed, 1 failed, 1 unsupported\n")


def test_almost_all_is_not_shown_as_all(samples: ModuleType) -> None:
    """Oracle: 9999 of 10000 is less than 100.00 %."""
    row = samples.made(accuracy=Accuracy(top1=0.99999, n=100_000))
    assert "99.99" in samples.printed(samples.report_of(row))
    assert "100.00" not in samples.printed(samples.report_of(row))


def test_markup_in_names_is_printed_as_it_is(samples: ModuleType) -> None:
    """Oracle: rich's markup is not interpreted."""
    text = samples.printed(
        samples.report_of(samples.missing("failed", reason="pip install 'tinyvit-edge[tflite]'"))
    )
    assert "failed: pip install 'tinyvit-edge[tflite]'" in text


def test_markdown_is_a_table(samples: ModuleType) -> None:
    """Oracle: every line has as many cells as the header; notes follow, escaped."""
    report = samples.report_of(
        *samples.full_report().rows, samples.missing("failed", reason="a|b <c>\nd")
    )
    table, notes = render_markdown(report).split("\n\n")
    lines = table.splitlines()
    assert {line.count("|") for line in lines} == {12}
    assert len(lines) == 2 + len(report.rows)
    assert lines[3].startswith("| onnx | w8a8 | ok <sup>1</sup> | 1.35 | 48.2 | 22.4 | 99.50 |")
    assert notes.splitlines()[-1] == r"6. failed: a\|b \<c\> d"


def test_the_two_targets_that_differ_most_are_named(samples: ModuleType) -> None:
    """Oracle: one pair at fp32, and the second of three at w8a8; JSON gives them back."""
    pairs = [
        ("fp32", ("onnx", "tflite"), 0.0),
        ("w8a8", ("onnx", "tflite"), 0.005),
        ("w8a8", ("onnx", "coreml"), 0.0125),
        ("w8a8", ("tflite", "coreml"), 0.01),
    ]
    report = samples.report_of(
        samples.made("onnx", "w8a8"),
        disagreements=tuple(
            Disagreement(precision=precision, targets=targets, fraction=fraction, n=400)
            for precision, targets, fraction in pairs
        ),
    )
    lines = [
        "fp32: all targets choose the same classes on 400 images",
        "w8a8: onnx and coreml choose different classes on 1.25 % of 400 images, and no two"
        " targets on more",
    ]
    assert agreement_lines(report) == lines
    assert render_markdown(report).splitlines()[-2:] == [f"- {line}" for line in lines]
    for text in (samples.printed(report), render_html(report)):
        assert all(line in text for line in lines)
    assert Report.from_dict(report.to_dict()) == report
    assert agreement_lines(samples.full_report()) == []


# --- HTML ---


class Page(HTMLParser):
    """Collects elements, and checks that every one is closed in order."""

    VOID = frozenset({"meta"})

    def __init__(self, text: str) -> None:
        super().__init__()
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.text = ""
        self.open: list[str] = []
        self.feed(text)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs)))
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs)))

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.text += data

    def all(self, tag: str) -> list[dict[str, str | None]]:
        return [attributes for name, attributes in self.elements if name == tag]


def test_page_needs_nothing_but_itself(samples: ModuleType) -> None:
    """Oracle: the elements and attributes by which HTML and CSS load things or run code."""
    text = render_html(samples.full_report())
    page = Page(text)
    tags = {tag for tag, _ in page.elements}
    assert not tags & {"script", "link", "img", "iframe", "object", "embed", "base", "form"}
    assert not re.search(r"@import|url\(", text)
    for tag, attributes in page.elements:
        assert not {"src", "srcset", "action"} & attributes.keys()
        assert not [name for name in attributes if name.startswith("on")]
        if "href" in attributes:
            assert tag == "a"
            assert (attributes["href"] or "").startswith(("#note-", "./"))


def test_page_escapes_what_it_is_given(samples: ModuleType) -> None:
    """Oracle: the parser sees no element that came from a value, and the text as it was."""
    gate = Gate(name=HOSTILE, passed=False, measured=1.0, bound=2.0, reason=HOSTILE)
    latency = Latency(p50_ms=1.0, cpu=HOSTILE, device_kind=HOSTILE)
    row = samples.made(HOSTILE, HOSTILE, notes=(HOSTILE,), gates=(gate,), latency=latency)
    row = replace(row, artifact=f"javascript:{HOSTILE}", status="gate_failed", reason=HOSTILE)
    host = {**host_info(), "cpu": HOSTILE, "packages": {HOSTILE: HOSTILE}}
    model = ModelInfo(variant=HOSTILE, params=1, weights_sha256=samples.SHA, num_classes=1)
    report = samples.report_of(
        row, host=host, model=model, command=(HOSTILE,), tool_version=HOSTILE
    )
    page = Page(render_html(report))
    assert page.all("script") == []
    assert page.text.count(HOSTILE) >= 12
    links = [attributes["href"] or "" for attributes in page.all("a")]
    assert all(re.match(r"#note-\d+$|\./javascript%3A", link) for link in links)


def test_page_is_accessible(samples: ModuleType) -> None:
    """Oracle: WCAG's basics: named images, scoped headers, language, targets that exist."""
    page = Page(render_html(samples.full_report()))
    assert page.all("html") == [{"lang": "en"}]
    assert all(attributes.get("scope") in ("row", "col") for attributes in page.all("th"))
    plots = [attributes for attributes in page.all("svg") if "aria-hidden" not in attributes]
    assert len(plots) == 4
    for attributes in plots:
        assert attributes["role"] == "img"
        assert "onnx w8a8" in (attributes["aria-label"] or "")
    ids = {attributes["id"] for _, attributes in page.elements if "id" in attributes}
    links = {attributes["href"] or "" for attributes in page.all("a")}
    notes = {link[1:] for link in links if link.startswith("#")}
    assert notes == ids


def test_page_says_what_a_plot_leaves_out(samples: ModuleType) -> None:
    """Oracle: the one row of the sample without latency, the one without quantization."""
    text = Page(render_html(samples.full_report())).text
    assert "Up and to the left is better. Left out, no figure: coreml w8a8." in text
    assert "Left out, no figure: onnx fp32." in text


def test_page_without_labels_plots_agreement(samples: ModuleType) -> None:
    """Oracle: no accuracy was measured, so none is claimed."""
    rows = (
        samples.made("onnx", "w8a8", accuracy=None),
        samples.made("tflite", "w8a8", accuracy=None),
    )
    text = Page(render_html(samples.report_of(*rows, reference=None))).text
    assert "Top-1 agreement against latency" in text
    assert "Top-1 accuracy against" not in text


def test_page_of_nothing_made(samples: ModuleType) -> None:
    """Oracle: no plots, gates or files where no artifact was made."""
    page = Page(
        render_html(samples.report_of(samples.missing("skipped"), samples.missing("failed")))
    )
    assert page.all("svg") == []
    assert "0 of 2 ok, 1 failed, 1 skipped" in page.text
    assert "skipped: litert-torch is absent" in page.text


def circles(svg: str) -> list[tuple[float, float]]:
    found = re.findall(r'<circle [^>]*cx="([\d.]+)" cy="([\d.]+)"', svg)
    return [(float(x), float(y)) for x, y in found]


def drawn(*places: tuple[float, float]) -> str:
    points = [Point(series="onnx", label="fp32", x=x, y=y) for x, y in places]
    series = series_of(["onnx"])
    return scatter(points, series=series, title="t", x_title="ms", y_title="%", y_line=None)


def test_scatter_is_to_scale() -> None:
    """Oracle: proportion. x starts at zero, so equal steps are equal lengths; up is more."""
    (x1, y1), (x2, y2), (x3, y3) = circles(drawn((1, 90), (2, 92), (4, 96)))
    assert x3 - x2 == pytest.approx(2 * (x2 - x1), abs=0.2)
    assert y2 - y3 == pytest.approx(2 * (y1 - y2), abs=0.2)


def test_scatter_of_a_wide_range_is_logarithmic() -> None:
    """Oracle: equal ratios are equal lengths, and the axis says so."""
    svg = drawn((1, 90), (10, 90), (100, 90))
    (x1, _), (x2, _), (x3, _) = circles(svg)
    assert x2 - x1 == pytest.approx(x3 - x2, abs=0.2)
    assert "(logarithmic)" in svg


@pytest.mark.parametrize("level", [0.0, 50.0, 100.0])
def test_scatter_of_equal_heights(level: float) -> None:
    """Oracle: a flat row of sixteen stays in the picture, and no tick is above 100 %."""
    svg = drawn(*((1 + index / 8, level) for index in range(16)))
    box = re.search(r'viewBox="0 0 (\d+) (\d+)"', svg)
    assert box is not None
    width, height = map(float, box.groups())
    assert all(0 < x < width and 0 < y < height for x, y in circles(svg))
    ticks = re.findall(r'class="tick end"[^>]*>([-\d.]+)<', svg)
    assert ticks
    assert all(float(tick) <= 100 for tick in ticks)


def test_labels_do_not_cover_each_other() -> None:
    """Oracle: no two label boxes of 12 close points intersect."""
    points = [
        Point(series="a", label=f"w8a8-{i}", x=1 + i % 4 / 9, y=98 + i // 4 / 9) for i in range(12)
    ]
    svg = scatter(points, series={"a": 0}, title="t", x_title="ms", y_title="%")
    found = re.findall(r'class="label middle" x="([\d.]+)" y="([\d.]+)">([^<]+)<', svg)
    assert len(found) == 12
    boxes = [(float(x), float(y), 6.2 * len(text)) for x, y, text in found]
    for (x1, y1, w1), (x2, y2, w2) in itertools.combinations(boxes, 2):
        assert abs(x1 - x2) > (w1 + w2) / 2 or abs(y1 - y2) > 11


def test_bars_are_to_scale() -> None:
    """Oracle: proportion; a bit-exact row fills the width, a negative one has none."""
    values = [
        ("25.0", 25.0, False),
        ("50.0", 50.0, False),
        ("exact", 300.0, True),
        ("-3", -3, False),
    ]
    rows = [Bar(series="a", label=t, value=v, text=t, full=f) for t, v, f in values]
    svg = bars(rows, series={"a": 0}, title="t", x_title="dB", limit=100)
    quarter, half, whole, none = map(float, re.findall(r'<rect [^>]*width="([\d.]+)"', svg))
    assert half == pytest.approx(2 * quarter, abs=0.2)
    assert whole == pytest.approx(4 * quarter, abs=0.4)
    assert none <= 1


def luminance(colour: str) -> float:
    digits = colour[1:] if len(colour) == 7 else "".join(letter * 2 for letter in colour[1:])
    parts = [int(digits[i : i + 2], 16) / 255 for i in (0, 2, 4)]
    linear = [p / 12.92 if p <= 0.04045 else ((p + 0.055) / 1.055) ** 2.4 for p in parts]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]


@pytest.mark.parametrize("scheme", [0, 1], ids=["light", "dark"])
def test_colours_have_contrast(scheme: int) -> None:
    """Oracle: WCAG 2.2: 4.5:1 for text (1.4.3), 3:1 for the marks of a plot (1.4.11)."""
    css = (ASSETS / "report.css").read_text()
    blocks = re.findall(r":root \{(.*?)\}", css, flags=re.DOTALL)
    assert len(blocks) == 2
    colours = dict(re.findall(r"--([\w-]+): (#\w+)", blocks[scheme]))

    def contrast(one: str, other: str) -> float:
        high, low = sorted((luminance(colours[one]), luminance(colours[other])), reverse=True)
        return (high + 0.05) / (low + 0.05)

    for text in ("ink", "muted", "link"):
        assert contrast(text, "card") >= 4.5
        assert contrast(text, "page") >= 4.5
    for badge in ("good", "bad", "warn", "idle"):
        assert contrast(badge, f"{badge}-back") >= 4.5
    for number in range(6):
        assert contrast(f"t{number}", "card") >= 3
