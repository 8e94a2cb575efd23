"""Random draws that are the same on every platform and with every release of numpy.

numpy promises the bit stream of `PCG64` and `SeedSequence`, not the methods of `Generator`
(NEP 19), so the bits are turned into numbers here.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

__all__ = ["Draws", "permutation", "sample_seed"]


class Draws:
    """A stream of draws from one seed.

    Args:
        seed: any integer >= 0, or several.
    """

    def __init__(self, *seed: int) -> None:
        self._bits = np.random.PCG64(seed[0] if len(seed) == 1 else list(seed))

    def uniform(self, low: float = 0.0, high: float = 1.0) -> float:
        """A float64 in [low, high)."""
        return low + (high - low) * (int(self._bits.random_raw()) >> 11) * 2.0**-53

    def integer(self, count: int) -> int:
        """An integer in 0..count-1; the bias of the modulus is below count / 2**64."""
        return int(self._bits.random_raw()) % count

    def chance(self, probability: float) -> bool:
        """True with this probability; always takes one draw."""
        return self.uniform() < probability

    def sign(self) -> int:
        """1 or -1."""
        return 1 if self.integer(2) else -1

    def beta(self, alpha: float) -> float:
        """A draw of Beta(alpha, alpha), by Johnk's method (1964)."""
        if alpha == 1.0:
            return self.uniform()
        while True:
            x, y = self.uniform() ** (1 / alpha), self.uniform() ** (1 / alpha)
            if 0 < x + y <= 1:
                return float(x / (x + y))

    def noise(self, *shape: int) -> npt.NDArray[np.uint8]:
        """Independent uniform bytes."""
        count = int(np.prod(shape))
        raw = self._bits.random_raw(-(-count // 8)).astype("<u8")
        return raw.view(np.uint8)[:count].reshape(shape)


def sample_seed(seed: int, epoch: int, index: int) -> int:
    """The augmentation seed of one sample in one epoch: 31 bits, so that an int32 holds it."""
    state = np.random.SeedSequence((seed, epoch, index)).generate_state(1, np.uint32)
    return int(state[0]) & 0x7FFFFFFF


def permutation(count: int, *seed: int) -> npt.NDArray[np.int64]:
    """A permutation of 0..count-1: the order of as many draws, ties by index."""
    return np.argsort(np.random.PCG64(list(seed)).random_raw(count), kind="stable")
