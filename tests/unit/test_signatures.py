"""Shared arguments in signatures and docstrings."""

from __future__ import annotations

import inspect
from typing import TypedDict, Unpack

import pytest

from normscan.signatures import Options, completed, described


class Pace(TypedDict):
    lr: float
    steps: int | None


pace = Options(
    {"lr": float, "steps": int | None},
    {"lr": 1e-3, "steps": None},
    {"lr": "learning rate.", "steps": "number of updates."},
)


def build(channels: int = 1, depth: int = 3, **training: Unpack[Pace]) -> dict:
    """Return what came in.

    Args:
        depth: number of levels,
            of all sorts.
    """
    return {"channels": channels, "depth": depth, **training}


def test_signature_and_docstring_list_the_shared_arguments():
    made = completed(build, pace(lr=0.5))
    parameters = inspect.signature(made).parameters
    assert {n: p.default for n, p in parameters.items()} == {
        "channels": 1, "depth": 3, "lr": 0.5, "steps": None,
    }  # fmt: skip
    assert parameters["steps"].annotation == int | None
    assert described(made) == {
        "channels": "of the image.",
        "depth": "number of levels, of all sorts.",
        "lr": "learning rate.",
        "steps": "number of updates.",
    }
    assert inspect.getdoc(made).startswith("Return what came in.")


def test_defaults_reach_the_function_and_can_be_changed():
    made = completed(build, pace(lr=0.5))
    assert made() == {"channels": 1, "depth": 3, "lr": 0.5, "steps": None}
    assert made(2, steps=7)["steps"] == 7 and made(2)["channels"] == 2


def test_two_groups_in_one():
    site = Options({"place": str, "lr": float}, {"place": "x", "lr": 9.0}, {"place": "where."})
    made = completed(build, site | pace(lr=0.5))
    assert made() == {"channels": 1, "depth": 3, "place": "x", "lr": 0.5, "steps": None}
    assert list(described(made)) == ["channels", "depth", "place", "lr", "steps"]


def test_own_descriptions_win():
    def other(channels: int = 1, **training: Unpack[Pace]) -> None:
        """Do.

        Args:
            channels: one alone.
            lr: of AdamW.
        """

    assert described(completed(other, pace))["lr"] == "of AdamW."
    assert described(completed(other, pace))["channels"] == "one alone."


def test_what_is_unknown_or_not_described_is_refused():
    with pytest.raises(TypeError, match=r"no argument \['rate'\]"):
        completed(build, pace)(rate=1)
    with pytest.raises(ValueError, match="rate"):
        pace(rate=1)
    with pytest.raises(ValueError, match="come together"):
        completed(build, None)

    def silent(knob: int = 1) -> None:
        """Do."""

    with pytest.raises(ValueError, match="nothing describes the argument knob"):
        completed(silent, None)
