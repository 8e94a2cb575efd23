"""The published TinyViT family (arXiv 2207.10666, table 7) as rows of data."""

from __future__ import annotations

import difflib
from dataclasses import dataclass
from typing import TYPE_CHECKING

from tinyvit_edge.errors import InputError

if TYPE_CHECKING:
    from tinyvit_edge.configuration import TinyVitConfig

__all__ = ["VARIANTS", "Variant", "config_for"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Variant:
    """One model of the family; the tuples have one entry per stage.

    `params` counts the parameters with 1000 classes.
    """

    name: str
    image_size: int
    hidden_sizes: tuple[int, ...]
    depths: tuple[int, ...] = (2, 2, 6, 2)
    num_heads: tuple[int, ...]
    window_sizes: tuple[int, ...]
    params: int


_ROWS = (
    Variant(
        name="tiny_vit_5m_224",
        image_size=224,
        hidden_sizes=(64, 128, 160, 320),
        num_heads=(2, 4, 5, 10),
        window_sizes=(7, 7, 14, 7),
        params=5_392_764,
    ),
    Variant(
        name="tiny_vit_11m_224",
        image_size=224,
        hidden_sizes=(64, 128, 256, 448),
        num_heads=(2, 4, 8, 14),
        window_sizes=(7, 7, 14, 7),
        params=10_996_972,
    ),
    Variant(
        name="tiny_vit_21m_224",
        image_size=224,
        hidden_sizes=(96, 192, 384, 576),
        num_heads=(3, 6, 12, 18),
        window_sizes=(7, 7, 14, 7),
        params=21_198_568,
    ),
    Variant(
        name="tiny_vit_21m_384",
        image_size=384,
        hidden_sizes=(96, 192, 384, 576),
        num_heads=(3, 6, 12, 18),
        window_sizes=(12, 12, 24, 12),
        params=21_230_488,
    ),
    Variant(
        name="tiny_vit_21m_512",
        image_size=512,
        hidden_sizes=(96, 192, 384, 576),
        num_heads=(3, 6, 12, 18),
        window_sizes=(16, 16, 32, 16),
        params=21_268_120,
    ),
)

VARIANTS: dict[str, Variant] = {row.name: row for row in _ROWS}


def config_for(name: str, num_labels: int = 1000) -> TinyVitConfig:
    """The configuration of the variant called `name`, with `num_labels` classes.

    Raises:
        InputError: no variant has that name; the closest one is suggested.
    """
    from tinyvit_edge.configuration import TinyVitConfig

    row = VARIANTS.get(name)
    if row is None:
        close = difflib.get_close_matches(name, VARIANTS, n=1)
        hint = f"did you mean {close[0]}?" if close else f"known: {', '.join(VARIANTS)}"
        raise InputError(f"unknown TinyViT variant {name!r}: {hint}")
    return TinyVitConfig(
        image_size=row.image_size,
        hidden_sizes=row.hidden_sizes,
        depths=row.depths,
        num_heads=row.num_heads,
        window_sizes=row.window_sizes,
        num_labels=num_labels,
    )
