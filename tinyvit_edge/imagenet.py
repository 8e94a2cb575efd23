"""The 1000 classes of ImageNet-1k (ILSVRC 2012) in the order that every published model uses.

``assets/imagenet_classes.tsv`` has one class a line, in class order: the WordNet 3.0 id, a tab, and
the synset's names separated by ``", "``. The ids are sorted, which is what fixes the order.
"""

from __future__ import annotations

from functools import cache
from importlib import resources

from tinyvit_edge.errors import DataError

__all__ = ["imagenet_labels", "imagenet_wnids", "synonyms_of_wnid"]


def imagenet_wnids() -> tuple[str, ...]:
    """Return the 1000 WordNet ids ("n01440764", ...) in class order."""
    return tuple(_synonyms_by_wnid())


def imagenet_labels() -> tuple[str, ...]:
    """Return the 1000 labels in class order: each synset's first name.

    Two labels occur twice in ImageNet itself, "crane" (134, 517) and "maillot" (638, 639).
    """
    return tuple(names[0] for names in _synonyms_by_wnid().values())


def synonyms_of_wnid(wnid: str) -> tuple[str, ...]:
    """Return all names of a WordNet id, ("tench", "Tinca tinca") for "n01440764".

    Raises:
        DataError: the id is not one of the 1000.
    """
    try:
        return _synonyms_by_wnid()[wnid]
    except KeyError:
        raise DataError(
            f"{wnid!r} is not one of the 1000 WordNet ids of ImageNet-1k; check the id"
        ) from None


@cache
def _synonyms_by_wnid() -> dict[str, tuple[str, ...]]:
    table = resources.files("tinyvit_edge").joinpath("assets/imagenet_classes.tsv")
    rows = (line.split("\t") for line in table.read_text(encoding="utf-8").splitlines())
    return {wnid: tuple(names.split(", ")) for wnid, names in rows}
