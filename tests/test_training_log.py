"""What a training run logged, read back: by epoch, as a table, as a page."""

from __future__ import annotations

import json
import re
from io import StringIO
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import pytest
from rich.console import Console

from tinyvit_edge.errors import InputError
from tinyvit_edge.report_plots import line
from tinyvit_edge.training.curves import render_html, render_table
from tinyvit_edge.training.log import MetricsLog, RunLog, is_run, read_run

RECIPE = {
    "stages": [{"size": 32, "epochs": 2}, {"size": None, "epochs": 1}],
    "batch": 8,
    "lr": 0.001,
}
FACTS = {
    "recipe": RECIPE,
    "seed": 3,
    "weights": "<b>&digits",
    "image_size": 64,
    "labels": ["a", "b"],
    "trained_on": 80,
    "teacher": None,
}


def train_line(step: int, epoch: int, size: int, loss: float) -> dict[str, Any]:
    return {
        "kind": "train",
        "step": step,
        "epoch": epoch,
        "size": size,
        "loss": loss,
        "gradient_norm": 2.0 * loss,
        "learning_rate": 1e-3 / step,
        "images_per_second": 100.0 - step,
    }


LINES = (
    train_line(5, 0, 32, 2.0),
    train_line(10, 0, 32, 1.0),
    {"kind": "val", "step": 10, "epoch": 0, "size": 32, "top1": 0.25},
    train_line(15, 1, 32, 0.5),
    train_line(25, 2, 64, 0.25),
    {"kind": "val", "step": 30, "epoch": 2, "size": 64, "top1": 0.75},
)


@pytest.fixture
def run(tmp_path: Path) -> Path:
    (tmp_path / "run.json").write_text(json.dumps(FACTS))
    log = MetricsLog(tmp_path / "metrics.jsonl", 0)
    for logged in LINES:
        log.write(**logged)
    return tmp_path


def test_epochs_sum_up_their_lines(run: Path) -> None:
    """Oracle: by hand."""
    assert is_run(run)
    first, second, third = read_run(run).epochs()
    assert (first.number, first.size, first.loss, first.gradient_norm) == (0, 32, 1.5, 3.0)
    assert (first.learning_rate, first.images_per_second, first.top1) == (1e-4, 92.5, 0.25)
    assert (second.loss, second.top1) == (0.5, None)
    assert (third.size, third.top1) == (64, 0.75)


def test_half_a_line_of_a_running_process_is_left_out(run: Path) -> None:
    """Oracle: the run before."""
    whole = read_run(run)
    with (run / "metrics.jsonl").open("a") as stream:
        stream.write('{"kind": "train", "st')
    assert read_run(run) == whole


@pytest.mark.parametrize(
    ("name", "content", "expected"),
    [
        ("metrics.jsonl", "", "logged nothing yet"),
        ("metrics.jsonl", "{]\n", "not a readable training run"),
        ("metrics.jsonl", '{"loss": 1}\n', "not a readable training run"),
        ("metrics.jsonl", '{"kind": "train", "step": 1}\n', "keys are missing"),
        ("metrics.jsonl", "7\n", "not a readable training run"),
        ("run.json", "[]", "not a readable training run"),
        ("run.json", "{}", "keys are missing"),
        ("run.json", "", "not a readable training run"),
    ],
)
def test_damaged_runs_are_refused(run: Path, name: str, content: str, expected: str) -> None:
    """Oracle: one line that names the folder."""
    (run / name).write_text(content)
    with pytest.raises(InputError, match=re.escape(expected)) as raised:
        read_run(run)
    assert str(run) in str(raised.value)


def test_table_has_a_row_an_epoch(run: Path) -> None:
    """Oracle: by hand."""
    stream = StringIO()
    Console(file=stream, width=200).print(render_table(read_run(run)))
    rows = [line.split() for line in stream.getvalue().splitlines() if line.strip()]
    assert rows[2] == ["1", "32", "1.5000", "3.00", "1.00e-04", "92", "25.00"]
    assert rows[3][-1] == "-"


def test_page_is_whole_and_escaped(run: Path) -> None:
    """Oracle: an XML parser."""
    page = render_html(read_run(run))
    body = page[page.index("<body>") :].removesuffix("</html>\n").strip()
    tree = ElementTree.fromstring(body)  # every element closed, nothing unescaped
    assert len(tree.findall(".//svg")) == 4
    assert len(tree.findall(".//tbody/tr")) == 3
    assert "2 at 32 px, 1 at 64 px" in page
    assert "&lt;b&gt;&amp;digits" in page
    assert not re.search(r"https?://|<script|<link", page)


def test_page_of_a_run_that_measured_nothing() -> None:
    """Oracle: one plot fewer."""
    log = RunLog(run=FACTS, lines=tuple(x for x in LINES if x["kind"] == "train"))
    assert render_html(log).count("<svg") == 3


@pytest.mark.parametrize("scale", [1.0, 1e-4, 1e4])
def test_curve_is_to_scale(scale: float) -> None:
    """Oracle: a straight line stays straight and fills the plot, whatever its unit."""
    drawn = line(
        [(0, scale), (50, 2 * scale), (100, 3 * scale)],
        title="t",
        x_title="step",
        y_title="loss",
        x_lines=[(50, "half")],
    )
    svg = ElementTree.fromstring(drawn)
    curve = next(part for part in svg.iter("polyline"))
    points = [tuple(map(float, pair.split(","))) for pair in curve.attrib["points"].split()]
    (x0, y0), (x1, y1), (x2, y2) = points
    assert x1 - x0 == pytest.approx(x2 - x1, abs=0.11)
    assert x2 > x1
    assert y1 - y0 == pytest.approx(y2 - y1, abs=0.11)
    assert y0 - y2 > 150
    mark = next(part for part in svg.iter("line") if part.attrib["class"] == "reference")
    assert float(mark.attrib["x1"]) == pytest.approx(x1, abs=0.11)


def test_numbers_that_are_not_finite_are_left_out(run: Path) -> None:
    """Oracle: JSON has no infinity; the page and the table have what is finite."""
    MetricsLog(run / "metrics.jsonl", 30).write(**train_line(35, 2, 64, float("inf")))
    log = read_run(run)
    json.dumps(log.to_dict(), allow_nan=False)
    assert log.epochs()[2].loss == 0.25
    assert render_html(log).count("<svg") == 4


def test_report_shows_a_training(cli: Any, run: Path, tmp_path: Path) -> None:
    """Oracle: the files of the run."""
    page = tmp_path / "page.html"
    code, out, _ = cli("report", run, "--html", page)
    assert code == 0
    assert "92" in out
    assert page.read_text().startswith("<!doctype")
    code, out, _ = cli("report", run, "--json", "-")
    assert code == 0
    assert json.loads(out) == {"run": FACTS, "metrics": list(LINES)}
    code, _, error = cli("report", run, "--markdown")
    assert code == 2
    assert "--markdown" in error
