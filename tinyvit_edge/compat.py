"""Where other packages need a hand on the hosts and folders that we support."""

from __future__ import annotations

import ctypes
import importlib.util
import os
import sys
from typing import Any

import torch

__all__ = ["keep_freed_memory", "open_backbone_folders", "tolerate_torchvision"]

_kept: list[Any] = []


def tolerate_torchvision() -> None:
    """Let transformers import its image modules beside a torchvision built for another torch.

    PyPI's torchvision has no CPU build for Linux. Beside a CPU build of torch its compiled
    operators do not load, and importing it fails because the two it wraps at import time are not
    declared; declaring them is enough, and nothing here calls them. A torchvision that loads, or
    is not there, is left alone. Call this before the first import of transformers' image classes.
    """
    if _kept or importlib.util.find_spec("torchvision") is None:
        return
    try:
        import torchvision  # type: ignore[import-untyped]  # noqa: F401
    except RuntimeError:
        library: Any = torch.library.Library("torchvision", "FRAGMENT")  # type: ignore[no-untyped-call]
        for name in ("nms", "qnms"):
            library.define(f"{name}(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
        _kept.append(library)  # the declarations live as long as this object


def keep_freed_memory() -> None:
    """Let glibc keep freed blocks for the next ones, in this process and those it forks.

    By default it returns every large block to the kernel, which then clears its pages again for
    the next activation: half the time of a training step on a CPU. Elsewhere this does nothing.
    """
    if not sys.platform.startswith("linux"):
        return
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is not None:
        trim_threshold, mmap_threshold = -1, -3  # M_TRIM_THRESHOLD, M_MMAP_THRESHOLD of malloc.h
        mallopt(mmap_threshold, 1 << 30)
        mallopt(trim_threshold, (1 << 31) - 1)


def open_backbone_folders() -> None:
    """Let `AutoBackbone.from_pretrained` take a local folder, as the other Auto classes do.

    transformers 5 asks the hub whether the name is a repository before anything else, and the hub
    client rejects a path as no repository name. A folder that exists goes straight to the loader
    that a repository would go to; every other name is handled as before.
    """
    from transformers.models.auto import auto_factory

    base: Any = auto_factory._BaseAutoBackboneClass
    if getattr(base, "_opens_folders", False):
        return
    stock = base.from_pretrained.__func__

    def from_pretrained(cls: Any, name: Any, *arguments: Any, **options: Any) -> Any:
        if os.path.isdir(name):  # noqa: PTH112  a hub id is no path
            return super(base, cls).from_pretrained(name, *arguments, **options)
        return stock(cls, name, *arguments, **options)

    base.from_pretrained = classmethod(from_pretrained)
    base._opens_folders = True
