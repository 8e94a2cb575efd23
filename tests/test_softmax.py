"""Softmax in the order of steps that a runtime is fastest at."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from tinyvit_edge.attention import HeadGroup
from tinyvit_edge.deployment import FormOptions, deployment_form
from tinyvit_edge.exporters._executorch_form import HalfCompute
from tinyvit_edge.modeling import TinyVitForImageClassification
from tinyvit_edge.softmax import BoundedSoftmax, NativeSoftmax, choose_softmax, score_bound

HEADS, HEAD_DIM, CHANNELS, TOKENS = 2, 8, 24, 9

Sqnr = Callable[[Tensor, Tensor], float]


def layers(size: float) -> tuple[nn.Linear, nn.Linear, Tensor]:
    """q, k and biases whose scores grow with `size` squared."""
    torch.manual_seed(0)
    made = [nn.Linear(CHANNELS, HEADS * HEAD_DIM) for _ in range(2)]
    with torch.no_grad():
        for layer in made:
            layer.weight.normal_(0, size)
            layer.bias.normal_(0, size)
    return made[0], made[1], torch.randn(HEADS, TOKENS, TOKENS)


def scores_of(q: nn.Linear, k: nn.Linear, z: Tensor, y: Tensor, head: int) -> Tensor:
    """Scores of one head for pairs of tokens (n, C) and (n, C)."""
    rows = slice(head * HEAD_DIM, (head + 1) * HEAD_DIM)
    return (q(z)[:, rows] * k(y)[:, rows]).sum(-1)


def standard(x: Tensor) -> Tensor:
    return nn.functional.layer_norm(x, x.shape[-1:], eps=0.0)


def test_no_token_exceeds_the_bound_and_the_worst_comes_near() -> None:
    """Oracle: scores of random tokens behind LayerNorm, and of tokens found by ascent."""
    q, k, bias = layers(0.4)
    bound = score_bound(q, k, bias) - float(bias.abs().max())
    pairs = torch.randn(2, 256, CHANNELS, requires_grad=True)
    ascent = torch.optim.Adam([pairs], lr=0.1)
    largest = 0.0
    for _ in range(200):
        z, y = standard(pairs[0]), standard(pairs[1])
        scores = torch.stack([scores_of(q, k, z, y, head) for head in range(HEADS)])
        largest = max(largest, float(scores.abs().max()))
        ascent.zero_grad()
        (-scores.abs().sum()).backward()
        ascent.step()
    assert 0.8 * bound <= largest <= bound


def test_biases_count_towards_the_bound() -> None:
    """Oracle: the bound without them, plus the largest."""
    q, k, bias = layers(0.4)
    assert score_bound(q, k, bias * 0 + 5) == pytest.approx(score_bound(q, k, bias * 0) + 5)


@pytest.mark.parametrize(("size", "kind"), [(0.1, BoundedSoftmax), (2.0, NativeSoftmax)])
def test_only_proven_scores_go_without_a_shift(size: float, kind: type[nn.Module]) -> None:
    """Oracle: weights whose scores are small, and weights whose scores overflow."""
    q, k, bias = layers(size)
    assert isinstance(choose_softmax("bounded", q, k, bias, TOKENS), kind)
    assert isinstance(choose_softmax("native", q, k, bias, TOKENS), NativeSoftmax)


@pytest.mark.parametrize("level", [-70.0, 0.0, 70.0])
def test_bounded_softmax_equals_softmax_up_to_the_bound(level: float, sqnr_db: Sqnr) -> None:
    """Oracle: PyTorch's softmax in float64, at both ends of what is let through."""
    generator = torch.Generator().manual_seed(0)
    scores = level + torch.randn(4, TOKENS, TOKENS, generator=generator)
    v = torch.randn(4, TOKENS, HEAD_DIM, generator=generator)
    expected = torch.bmm(scores.double().softmax(-1), v.double())
    assert sqnr_db(expected, BoundedSoftmax(TOKENS)(scores, v).double()) >= 110


def test_float16_arithmetic_keeps_the_shift(small_model: TinyVitForImageClassification) -> None:
    """Oracle: float16's exponential, which overflows at 11.1: no bounded softmax is left."""
    form = deployment_form(small_model, options=FormOptions(softmax="bounded"))
    groups = [module for module in form.modules() if isinstance(module, HeadGroup)]
    assert any(isinstance(group.weigh, BoundedSoftmax) for group in groups)
    half: Any = HalfCompute(form)
    assert not any(isinstance(module, BoundedSoftmax) for module in half.modules())
