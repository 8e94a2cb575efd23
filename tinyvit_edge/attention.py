"""Attention of the deployment form: 3-D batched products, and biases as a target stores them.

How many heads are worked on at once, and what of the biases a file holds, leaves every logit as it
is; `docs/latency.md` says what each is worth.
"""

from __future__ import annotations

import math
from itertools import pairwise
from typing import TYPE_CHECKING, Any, Literal, TypeVar

import torch
from torch import Tensor, nn

from tinyvit_edge.folding import copy_linear, fold_layer_norm, split_qkv
from tinyvit_edge.softmax import choose_softmax

if TYPE_CHECKING:
    from tinyvit_edge.deployment import FormOptions

__all__ = [
    "MOST_JOINED",
    "Attention",
    "AttentionBias",
    "HalfBiases",
    "HeadGroup",
    "as_strip",
    "expand_biases",
    "in_batches",
    "strip_columns",
    "strip_parts",
]

HalfBiases = Literal["float16", "float16 strip", "int8", "int8 strip"]

T = TypeVar("T")

MOST_JOINED = 5
"""Inputs that XNNPACK's concatenation takes."""
_MOST_PARTS = 16
_SMALLEST_SIDE = 12
"""The next, 7, has 2401 biases a head."""

_SCORES_AT_ONCE = 5 * 2**18
"""Scores that the heads of one window have together before they are worked on in groups: 5 MB of
float32, about what stays in a cache between the product, the addition and the softmax."""
_LEAST_HEADS = 2
"""A batch of one product is no batch to LiteRT's converter: it makes another operator of it."""


class Attention(nn.Module):
    """Multi-head attention of windows."""

    def __init__(self, attention: Any, options: FormOptions) -> None:
        """Copy a reference `tinyvit_edge.layers.Attention`."""
        super().__init__()
        self.heads: int = attention.num_heads
        self.head_dim: int = attention.head_dim
        q, k, v = split_qkv(attention.qkv, self.heads)
        q.weight.mul_(attention.scale)
        q.bias.mul_(attention.scale)
        self.norm, (self.q, self.k, self.v) = fold_layer_norm(attention.norm, (q, k, v), options)
        self.proj = copy_linear(attention.proj)
        table = attention.attention_biases.detach().clone()  # (heads, offsets)
        index = attention.attention_bias_idxs  # (N, N)
        weigh = choose_softmax(options.softmax, self.q, self.k, table, len(index))
        self.bounds = _head_bounds(self.heads, len(index))
        self.groups = nn.ModuleList(
            HeadGroup(
                _bias(table[first:last], index, options),
                weigh,
                heads=last - first,
                head_dim=self.head_dim,
                tokens=len(index),
            )
            for first, last in pairwise(self.bounds)
        )

    def forward(self, x: Tensor) -> Tensor:
        """Map rows (windows * N, C) to the same shape."""
        x = self.norm(x)
        q, k, v = self.q(x), self.k(x), self.v(x)  # (W*N, heads*d)
        out: Tensor = self.proj(self._weighted(q, k, v))
        return out

    def biases(self) -> Tensor:
        """Give the biases of all heads, (heads, N, N)."""
        return torch.cat([group.get_submodule("bias")() for group in self.groups])

    def _weighted(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        """Map three tensors (W*N, heads*d) to one."""
        if len(self.groups) == 1:
            whole: Tensor = self.groups[0](q, k, v)
            return whole
        # of rank 3: GPU delegates slice nothing flatter
        q, k, v = (x.reshape(-1, self.heads, self.head_dim) for x in (q, k, v))
        heads = [slice(first, last) for first, last in pairwise(self.bounds)]
        groups = zip(self.groups, heads, strict=True)
        return torch.cat([group(q[:, at], k[:, at], v[:, at]) for group, at in groups], 1)


def _head_bounds(heads: int, tokens: int) -> tuple[int, ...]:
    """The first head of every group, and the number of heads."""
    at_once = max(_LEAST_HEADS, _SCORES_AT_ONCE // tokens**2)
    groups = max(1, heads // at_once)
    return tuple(round(group * heads / groups) for group in range(groups + 1))


class HeadGroup(nn.Module):
    """Some heads of an attention, from q, k and v to what they weigh."""

    def __init__(
        self, bias: AttentionBias, weigh: nn.Module, *, heads: int, head_dim: int, tokens: int
    ) -> None:
        super().__init__()
        self.bias, self.weigh = bias, weigh
        self.heads, self.head_dim, self.tokens = heads, head_dim, tokens

    def forward(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        """Map three tensors (W*N, h*d) or (W*N, h, d) to one (W*N, h*d)."""
        q, k, v = self._heads(q), self._heads(k), self._heads(v)  # (W*h, N, d)
        scores = self._biased(torch.bmm(q, k.transpose(1, 2)))  # (W*h, N, N)
        return self._rows(self.weigh(scores, v))

    def _heads(self, x: Tensor) -> Tensor:
        """Map (W*N, h*d) or (W*N, h, d) to (W*h, N, d). One window needs no axis for it."""
        if len(x) == self.tokens:
            return x.reshape(self.tokens, self.heads, self.head_dim).transpose(0, 1)
        x = x.reshape(-1, self.tokens, self.heads, self.head_dim).transpose(1, 2)
        return x.reshape(-1, self.tokens, self.head_dim)

    def _biased(self, scores: Tensor) -> Tensor:
        """Add the biases to (W*h, N, N)."""
        if len(scores) == self.heads:
            biased: Tensor = scores + self.bias()
            return biased
        windows: Tensor = scores.reshape(-1, self.heads, self.tokens, self.tokens) + self.bias()
        return windows.reshape(scores.shape)

    def _rows(self, x: Tensor) -> Tensor:
        """Map (W*h, N, d) to (W*N, h*d)."""
        if len(x) == self.heads:
            return x.transpose(0, 1).reshape(self.tokens, -1)
        x = x.reshape(-1, self.heads, self.tokens, self.head_dim).transpose(1, 2)
        return x.reshape(-1, self.heads * self.head_dim)


class AttentionBias(nn.Module):
    """Attention biases, one for every pair of tokens of a window, from what a file holds."""

    values: Tensor
    """(heads, N, N); where there is an index, (heads, offsets); where there are parts, a strip."""
    index: Tensor | None
    """(N * N,) int32: the offset of each pair."""

    def __init__(self, values: Tensor, index: Tensor | None = None, parts: int = 1) -> None:
        super().__init__()
        self.register_buffer("values", values)
        self.register_buffer("index", index)
        self.parts = parts

    def forward(self) -> Tensor:
        """Give (heads, N, N)."""
        return expand_biases(self.values, self.index, self.parts)

    def stripped(self) -> AttentionBias:
        """The same biases as a strip, where their window is large enough and nothing gathers."""
        if self.index is not None or self.parts > 1:
            return self
        parts = strip_parts(self.values.shape[-1])
        return AttentionBias(as_strip(self.values, parts), parts=parts)


def _bias(table: Tensor, index: Tensor, options: FormOptions) -> AttentionBias:
    if options.attention_bias == "gathered":
        return AttentionBias(table, index.flatten().int())
    return AttentionBias(table[:, index])


def expand_biases(values: Tensor, index: Tensor | None, parts: int) -> Tensor:
    """Give the biases (heads, N, N) of an `AttentionBias`'s values."""
    if index is not None:
        tokens = math.isqrt(len(index))
        return values.index_select(1, index).reshape(-1, tokens, tokens)
    if parts == 1:
        return values
    return torch.cat([values[:, :, columns] for columns in strip_columns(values, parts)], 1)


def as_strip(biases: Tensor, parts: int) -> Tensor:
    """The strip that holds every bias of windows whose rows are cut into equal parts.

    A bias depends on two tokens' distance. So a part's biases, against all tokens, are those of
    the part before it, moved to the right by the tokens of a part: they overlap, and all are
    windows on one strip, the last part's being the first N columns.

    Args:
        biases: (heads, N, N).
        parts: a divisor of the window's side.

    Returns:
        (heads, N / parts, (2 - 1 / parts) * N); the biases themselves where there is one part.
    """
    rows = biases.shape[-1] // parts
    return torch.cat([biases[:, -rows:, :-rows], biases[:, :rows]], 2) if parts > 1 else biases


def strip_columns(strip: Tensor, parts: int) -> tuple[slice, ...]:
    """Where each part's N columns are in a strip."""
    rows = strip.shape[1]
    firsts = (rows * (parts - 1 - part) for part in range(parts))
    return tuple(slice(first, first + rows * parts) for first in firsts)


def in_batches(items: list[T], most: int) -> list[list[T]]:
    """Cut a list into lists of a length at most, in order."""
    return [items[first : first + most] for first in range(0, len(items), most)]


def strip_parts(tokens: int) -> int:
    """Into how many parts to cut a window of N tokens for a strip.

    As many as divide its side and are few enough for a graph; 1, no strip, for small windows.
    """
    side = math.isqrt(tokens)
    parts = (parts for parts in range(_MOST_PARTS, 1, -1) if side % parts == 0)
    return next(parts, 1) if side >= _SMALLEST_SIDE else 1
