"""A method in, a method out: ensembles, Monte-Carlo dropout, flips at test, impure training data.

A wrapper is a registered function of a builder, so that it may build several. It is named as
``name=value``, the way post-processing steps are, and put around any method:
``Detector("ae_dense", wrappers=["ensemble=3"])``, ``normscan fit ae_dense --wrappers [ensemble=3]``.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from functools import partial
from typing import TYPE_CHECKING, Any

from normscan.errors import ArgumentError, nearest

if TYPE_CHECKING:
    from normscan.methods.base import Method
    from normscan.registry import Card

Build = Callable[[], "Method"]
Wrapper = Callable[[Build, float], "Method"]
_WRAPPERS: dict[str, tuple[Wrapper, float]] = {}


def wrapper(name: str, default: float) -> Callable[[Wrapper], Wrapper]:
    """Register a function (builder of the method, value) to the wrapped method."""

    def decorate(function: Wrapper) -> Wrapper:
        _WRAPPERS[name] = (function, default)
        return function

    return decorate


def known() -> dict[str, tuple[Wrapper, float]]:
    """Return the wrappers by name with their default values."""
    from normscan.wrappers import ensemble, impure, stochastic  # noqa: F401  (they register)

    return _WRAPPERS


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
    found = known()
    if name not in found:
        raise ArgumentError(
            f"there is no wrapper '{name}'.{nearest(name, found)} Known: {', '.join(found)}."
        )
    function, default = found[name]
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
