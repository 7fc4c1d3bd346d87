"""Wrappers of prediction: Monte-Carlo dropout, mirrored copies, division by the uncertainty."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import Any, TypeVar

from torch import Tensor

from normscan.errors import ArgumentError
from normscan.methods.base import Batch, Maps, Method
from normscan.methods.monte_carlo import dropout_layers, monte_carlo_dropout
from normscan.methods.wrapped import Wrapped, averaged
from normscan.wrappers.kinds import Build, whole, wrapper

Record = TypeVar("Record", Batch, Maps)


class MonteCarlo(Wrapped):
    """The mean of passes with dropout on (Gal and Ghahramani, ICML 2016).

    The uncertainty is the unbiased variance of the maps over the passes; what the method itself says
    of its uncertainty is replaced by it. Batch normalisation stays in evaluation mode.

    Args:
        inner: a method with dropout layers.
        passes: at prediction, 2 or more.

    Raises:
        ArgumentError: the method has no dropout layer.
    """

    def __init__(self, inner: Method, passes: int) -> None:
        super().__init__(inner)
        if not dropout_layers(inner):
            raise ArgumentError(
                "wrapper 'monte_carlo': this method has no dropout layer with a rate above 0, so "
                "that all passes would be the same. Give it dropout, or use 'ensemble'."
            )
        self.passes = passes
        self.uncertain = True

    def maps(self, batch: Batch) -> Maps:
        with monte_carlo_dropout(self.inner, batch.rng):
            maps, variance = averaged(self.inner.maps(batch) for _ in range(self.passes))
        return replace(maps, uncertainty=variance)


class Flips(Wrapped):
    """The mean over the image and its mirror images, flipped back.

    Args:
        inner: any method.
        axes: spatial axes along which to mirror, counted from 1; all combinations are averaged.

    Raises:
        ArgumentError: an axis that the image doesn't have, as soon as one comes.
    """

    def __init__(self, inner: Method, axes: tuple[int, ...]) -> None:
        super().__init__(inner)
        self.axes = axes

    def loss(self, batch: Batch, phase: str, player: str) -> dict[str, Tensor]:
        self._check(batch)
        return super().loss(batch, phase, player)

    def maps(self, batch: Batch) -> Maps:
        self._check(batch)
        return averaged(self._mirrored(batch))[0]

    def _check(self, batch: Batch) -> None:
        dims = batch.image.ndim - 2
        if max(self.axes) > dims:
            raise ArgumentError(
                f"wrapper 'flips': there is no axis {max(self.axes)}, the method works on {dims}."
            )

    def _mirrored(self, batch: Batch) -> Iterator[Maps]:
        dims = batch.image.ndim - 2
        for n in range(len(self.axes) + 1):
            for axes in itertools.combinations(self.axes, n):
                maps = self.inner.maps(_flipped(batch, axes, dims))
                yield _flipped(maps, axes, dims)


def _flipped(record: Record, axes: Sequence[int], dims: int) -> Record:
    """Mirror every image of a batch or of maps along spatial axes, counted from 1."""
    places = [axis - 1 - dims for axis in axes]
    images: dict[str, Any] = {
        name: value.flip(places)
        for name, value in vars(record).items()
        if isinstance(value, Tensor) and value.ndim >= dims + 2
    }
    return replace(record, **images)


class Normalised(Wrapped):
    """The map divided by the standard deviation that its uncertainty says.

    Args:
        inner: a method with an uncertainty.
        floor: least deviation, in the unit of the map.

    Raises:
        ArgumentError: the method has no uncertainty.
    """

    def __init__(self, inner: Method, floor: float) -> None:
        super().__init__(inner)
        if not self.uncertain:
            raise ArgumentError(
                "wrapper 'normalised': this method has no uncertainty. Put 'ensemble' or "
                "'monte_carlo' before it."
            )
        if floor <= 0:
            raise ArgumentError(f"wrapper 'normalised={floor:g}': it must be above 0.")
        self.floor = floor

    def maps(self, batch: Batch) -> Maps:
        maps = self.inner.maps(batch)
        if maps.map is None or maps.uncertainty is None:
            return maps
        return replace(maps, map=maps.map / maps.uncertainty.sqrt().clamp_min(self.floor))


@wrapper("monte_carlo", 20)
def monte_carlo(build: Build, value: float) -> Method:
    """So many passes with dropout."""
    return MonteCarlo(build(), whole("monte_carlo", value, 2))


@wrapper("flips", 1)
def flips(build: Build, value: float) -> Method:
    """Mirror along these axes: 1 the first, 2 the second, 12 both."""
    digits = str(whole("flips", value, 1))
    if not set(digits) <= set("123") or len(set(digits)) < len(digits):
        raise ArgumentError(f"wrapper 'flips={digits}': name axes by the digits 1 to 3, each once.")
    return Flips(build(), tuple(int(d) for d in digits))


@wrapper("normalised", 0.01)
def normalised(build: Build, value: float) -> Method:
    """Divide by the deviation, at least this one."""
    return Normalised(build(), value)
