"""What a search may change: choices and ranges of a method's arguments, as a user writes them."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from itertools import product
from typing import Any

import yaml

from normscan.errors import ArgumentError
from normscan.registry import SETTLED, Card

DECADE = 10.0  # a range that is so many times as high as low is searched by its logarithm


@dataclass(frozen=True)
class Choices:
    """One of some values, in their order."""

    values: tuple[Any, ...]


@dataclass(frozen=True)
class Range:
    """A number between two, both among them.

    Attributes:
        low: the lowest.
        high: the highest.
        whole: whole numbers alone.
    """

    low: float
    high: float
    whole: bool

    @property
    def log(self) -> bool:
        """Whether its logarithm is searched."""
        return self.low > 0 and self.high / self.low >= DECADE


Space = dict[str, Choices | Range]


def space_of(texts: Mapping[str, Any], card: Card, preset: str) -> Space:
    """Return the space of arguments.

    Args:
        texts: by the name of the argument ``16,32`` or a list for choices, ``1e-4..1e-2`` for a
            range, of whole numbers where both ends are.
        card: of the method.
        preset: whose defaults the arguments have.

    Raises:
        ArgumentError: no such argument, one that the cohort settles, or nothing to choose from.
    """
    if not texts:
        raise ArgumentError(
            "name what may change: --space width=16,32 --space lr=1e-4..1e-2 (choices or a range)."
        )
    card.arguments(preset, **texts)  # refuses what it doesn't know
    space: Space = {}
    for name, text in texts.items():
        if name in SETTLED:
            raise ArgumentError(f"space: '{name}' is what the cohort has; it isn't searched.")
        space[name] = _one(name, text)
    return space


def _one(name: str, text: Any) -> Choices | Range:
    if isinstance(text, str) and ".." in text:
        low, _, high = text.partition("..")
        try:
            ends = [float(low), float(high)]
        except ValueError as error:
            raise ArgumentError(f"space: {name}={text} has no numbers around '..'.") from error
        if not (math.isfinite(ends[0]) and math.isfinite(ends[1]) and ends[0] < ends[1]):
            raise ArgumentError(f"space: {name}={text}: the lower end comes first.")
        whole = all(part.strip().lstrip("-").isdecimal() for part in (low, high))
        return Range(ends[0], ends[1], whole)
    given = text if isinstance(text, list | tuple) else str(text).split(",")
    values = tuple(_value(v) for v in given)
    if len(set(map(repr, values))) < 2:
        raise ArgumentError(
            f"space: {name}={text} leaves nothing to choose. Name two values or more."
        )
    return Choices(values)


def _value(text: Any) -> Any:
    """Return a value as YAML reads it, and 1e-3 as the number that it is."""
    if not isinstance(text, str):
        return text
    value = yaml.safe_load(text)
    if isinstance(value, str):
        try:
            return float(value)
        except ValueError:
            return value
    return value


def combinations(space: Space) -> list[dict[str, Any]] | None:
    """Return all combinations in order, or None where a range has no end of them."""
    sets: list[tuple[Any, ...]] = []
    for one in space.values():
        if isinstance(one, Range):
            return None
        sets.append(one.values)
    return [dict(zip(space, values, strict=True)) for values in product(*sets)]
