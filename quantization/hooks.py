"""Hooks that are gone when the work is done, whatever ends it."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager

from torch.utils.hooks import RemovableHandle

__all__ = ["attached"]


@contextmanager
def attached(handles: Iterable[RemovableHandle]) -> Iterator[None]:
    """Keep hooks for the length of a ``with`` block."""
    kept = list(handles)
    try:
        yield
    finally:
        for handle in kept:
            handle.remove()
