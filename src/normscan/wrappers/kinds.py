"""What a wrapper is: a registered function of a builder."""

from __future__ import annotations

from collections.abc import Callable

from normscan.errors import ArgumentError
from normscan.methods.base import Method

Build = Callable[[], Method]
Wrapper = Callable[[Build, float], Method]
WRAPPERS: dict[str, tuple[Wrapper, float]] = {}


def wrapper(name: str, default: float) -> Callable[[Wrapper], Wrapper]:
    """Register a function (builder of the method, value) to the wrapped method."""

    def decorate(function: Wrapper) -> Wrapper:
        WRAPPERS[name] = (function, default)
        return function

    return decorate


def whole(name: str, value: float, least: int) -> int:
    """Return the value of a wrapper that counts something.

    Raises:
        ArgumentError: it is no whole number, or too small.
    """
    if value != int(value) or value < least:
        raise ArgumentError(f"wrapper '{name}={value:g}': a whole number from {least} is needed.")
    return int(value)
