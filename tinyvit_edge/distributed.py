"""Processes that `torchrun` started, and the one that was started without it.

Nothing here is needed for a single process: every function then does the obvious thing.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import torch

__all__ = ["Amp", "Group", "is_first", "pick_amp", "process_group"]

AMP_CHOICES = ("auto", "bf16", "fp16", "fp32")


@dataclass(frozen=True, slots=True, kw_only=True)
class Group:
    """Which process this is, of how many, and the device it works on."""

    rank: int
    world: int
    device: torch.device

    @property
    def first(self) -> bool:
        """Whether this process writes what is written once."""
        return self.rank == 0

    def barrier(self) -> None:
        """Wait for the others."""
        if self.world > 1:
            torch.distributed.barrier()


def is_first() -> bool:
    """Whether this is the only process, or the first that torchrun started."""
    return os.environ.get("RANK", "0") == "0"


@contextmanager
def process_group() -> Iterator[Group]:
    """Join the group that torchrun's environment describes: NCCL with a GPU, else gloo."""
    world, rank = int(os.environ.get("WORLD_SIZE", "1")), int(os.environ.get("RANK", "0"))
    device = torch.device("cpu")
    if torch.cuda.is_available():
        device = torch.device("cuda", int(os.environ.get("LOCAL_RANK", "0")))
        torch.cuda.set_device(device)
    if world > 1:
        torch.distributed.init_process_group("nccl" if device.type == "cuda" else "gloo")
    try:
        yield Group(rank=rank, world=world, device=device)
    finally:
        if world > 1:
            torch.distributed.destroy_process_group()


@dataclass(frozen=True, slots=True, kw_only=True)
class Amp:
    """What matrix products are computed in; weights and optimizer stay float32."""

    name: str
    device: str

    def autocast(self) -> torch.autocast:
        """A context for the forward pass."""
        dtype = torch.float16 if self.name == "fp16" else torch.bfloat16
        return torch.autocast(self.device, dtype, enabled=self.name != "fp32")


def pick_amp(name: str, device: torch.device) -> Amp:
    """Resolve "auto": bf16 where the device multiplies it natively, else float32.

    Raises:
        InputError: unknown name, or fp16 on a CPU, whose gradients would underflow unscaled.
    """
    from tinyvit_edge.errors import InputError

    if name not in AMP_CHOICES:
        raise InputError(f"unknown --amp {name!r}: choose {', '.join(AMP_CHOICES)}")
    if name == "fp16" and device.type == "cpu":
        raise InputError("--amp fp16 needs a GPU: choose bf16 or fp32")
    if name == "auto":
        if device.type == "cuda":
            name = "bf16" if torch.cuda.is_bf16_supported() else "fp16"
        else:
            # emulated bf16 is slower than float32: only where the processor has the products
            has = getattr(torch.cpu, "_is_avx512_bf16_supported", lambda: False)
            name = "bf16" if has() else "fp32"
    return Amp(name=name, device=device.type)
