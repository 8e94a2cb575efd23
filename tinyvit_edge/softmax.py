"""softmax(scores) @ v, in the order of steps that a runtime is fastest at.

XNNPACK's softmax goes over its input three times, row by row, and rows of attention are short: at
windows of 7 a row has 49 scores, and the calls cost more than the arithmetic. The quotient is the
same if exponentials are summed beside the product with v, and the product is divided, which is
smaller. What softmax also does is to subtract each row's largest score, so that no exponential
overflows; that may be left out where the weights themselves say that no image's can.

This is for float32. float16 overflows at exp(11.1), and mobile GPU delegates compute in it.
"""

from __future__ import annotations

from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

__all__ = [
    "BoundedSoftmax",
    "NativeSoftmax",
    "SoftmaxKind",
    "choose_softmax",
    "score_bound",
]

SoftmaxKind = Literal["native", "bounded"]

_LARGEST = 72.0
"""float32's exponential overflows at 88.7 and loses digits below -87.3: room for a sum of
thousands, and for weights and tokens that are rounded to a few bits."""

_LONGEST_ROW = 196
"""Scores a row: of more, as at windows of 16, XNNPACK's own softmax is the faster."""


def choose_softmax(
    kind: SoftmaxKind, q: nn.Linear, k: nn.Linear, bias: Tensor, tokens: int
) -> nn.Module:
    """The module for one attention of `tokens` tokens; see `score_bound` for the rest."""
    short = tokens <= _LONGEST_ROW
    if kind == "bounded" and short and score_bound(q, k, bias) <= _LARGEST:
        return BoundedSoftmax(tokens)
    return NativeSoftmax()


class NativeSoftmax(nn.Module):
    """As the runtime's own operator."""

    def forward(self, scores: Tensor, v: Tensor) -> Tensor:
        """Map scores (W, N, N) and values (W, N, d) to (W, N, d)."""
        return torch.bmm(scores.softmax(-1), v)


class BoundedSoftmax(nn.Module):
    """Softmax of scores that float32's exponential can take as they are; see `score_bound`.

    The sums are products with a row of ones, which XNNPACK delegates.
    """

    ones: Tensor

    def __init__(self, tokens: int) -> None:
        super().__init__()
        self.register_buffer("ones", torch.ones(1, tokens))

    def forward(self, scores: Tensor, v: Tensor) -> Tensor:
        """Map scores (W, N, N) and values (W, N, d) to (W, N, d)."""
        exponentials = scores.exp()
        return torch.bmm(exponentials, v) / F.linear(exponentials, self.ones)


@torch.no_grad()
def score_bound(q: nn.Linear, k: nn.Linear, bias: Tensor) -> float:
    """The largest magnitude that attention's scores can have behind a LayerNorm.

    A token z behind LayerNorm, its scale and shift folded into q and k, has |z| <= sqrt(C) and
    mean 0. So |(Q z + a) . (K y + b)| is at most |Q'K| C + (|K'a| + |Q'b|) sqrt(C) + |a . b|,
    with spectral norms, of matrices that have the mean taken out of their rows.

    Args:
        q: (heads * d, C), with the scale folded in.
        k: (heads * d, C).
        bias: (heads, ...) attention biases.

    Returns:
        A bound on |score + bias| over all heads, tokens and images.
    """
    heads, channels = len(bias), q.in_features

    def per_head(linear: nn.Linear) -> tuple[Tensor, Tensor]:
        weight = linear.weight.double().reshape(heads, -1, channels)
        centred = weight - weight.mean(-1, keepdim=True)
        return centred, linear.bias.double().reshape(heads, -1, 1)

    (q_weight, q_bias), (k_weight, k_bias) = per_head(q), per_head(k)
    bilinear = torch.linalg.matrix_norm(q_weight.mT @ k_weight, ord=2) * channels
    linear = ((k_weight.mT @ q_bias).norm(dim=(1, 2)) + (q_weight.mT @ k_bias).norm(dim=(1, 2))) * (
        channels**0.5
    )
    constant = (q_bias * k_bias).sum((1, 2)).abs()
    offsets = bias.double().flatten(1).abs().amax(1)
    return float((bilinear + linear + constant + offsets).max())
