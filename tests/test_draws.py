"""Random draws that every platform and every numpy gives alike."""

from __future__ import annotations

import numpy as np
import pytest

from tinyvit_edge.distill.draws import Draws, permutation, sample_seed
from tinyvit_edge.distill.views import epoch_seeds, partners

# https://numpy.org/neps/nep-0019-rng-policy.html promises this stream for ever
PCG64_OF_SEED_0 = [11749869230777074271, 4976686463289251617, 755828109848996024]


def test_first_numbers_of_the_stream() -> None:
    """Oracle: the raw stream of PCG64 with seed 0, written down."""
    draws = Draws(0)
    assert [draws.integer(1 << 64) for _ in PCG64_OF_SEED_0] == PCG64_OF_SEED_0


@pytest.mark.parametrize("seed", [(0,), (7,), (2**31 - 1,), (5, 1), (0, 0, 1)])
def test_uniform_is_numpys_own(seed: tuple[int, ...]) -> None:
    """Oracle: `Generator.random` on the same bits, exactly."""
    draws = Draws(*seed)
    entropy = seed[0] if len(seed) == 1 else list(seed)
    expected = np.random.Generator(np.random.PCG64(entropy)).random(100)
    assert [draws.uniform() for _ in range(100)] == expected.tolist()


def test_uniform_stays_in_its_range() -> None:
    """Oracle: bounds, and the mean and variance of a uniform distribution."""
    draws = Draws(3)
    values = np.array([draws.uniform(-2, 4) for _ in range(20_000)])
    assert values.min() >= -2
    assert values.max() < 4
    assert values.mean() == pytest.approx(1, abs=0.05)
    assert values.var() == pytest.approx(3, rel=0.03)


@pytest.mark.parametrize("alpha", [0.2, 0.8, 1.0, 2.0])
def test_beta_has_the_moments_of_its_distribution(alpha: float) -> None:
    """Oracle: mean 1/2, variance 1 / (8 alpha + 4), and a median of 1/2."""
    draws = Draws(11)
    values = np.array([draws.beta(alpha) for _ in range(20_000)])
    assert ((values >= 0) & (values <= 1)).all()
    assert values.mean() == pytest.approx(0.5, abs=0.01)
    assert values.var() == pytest.approx(1 / (8 * alpha + 4), rel=0.04)
    assert (values < 0.5).mean() == pytest.approx(0.5, abs=0.015)


@pytest.mark.parametrize("probability", [0.0, 0.25, 1.0])
def test_chance_takes_one_draw_whatever_it_is(probability: float) -> None:
    """Oracle: the frequency, and a second stream that is as far along."""
    draws, other = Draws(5), Draws(5)
    share = np.mean([draws.chance(probability) for _ in range(4000)])
    for _ in range(4000):
        other.uniform()
    assert share == pytest.approx(probability, abs=0.02)
    assert draws.integer(1 << 64) == other.integer(1 << 64)


def test_integers_and_signs_are_even() -> None:
    """Oracle: each of 7 values and of 2 signs at its share."""
    draws = Draws(9)
    counts = np.bincount([draws.integer(7) for _ in range(14_000)], minlength=7)
    assert counts == pytest.approx(2000, rel=0.1)
    assert {draws.sign() for _ in range(100)} == {-1, 1}


@pytest.mark.parametrize("shape", [(1, 1, 3), (5, 7, 3), (0, 4, 3), (8,)])
def test_noise_is_the_little_endian_bytes_of_the_stream(shape: tuple[int, ...]) -> None:
    """Oracle: `int.to_bytes` on the raw numbers."""
    noise = Draws(4, 1).noise(*shape)
    bits, count = np.random.PCG64([4, 1]), int(np.prod(shape))
    stream = b"".join(int(bits.random_raw()).to_bytes(8, "little") for _ in range(count))
    assert (noise.dtype, noise.shape) == (np.uint8, shape)
    assert noise.tobytes() == stream[:count]


def test_sample_seeds_are_distinct_and_fit_an_int32() -> None:
    """Oracle: a set over samples, epochs and seeds; the range of int32."""
    seeds = [sample_seed(s, e, i) for s in (0, 1) for e in range(3) for i in range(1000)]
    assert len(set(seeds)) == len(seeds)
    assert min(seeds) >= 0
    assert max(seeds) < 2**31
    assert max(seeds) > 2**30  # no bit of the 31 is idle
    assert epoch_seeds(1000, 1, 2).tolist() == seeds[-1000:]


@pytest.mark.parametrize("count", [1, 2, 97, 1000])
def test_permutation_is_one_and_depends_on_every_seed(count: int) -> None:
    """Oracle: sorted, it is 0..count-1; other seeds give other orders."""
    orders = [permutation(count, *seed) for seed in ((0, 0), (0, 1), (1, 0), (0, 0, 1))]
    for order in orders:
        assert sorted(order.tolist()) == list(range(count))
    assert permutation(count, 0, 0).tolist() == orders[0].tolist()
    if count > 2:
        assert len({tuple(order.tolist()) for order in orders}) == len(orders)


@pytest.mark.parametrize("count", [1, 2, 7, 100])
def test_partners_pair_up(count: int) -> None:
    """Oracle: one's partner has one as its partner; at most one sample is alone."""
    pairing = partners(count, 3, 1)
    alone = sum(int(pairing[i]) == i for i in range(count))
    assert [int(pairing[pairing[i]]) for i in range(count)] == list(range(count))
    assert alone == count % 2
    if count == 100:
        assert pairing.tolist() != partners(count, 3, 2).tolist()
        assert pairing.tolist() != partners(count, 4, 1).tolist()
