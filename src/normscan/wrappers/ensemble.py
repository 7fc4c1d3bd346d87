"""Several copies of a method, each with initial weights and batches of its own."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace
from typing import Any

from torch import Tensor, nn

from normscan.methods.base import Batch, Batches, Maps, Method, Phase
from normscan.methods.wrapped import averaged
from normscan.rng import Rng, derive_seed
from normscan.wrappers.kinds import Build, whole, wrapper


class Ensemble(Method):
    """Deep ensemble (Lakshminarayanan et al., NeurIPS 2017): the mean of independent copies.

    Copy after copy is trained, in phases named ``1/reconstruct``, ``2/reconstruct`` and so on. Maps,
    scores and restorations are averaged. The uncertainty is the unbiased variance of the maps over
    the copies; what the method itself says of its uncertainty is replaced by it.

    Args:
        members: the copies, with initial weights of their own.
    """

    uncertain = True

    def __init__(self, members: Iterable[Method]) -> None:
        super().__init__()
        self.members = nn.ModuleList(members)
        self.needs_grad = any(m.needs_grad for m in self)
        first = next(iter(self))
        self.context, self.uses = first.context, first.uses

    def __iter__(self) -> Iterator[Method]:
        for member in self.members:
            assert isinstance(member, Method)
            yield member

    def phases(self) -> list[Phase]:
        return [
            replace(phase, name=f"{i}/{phase.name}")
            for i, member in enumerate(self, start=1)
            for phase in member.phases()
        ]

    def loss(self, batch: Batch, phase: str, player: str) -> dict[str, Tensor]:
        number, _, name = phase.partition("/")
        return list(self)[int(number) - 1].loss(batch, name, player)

    @property
    def fits(self) -> bool:
        return any(m.fits for m in self)

    def fit(self, batches: Iterable[Batch]) -> None:
        batches = list(batches) if isinstance(batches, Iterator) else batches

        def anew(number: int) -> Iterator[Batch]:
            # The same samples for each copy, other random numbers.
            for batch in batches:
                drawn = int(batch.rng.integers(0, 2**62, (len(batch),))[0])
                yield replace(batch, rng=Rng(derive_seed(drawn, number)))

        for i, member in enumerate(self):
            member.fit(Batches(lambda i=i: anew(i)))  # type: ignore[misc]

    def maps(self, batch: Batch) -> Maps:
        maps, variance = averaged(member.maps(batch) for member in self)
        return replace(maps, uncertainty=variance)

    def found(self, scans: Sequence[str], subjects: Sequence[int]) -> dict[str, Any]:
        each = {str(i): m.found(scans, subjects) for i, m in enumerate(self, start=1)}
        return {"members": each} if any(each.values()) else {}


@wrapper("ensemble", 5)
def ensemble(build: Build, value: float) -> Method:
    """So many copies."""
    return Ensemble([build() for _ in range(whole("ensemble", value, 2))])
