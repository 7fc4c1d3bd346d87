"""Seeds, and the random numbers that torch's generator on the CPU would draw from them, by numpy alone.

An exported graph takes its random numbers as inputs; this draws the same ones without torch. The
engine is the Mersenne Twister in both; how its words become numbers is what torch documents in
``aten/src/ATen/core/DistributionsHelper.h`` and ``aten/src/ATen/native/cpu/DistributionTemplates.h``.
"""

from __future__ import annotations

import hashlib
import math

import numpy as np

_FILLED = 16  # so many normal numbers or more are drawn in blocks of this size


def derive_seed(*parts: object) -> int:
    """Return a 63-bit seed that depends on every part, the same on every machine."""
    digest = hashlib.sha256(repr(parts).encode()).digest()
    return int.from_bytes(digest[:8], "little") >> 1


class Stream:
    """What ``torch.Generator().manual_seed(seed)`` draws, call after call.

    Uniform numbers and integers are the same bits, normal ones the same up to the last bits of
    logarithm and cosine.
    """

    def __init__(self, seed: int) -> None:
        # Seeding by a whole number below 2**32 is the same in both; torch takes the lower half.
        engine = np.random.MT19937()
        engine._legacy_seeding(seed % 2**32)
        self._raw = engine.random_raw
        self._kept: float | None = None

    def uniform(self, shape: tuple[int, ...]) -> np.ndarray:
        """``torch.rand(shape)``: float32 in [0, 1)."""
        words = self._raw(math.prod(shape)) & np.uint64(2**24 - 1)
        return (words.astype(np.float32) * np.float32(2.0**-24)).reshape(shape)

    def integers(self, low: int, high: int, shape: tuple[int, ...]) -> np.ndarray:
        """``torch.randint(low, high, shape)`` of a range below 2**32."""
        words = self._raw(math.prod(shape)).astype(np.int64)
        return (words % (high - low) + low).reshape(shape)

    def normal(self, shape: tuple[int, ...]) -> np.ndarray:
        """``torch.randn(shape)``: float32."""
        count = math.prod(shape)
        if count < _FILLED:
            values = [self._one() for _ in range(count)]
            return np.array(values, np.float64).astype(np.float32).reshape(shape)
        drawn = self.uniform((count,))
        whole = count // _FILLED * _FILLED
        drawn[:whole] = _boxed(drawn[:whole])
        if whole < count:  # the last block is drawn anew, over the end of the one before it
            drawn[-_FILLED:] = _boxed(self.uniform((_FILLED,)))
        return drawn.reshape(shape)

    def _one(self) -> float:
        """One normal number in double precision; they come in pairs."""
        if self._kept is not None:
            kept, self._kept = self._kept, None
            return kept
        first, second = self._double(), self._double()
        radius = math.sqrt(-2.0 * math.log1p(-second))
        self._kept = radius * math.sin(2.0 * math.pi * first)
        return radius * math.cos(2.0 * math.pi * first)

    def _double(self) -> float:
        high, low = (int(word) for word in self._raw(2))
        return ((high << 32 | low) & (2**53 - 1)) * 2.0**-53


def _boxed(uniform: np.ndarray) -> np.ndarray:
    """The transform of Box and Muller on blocks of 16: the first eight with the last eight."""
    blocks = uniform.reshape(-1, 2, _FILLED // 2)
    radius = np.sqrt(np.float32(-2) * np.log(np.float32(1) - blocks[:, 0]))
    angle = np.float32(2 * np.pi) * blocks[:, 1]
    both = np.stack([radius * np.cos(angle), radius * np.sin(angle)], axis=1)
    return both.reshape(-1).astype(np.float32)
