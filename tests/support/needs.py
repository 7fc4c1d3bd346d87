"""The toy cohort that a method needs, read off its card: what stands beside scans, a second domain.

A new method of any regime gets its cohort, and with it the contract tests, from here.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch
from torch import Tensor

from normscan.cohort import Cohort
from normscan.methods.base import Batch, Method
from normscan.registry import Card
from normscan.rng import Rng
from tests.toy import write_toy_auxiliary, write_toy_cohort


@dataclass(frozen=True)
class Needs:
    """What a cohort must have for a method.

    Attributes:
        beside: companions of its scans.
        auxiliary: a second cohort.
        volumes: slices with neighbours.
        parts: parts of the cohort beside the healthy scans.
        phases: of training; none for a method that learns in closed form, or not at all.
    """

    beside: frozenset[str]
    auxiliary: bool
    volumes: bool
    parts: frozenset[str]
    phases: int

    @property
    def some(self) -> bool:
        """Whether a cohort of healthy scans alone lacks something."""
        return bool(self.beside or self.auxiliary or self.parts)


_KNOWN: dict[str, Needs] = {}


@contextlib.contextmanager
def undrawn() -> Iterator[None]:
    """Without random weights, where only the parts of a method count: they take longer than all else."""
    with pytest.MonkeyPatch.context() as patch:
        for name in ("uniform_", "normal_"):
            patch.setattr(Tensor, name, lambda self, *_, **__: self.zero_())
        yield


def needs(card: Card) -> Needs:
    """Return what a cohort must have for the tiny preset of a method."""
    if card.id not in _KNOWN:
        with undrawn():
            method: Method = card.create(**{**card.arguments("tiny"), "dims": card.dims[0]})
            phases = method.phases()
        drawn = {part for phase in phases for part in phase.part.split("+")} | {*method.fits_on}
        # What a method for no training scans uses, it uses at prediction.
        own = set() if card.regime == "zero-shot" else {"healthy", *drawn} - {"auxiliary"}
        uses = method.uses.items()
        beside = {n for n, use in uses if use.at_prediction or own & set(use.parts)}
        others = drawn - {"healthy", "val", "auxiliary"}
        _KNOWN[card.id] = Needs(
            frozenset(beside), "auxiliary" in drawn, method.context > 0, frozenset(others),
            len(phases),
        )  # fmt: skip
    return _KNOWN[card.id]


class Toys:
    """Toy cohorts by what they have, written once each.

    Args:
        folder: makes a new folder of a name.
        plain: makes the table of a cohort without anything beside its scans.
    """

    def __init__(self, folder: Callable[[str], Path], plain: Callable[[int, int], Path]) -> None:
        self.folder, self.plain = folder, plain
        self.made: dict[tuple[str, int, int], Path] = {}

    def _table(self, kind: str, dims: int, channels: int) -> Path:
        at = (kind, dims, channels)
        if at not in self.made:
            folder = self.folder(f"{kind}{dims}d{channels}c")
            self.made[at] = (
                write_toy_auxiliary(folder, dims, channels)
                if kind == "auxiliary"
                else write_toy_cohort(folder, dims, channels, **{kind: True})
            )
        return self.made[at]

    def __call__(self, card: Card, dims: int = 2, channels: int = 1) -> Cohort:
        """Return a cohort that has all that the method needs, and nothing that it refuses."""
        wanted = needs(card)
        dims = 3 if wanted.volumes else dims
        kind = "further" if "further" in wanted.beside else "beside"
        table = self._table(kind, dims, channels) if wanted.beside else self.plain(dims, channels)
        cohort = Cohort.read(table)
        if wanted.auxiliary:
            cohort = cohort.with_auxiliary(self._table("auxiliary", dims, channels))
        return cohort


def batch_for(
    method: Method, n: int, channels: int, shape: tuple[int, ...], seed: int, training: bool
) -> Batch:
    """Random images with all that a method may look at beside them, in training or at prediction."""
    generator = torch.Generator().manual_seed(seed)
    image = torch.rand(n, channels, *shape, generator=generator)
    batch = Batch(
        image, torch.ones(n, 1, *shape, dtype=torch.bool), Rng([seed + i for i in range(n)]),
        torch.full((n,), 0.5),
    )  # fmt: skip
    if method.context:
        around = torch.rand(n, channels, 2 * method.context + 1, *shape, generator=generator)
        around[:, :, method.context] = image
        batch.context = around
    seen = {name for name, use in method.uses.items() if training or use.at_prediction}
    if "target" in seen:
        batch.target = torch.rand(n, 1, *shape, generator=generator)
    if "structures" in seen:
        batch.structures = torch.randint(0, 3, (n, 1, *shape), generator=generator)
    if "further" in seen:
        batch.further = {
            name: torch.rand(n, 1, *shape, generator=generator) for name in method.names
        }
    parts = {part for phase in method.phases() for part in phase.part.split("+")}
    parts |= {*method.fits_on}
    batch.subject = torch.arange(n) if training else None
    if training and parts - {"healthy"}:
        batch.label = batch.part = torch.arange(n) % 2
    if training and "anomalous" in parts:
        spots = torch.rand(n, 1, *shape, generator=generator) < 0.1
        batch.lesion = spots & (torch.arange(n) % 2 == 1).reshape(-1, *[1] * (len(shape) + 1))
    return batch


def row_of(batch: Batch, i: int, rng: Rng) -> Batch:
    """A sample of a batch by itself."""
    tensors = {k: v[i : i + 1] for k, v in vars(batch).items() if isinstance(v, torch.Tensor)}
    further = {name: image[i : i + 1] for name, image in batch.further.items()}
    return Batch(**{**tensors, "rng": rng, "further": further})
