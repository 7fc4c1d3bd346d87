"""Randomness without global state."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Sequence

import torch
from torch import Tensor

from normscan.seeds import derive_seed as derive_seed


@contextlib.contextmanager
def seeded(seed: int) -> Iterator[None]:
    """Run a block under a seed of its own and put the global random state back after it.

    Dropout and weight initialisation read torch's global state and take no generator.
    """
    devices = list(range(torch.cuda.device_count())) if torch.cuda.is_initialized() else []
    with torch.random.fork_rng(devices=devices):
        torch.manual_seed(seed % 2**63)
        yield


class Rng:
    """Random numbers for a batch, drawn on the CPU so that every device sees the same ones.

    In prediction each sample has a generator of its own, so that its result doesn't depend on its
    batch mates; in training one generator serves the whole batch.

    Args:
        seeds: one seed for the batch, or one for each sample.
    """

    def __init__(self, seeds: int | Sequence[int]) -> None:
        self.shared = not isinstance(seeds, Sequence)
        numbers = seeds if isinstance(seeds, Sequence) else [seeds]
        self.generators = [torch.Generator().manual_seed(int(n)) for n in numbers]

    def _draw(self, draw: Callable[..., Tensor], shape: Sequence[int]) -> Tensor:
        if self.shared:
            return draw(tuple(shape), generator=self.generators[0])
        if shape[0] != len(self.generators):
            raise ValueError(f"{shape[0]} samples asked of {len(self.generators)} generators")
        rest = tuple(shape[1:])
        return torch.stack([draw(rest, generator=g) for g in self.generators])

    def normal(self, shape: Sequence[int]) -> Tensor:
        """Standard normal numbers; the first axis of ``shape`` is the batch."""
        return self._draw(torch.randn, shape)

    def uniform(self, shape: Sequence[int]) -> Tensor:
        """Uniform numbers in [0, 1); the first axis of ``shape`` is the batch."""
        return self._draw(torch.rand, shape)

    def integers(self, low: int, high: int, shape: Sequence[int]) -> Tensor:
        """Uniform integers in [low, high); the first axis of ``shape`` is the batch."""
        return self._draw(
            lambda s, generator: torch.randint(low, high, s, generator=generator), shape
        )
