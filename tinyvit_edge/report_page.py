"""Parts of a page that are the same whatever it reports: the frame, cards, tables, figures."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from html import escape
from pathlib import Path

__all__ = ["card", "figure", "page", "scrolling_table", "text_table"]

_STYLE = Path(__file__).parent / "assets" / "report.css"
# Said in the page too, so that a browser refuses what this module promises not to write.
_POLICY = "default-src 'none'; style-src 'unsafe-inline'"


def page(title: str, sections: Iterable[str]) -> str:
    """One HTML file: no scripts, no requests, the style sheet inside; empty sections are left out.

    Args:
        title: plain text.
        sections: HTML.
    """
    return (
        '<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        f'<meta http-equiv="Content-Security-Policy" content="{_POLICY}">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        '<meta name="color-scheme" content="light dark">\n'
        f"<title>{escape(title)}</title>\n<style>\n{_STYLE.read_text(encoding='utf-8')}</style>\n"
        f"</head>\n<body>\n{''.join(f'{section}{chr(10)}' for section in sections if section)}"
        "</body>\n</html>\n"
    )


def card(title: str, facts: dict[str, str]) -> str:
    """Names and values, all plain text."""
    pairs = "".join(f"<dt>{escape(k)}</dt><dd>{escape(v)}</dd>" for k, v in facts.items())
    return f'<section class="card"><h3>{escape(title)}</h3><dl>{pairs}</dl></section>'


def figure(title: str, text: str, drawn: str) -> str:
    """A plot (HTML) under its title and a sentence (plain text)."""
    return (
        f'<figure class="card"><figcaption><h3>{escape(title)}</h3>'
        f"<p>{escape(text)}</p></figcaption>{drawn}</figure>"
    )


def scrolling_table(name: str, caption: str, head: str, body: str, kind: str = "card ") -> str:
    """A table (rows in HTML) that the keyboard, too, can scroll where it does not fit."""
    words = f"<caption>{escape(caption)}</caption>" if caption else ""
    return (
        f'<div class="{kind}scroll" tabindex="0" role="region" '
        f'aria-label="{escape(name, quote=True)}"><table>{words}<thead>{head}</thead>{body}</table>'
        "</div>"
    )


def text_table(
    name: str, caption: str, titles: Sequence[str], rows: Iterable[Sequence[str]]
) -> str:
    """A `scrolling_table` of plain text."""
    head = "".join(f'<th scope="col">{escape(title)}</th>' for title in titles)
    body = "".join(
        f"<tr>{''.join(f'<td>{escape(cell)}</td>' for cell in cells)}</tr>" for cells in rows
    )
    return scrolling_table(name, caption, f"<tr>{head}</tr>", f"<tbody>{body}</tbody>")
