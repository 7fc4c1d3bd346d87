"""A method around a method: passing everything on, and averaging results."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import torch
from torch import Tensor

from normscan.methods.base import Batch, Maps, Method, Phase


class Wrapped(Method):
    """A method around another one, which does everything that a subclass doesn't change.

    Attributes:
        uncertain: whether maps come with an uncertainty.
    """

    def __init__(self, inner: Method) -> None:
        super().__init__()
        self.inner = inner
        self.needs_grad = inner.needs_grad
        self.context, self.uses = inner.context, inner.uses
        self.uncertain: bool = getattr(inner, "uncertain", False)

    def phases(self) -> list[Phase]:
        return self.inner.phases()

    def loss(self, batch: Batch, phase: str, player: str) -> dict[str, Tensor]:
        return self.inner.loss(batch, phase, player)

    def fit(self, batches: Iterable[Batch]) -> None:
        self.inner.fit(batches)

    def need(self, samples: int) -> str:
        return self.inner.need(samples)

    @property
    def fits(self) -> bool:
        return self.inner.fits

    def maps(self, batch: Batch) -> Maps:
        return self.inner.maps(batch)

    def learnt(self) -> dict[str, Any]:
        return self.inner.learnt()

    def found(self, scans: Sequence[str], subjects: Sequence[int]) -> dict[str, Any]:
        return self.inner.found(scans, subjects)


def averaged(draws: Iterable[Maps]) -> tuple[Maps, Tensor | None]:
    """Mean of everything that several draws return, and how far their maps lie apart.

    Args:
        draws: at least one; none is kept, so there may be many.

    Returns:
        The means, and the unbiased variance of the maps, (B, 1, *spatial), 0 for a single draw;
        None where there are no maps.
    """
    means: dict[str, Tensor] = {}
    spread: Tensor | None = None
    n = 0
    further: dict[str, Tensor] = {}
    for n, maps in enumerate(draws, start=1):
        for name, image in maps.further.items():
            before = further.get(name, torch.zeros_like(image))
            further[name] = before + (image - before) / n
        for name, value in vars(maps).items():
            if not isinstance(value, Tensor):
                continue
            before = means.get(name, torch.zeros_like(value))
            step = value - before
            means[name] = before + step / n
            if name == "map":  # Welford 1962
                spread = (0 if spread is None else spread) + step * (value - means[name])
    return Maps(**means, further=further), None if spread is None else spread / max(1, n - 1)
