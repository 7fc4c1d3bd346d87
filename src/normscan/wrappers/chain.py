"""Wrappers named in settings: checked, and put around a method in order."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from functools import partial
from typing import Any

from normscan.errors import ArgumentError, nearest
from normscan.methods.base import Method
from normscan.registry import Card
from normscan.wrappers import ensemble, impure, stochastic  # noqa: F401  (they register)
from normscan.wrappers.kinds import WRAPPERS, Build, Wrapper


def check_wrappers(chain: Iterable[str]) -> tuple[str, ...]:
    """Return the names and values as they were given.

    Raises:
        ArgumentError: unknown wrapper or a value that is no number.
    """
    chain = tuple(chain)
    for text in chain:
        _parsed(text)
    return chain


def _parsed(text: str) -> tuple[Wrapper, float]:
    name, _, value = text.partition("=")
    if name not in WRAPPERS:
        raise ArgumentError(
            f"there is no wrapper '{name}'.{nearest(name, WRAPPERS)} Known: {', '.join(WRAPPERS)}."
        )
    function, default = WRAPPERS[name]
    try:
        return function, float(value) if value else default
    except ValueError:
        raise ArgumentError(f"wrapper '{text}': '{value}' is no number.") from None


def wrap(card: Card, arguments: Mapping[str, Any], chain: Iterable[str] = ()) -> Method:
    """Build a method and put wrappers around it, the first one innermost."""
    build: Build = partial(card.create, **arguments)
    for text in chain:
        function, value = _parsed(text)
        build = partial(function, build, value)
    method = build()
    method.card = card
    return method
