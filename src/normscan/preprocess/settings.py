"""Preprocessing from plain values: presets filled in, every setting checked."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import fields
from typing import Any, get_type_hints

from normscan.errors import ArgumentError, nearest
from normscan.preprocess.pipeline import Preprocess
from normscan.preprocess.presets import preset


def expanded(settings: Mapping[str, Any]) -> dict[str, Any]:
    """Return settings with those of their ``preset`` filled in; what is given beside it wins.

    Raises:
        ArgumentError: no such preset.
    """
    name = settings.get("preset")
    complete = {f.name for f in fields(Preprocess)} <= set(settings)
    if name is None or complete:
        return dict(settings)
    return {**preset(str(name)), **settings}


def build_preprocess(settings: dict[str, Any]) -> Preprocess:
    """Return a preprocessing from plain values; a ``preset`` among them was expanded before.

    Raises:
        ArgumentError: unknown setting (names the nearest one), or a value of the wrong type.
    """
    known = [f.name for f in fields(Preprocess)]
    for name in settings:
        if name not in known:
            raise ArgumentError(
                f"preprocess has no setting '{name}'.{nearest(name, known)} It has: {', '.join(known)}."
            )
    return Preprocess(**{name: _checked(name, value) for name, value in settings.items()})


def _checked(name: str, value: Any) -> Any:
    """Return the value of a preprocessing setting, of the type that it is declared with."""
    from pydantic import TypeAdapter, ValidationError

    try:
        return TypeAdapter(get_type_hints(Preprocess)[name]).validate_python(value)
    except ValidationError as error:
        reason = error.errors()[0]["msg"]
        raise ArgumentError(f"preprocess.{name} is {value!r}: {reason}.") from error
