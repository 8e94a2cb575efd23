"""What quantizing each layer costs, as an HTML page."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from tinyvit_edge.report_page import figure, page, text_table
from tinyvit_edge.report_plots import Bar, bars, series_of

if TYPE_CHECKING:
    from tinyvit_edge.quantization.sensitivity import LayerSensitivity

__all__ = ["TITLES", "cells", "render_html"]

TITLES = ("layer", "kind", "MACs %", "alone dB", "all but it dB", "noise that it adds %")


def cells(layer: LayerSensitivity, total_macs: int) -> tuple[str, ...]:
    """One layer's line of the table, under `TITLES`."""
    return (
        layer.name,
        layer.kind,
        f"{100 * layer.macs / total_macs:.2f}",
        f"{layer.alone_db:.1f}",
        f"{layer.rest_db:.1f}",
        f"{100 * layer.gain:.1f}",
    )


def render_html(layers: Sequence[LayerSensitivity]) -> str:
    """A self-contained page: the share of the noise that each layer adds, and the table.

    Args:
        layers: at least one, in the order to show.
    """
    whole = f"with all of them quantized the logits have {layers[0].whole_db:.1f} dB"
    series = series_of(layer.kind for layer in layers)
    rows = [
        Bar(
            series=layer.kind,
            label=layer.name,
            value=100 * layer.gain,
            text=f"{100 * layer.gain:.1f}",
        )
        for layer in sorted(layers, key=lambda layer: series[layer.kind])
    ]
    title = "Quantization noise by layer"
    drawn = bars(
        rows,
        series=series,
        title=title,
        x_title="% of the noise that goes when the layer stays in float32",
        limit=max(1.0, *(row.value for row in rows)),
    )
    total = sum(layer.macs for layer in layers)
    caption = "SQNR of the logits against float32, this layer quantized alone, and all but it."
    table = text_table("Layers", caption, TITLES, (cells(layer, total) for layer in layers))
    name = "Sensitivity of layers"
    return page(
        name,
        (
            f'<header><p class="eyebrow">tinyvit-edge quantize</p><h1>{name}</h1></header><main>',
            figure(title, f"{len(layers)} layers; {whole}.", drawn),
            f"<h2>Layers</h2>{table}</main>",
        ),
    )
