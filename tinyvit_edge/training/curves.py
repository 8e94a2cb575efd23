"""What a training run logged, as a table and as a page of curves."""

from __future__ import annotations

from typing import TYPE_CHECKING

from tinyvit_edge.training.log import EpochSummary, RunLog

if TYPE_CHECKING:
    from rich.table import Table

__all__ = ["render_html", "render_table"]

_TITLES = ("epoch", "size, px", "loss", "gradient norm", "learning rate", "images/s", "top-1, %")


def render_table(log: RunLog) -> Table:
    """An epoch a row, for a terminal."""
    from rich import box
    from rich.table import Table

    table = Table(box=box.SIMPLE)
    for title in _TITLES:
        table.add_column(title, justify="right", no_wrap=True)
    for epoch in log.epochs():
        table.add_row(*_cells(epoch))
    return table


def _cells(epoch: EpochSummary) -> list[str]:
    def text(value: float | None, form: str) -> str:
        return "-" if value is None else format(value, form)

    return [
        str(epoch.number + 1),
        str(epoch.size),
        text(epoch.loss, ".4f"),
        text(epoch.gradient_norm, ".2f"),
        text(epoch.learning_rate, ".2e"),
        text(epoch.images_per_second, ".0f"),
        text(None if epoch.top1 is None else 100 * epoch.top1, ".2f"),
    ]


def render_html(log: RunLog) -> str:
    """A self-contained page: accuracy, loss and learning rate over the epochs, and the table."""
    from tinyvit_edge.report_page import card, page, text_table

    recipe = log.run["recipe"]
    stages = ", ".join(
        f"{stage['epochs']} at {stage['size'] or log.run['image_size']} px"
        for stage in recipe["stages"]
    )
    facts = {
        "begun from": str(log.run["weights"]),
        "targets": str(log.run["teacher"] or "labels"),
        "classes": f"{len(log.run['labels']):,}",
        "trained on": f"{log.run['trained_on']:,} images",
        "epochs": stages,
        "batch, peak learning rate": f"{recipe['batch']}, {recipe['lr']:g}",
        "seed": str(log.run["seed"]),
    }
    caption = "Loss and gradient norm: means of the logged steps. Top-1: of the moving average."
    table = text_table("Epochs", caption, _TITLES, map(_cells, log.epochs()))
    title = "Training run"
    return page(
        title,
        (
            f'<header><p class="eyebrow">tinyvit-edge train</p><h1>{title}</h1></header><main>',
            card("Recipe", facts),
            f'<h2>Curves</h2><div class="pair">{"".join(_figures(log))}</div>',
            f"<h2>Epochs</h2>{table}</main>",
        ),
    )


def _figures(log: RunLog) -> list[str]:
    from tinyvit_edge.report_page import figure
    from tinyvit_edge.report_plots import line

    marks = _stages(log)
    plots = (
        ("Accuracy", "top-1, %", "val", "top1", 100),
        ("Loss", "cross-entropy, nats", "train", "loss", 1),
        ("Learning rate", "x 0.001", "train", "learning_rate", 1000),
        ("Speed", "images/s", "train", "images_per_second", 1),
    )
    note = "The dashed lines are where a resolution begins." if len(marks) > 1 else ""
    figures = []
    for title, y_title, kind, key, factor in plots:
        found = [x for x in log.of(kind) if x[key] is not None]
        if found:
            points = [(x["step"], factor * x[key]) for x in found]
            drawn = line(points, title=title, x_title="step", y_title=y_title, x_lines=marks)
            figures.append(figure(title, note, drawn))
    return figures


def _stages(log: RunLog) -> list[tuple[float, str]]:
    """The first logged step of every resolution."""
    marks: list[tuple[float, str]] = []
    previous = None
    for logged in log.of("train") or log.of("val"):
        if logged["size"] != previous:
            marks.append((logged["step"] if marks else 0, f"{logged['size']} px"))
            previous = logged["size"]
    return marks
