"""How far an argument of a method may reach: by the kind of argument that its name and type say it is.

What is asked for and what a stored detector says are held against the same bounds, so that nothing is
trained that can't be loaded, and no file makes a prediction take years.
"""

from __future__ import annotations

import inspect
import re
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, get_args

from normscan.errors import ArgumentError

if TYPE_CHECKING:
    from normscan.registry import Card

_COUNTED = re.compile(
    r"(^|_)(batch|size|width|resolution|heads|blocks|layers|stride|kernel|window|shots|timesteps)$"
)
_RATE = re.compile(r"(^|_)(lr|learning_rate|weight_decay)(_|$)")
_LENGTH = ("steps", "epochs", "patience")  # of the training, which whoever asks for it waits for

LARGEST = 2**16  # of any whole number
TIMES = 100  # a whole number may be so many times the largest of the method's presets
LONGEST = 10**9  # of a training
LAST_SEED = 2**63 - 1


def check_ranges(card: Card, values: Mapping[str, Any]) -> None:
    """Refuse numbers beyond what arguments of their kind can be.

    Whole numbers are 0 or more, sizes and the like 1 or more, unless one of the method's presets has
    less; they are at most ``LARGEST`` or ``TIMES`` what a preset has. Learning rates are finite.

    Args:
        card: of the method.
        values: its arguments; what is no number isn't looked at.

    Raises:
        ArgumentError: names the argument, its value and what it may be.
    """
    known = inspect.signature(card.build).parameters
    presets = [card.arguments(preset) for preset in card.presets]
    for name, value in values.items():
        if not _number(value) or name not in known:
            continue
        usual = [preset[name] for preset in presets if _number(preset[name])]
        kind = known[name].annotation
        if _RATE.search(name):
            if not 0 <= value < float("inf"):
                what = "weight decay" if name.endswith("decay") else "learning rate"
                raise ArgumentError(f"{name} is {value}; a {what} is 0 or more.")
        elif kind is int or int in get_args(kind):
            least = min([int(bool(_COUNTED.search(name))), *usual])
            most = LONGEST if name in _LENGTH else max([LARGEST, *(TIMES * u for u in usual)])
            if value < least:
                raise ArgumentError(f"{name} is {value}; it must be {least} or more.")
            if value > most:
                raise ArgumentError(f"{name} is {value}; it must be {most} or less.")


def check_seed(seed: int) -> None:
    """Refuse a seed that no generator takes as it is.

    Raises:
        ArgumentError: it is negative or too large.
    """
    if not 0 <= seed <= LAST_SEED:
        raise ArgumentError(f"seed is {seed}; it must lie in 0..{LAST_SEED}.")


def _number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)
