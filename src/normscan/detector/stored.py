"""A stored detector is data: every value is checked against its bounds before anything is built.

Nothing of ``detector.json`` is trusted, and the hash of the weights beside it proves only that both
belong together. What passes here still costs memory and time to build; ``normscan.detector.allowance``
bounds both by what the weights file holds.
"""

from __future__ import annotations

import inspect
import math
import warnings
from collections.abc import Mapping
from typing import TYPE_CHECKING, Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, TypeAdapter, ValidationError, field_validator

from normscan.detector.ranges import LAST_SEED, check_ranges
from normscan.errors import ArgumentError
from normscan.io.values import plain, tupled
from normscan.version import __version__

if TYPE_CHECKING:
    from normscan.registry import Card

MOST = 2**53  # of any whole number: what JSON carries exactly
LONGEST = 10_000  # characters of a text
DEEPEST = 32  # lists in lists

Name = Annotated[str, Field(min_length=1, max_length=1000)]
Short = Annotated[str, Field(max_length=LONGEST)]
Rate = Annotated[float, Field(gt=0, lt=1)]
Hash = Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]
Count = Annotated[int, Field(ge=0, le=MOST)]
Counts = dict[Name, Count]
Records = list[dict[str, Any]]
Steps = Annotated[list[Name], Field(max_length=32)]


class _Strict(BaseModel):
    model_config = ConfigDict(strict=True, allow_inf_nan=False, extra="allow")


class _Calibration(_Strict):
    model_config = ConfigDict(extra="forbid")
    kind: Literal["auto", "split", "cross"]
    folds: Annotated[int, Field(ge=2, le=1000)] = 5
    refit: bool = False
    trim: Annotated[int, Field(ge=0, le=10**6)] = 0


class _Configuration(_Strict):
    method: Name
    preset: Name
    arguments: dict[Name, Any]
    preprocess: dict[Name, Any]
    postprocess: Steps
    reduction: Name
    fpr: Rate
    pixel_fpr: Rate
    patch: Annotated[int, Field(ge=1, le=4096)] | None
    seed: Annotated[int, Field(ge=0, le=LAST_SEED)]
    wrappers: Annotated[list[Name], Field(max_length=8)] = []
    calibration: _Calibration | None = None
    false_components: Annotated[float, Field(ge=0)] | None = None
    replaces: bool = False


class _Named(_Strict):
    """A scan that was left out, or can't be scored, and why."""

    scan: Short
    reason: Short


class _Joined(_Strict):
    scans: Count
    subjects: Count


class _Pixels(_Strict):
    """Scores of the map, rising, and the share of healthy pixels above each."""

    shares: Annotated[list[Annotated[list[float], Field(min_length=2, max_length=2)]],
                      Field(max_length=10**5)] = []  # fmt: skip


class _Training(_Strict):
    """What was noted of the training; other keys are kept as they are."""

    cohort_size: Counts = {}
    subjects: Counts = {}
    samples: Counts = {}
    seconds: dict[Name, Annotated[float, Field(ge=0)]] = {}
    folds: Annotated[int, Field(ge=0, le=1000)] | None = None
    left_out: list[Short] | int = []
    calibration: Short = ""
    device: Short = ""
    alone: bool = False
    stale: Count | bool = 0
    elsewhere: dict[str, Any] | None = None
    reduction: dict[str, Any] | None = None
    earlier: Records | dict[str, Any] | None = None
    updates: list[_Joined] = []
    excluded: list[_Named] = []
    references: Records = []
    anomalies: dict[str, Any] | None = None
    not_scored: list[_Named] = []
    pixel_threshold: _Pixels | None = None


class _Stored(_Strict):
    configuration: _Configuration
    channels: Annotated[list[Annotated[str, Field(max_length=1000)]], Field(max_length=4096)]
    filled: list[Name] = []
    scan_threshold: dict[str, Any] | None
    pixel_threshold: float | None
    training: _Training
    gate: dict[str, Any] | None = None
    sha256: Hash
    places_sha256: Hash | None = None
    versions: dict[Name, Short] = {}

    @field_validator("filled")
    @classmethod
    def _known(cls, value: list[str], info: Any) -> list[str]:
        if unknown := set(value) - set(info.data.get("channels", ())):
            raise ValueError(f"{sorted(unknown)[0]} is none of its channels")
        return value


def check_stored(about: Any) -> None:
    """Refuse a description of a detector with a value of another kind, or beyond its bounds.

    Args:
        about: content of ``detector.json``.

    Raises:
        ArgumentError: names the first such value, what it is and what it must be.
    """
    for name, value in about.items():
        # Scores may be infinite, and their threshold is checked against them where it is built.
        bounded(value, name, finite=name not in ("scan_threshold", "training"))
    try:
        stored = _Stored.model_validate(about)
    except ValidationError as error:
        first = error.errors()[0]
        place = ".".join(map(str, first["loc"])) or "it"
        raise ArgumentError(f"{place} is {_shown(first['input'])}: {first['msg']}") from None
    _warn_of_later(stored.versions.get("normscan", ""))


def bounded(value: Any, place: str, depth: int = 0, finite: bool = True) -> None:
    """Refuse what nests too deeply and, unless they may be there, numbers that are not finite.

    Raises:
        ArgumentError: names the place.
    """
    if depth > DEEPEST:
        raise ArgumentError(f"{place[:100]} nests deeper than {DEEPEST} levels")
    if isinstance(value, dict):
        for name, inner in value.items():
            bounded(inner, f"{place}.{name}", depth + 1, finite)
    elif isinstance(value, list):
        for i, inner in enumerate(value):
            bounded(inner, f"{place}.{i}", depth + 1, finite)
    elif finite and isinstance(value, float) and not math.isfinite(value):
        raise ArgumentError(f"{place} is {value}: it must be finite")


def check_arguments(card: Card, arguments: Mapping[str, Any], channels: int) -> None:
    """Refuse arguments of a method that are not of the kind that its signature names.

    Args:
        card: of the method.
        arguments: all of them, as JSON gave them.
        channels: of the scans.

    Raises:
        ArgumentError: names the argument.
    """
    known = inspect.signature(card.build).parameters
    if unlike := set(known) ^ set(arguments):
        what = "lacks" if unlike & set(known) else "has no"
        raise ArgumentError(f"method '{card.id}' {what} argument '{sorted(unlike)[0]}'")
    for name, value in arguments.items():
        kind = known[name].annotation
        try:
            fits = plain(TypeAdapter(kind).validate_python(tupled(value))) == plain(value)
        except (ValidationError, TypeError):
            fits = False
        whole = isinstance(value, int) and not isinstance(value, bool)
        if not fits or (whole and abs(value) > MOST):
            raise ArgumentError(f"the argument {name} of {card.id} is {_shown(value)}")
    check_ranges(card, arguments)
    for name, allowed in (("dims", card.dims), ("size", range(1, 4097))):
        value = arguments.get(name)
        if name in known and (value not in allowed or isinstance(value, bool)):
            raise ArgumentError(f"the argument {name} of {card.id} is {_shown(value)}")
    if "channels" in known and arguments["channels"] != channels:
        raise ArgumentError(f"{channels} channels are named, for {arguments['channels']}")


def _shown(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 80 else f"{text[:77]}..."


def _warn_of_later(version: str) -> None:
    """Say that a later version wrote a detector, which may know more than is read here."""
    numbers = [[int(n) for n in v.split(".")[:2] if n.isdigit()] for v in (version, __version__)]
    if numbers[0] > numbers[1]:
        warnings.warn(
            f"the detector was written by normscan {version}, this is {__version__}: what later "
            "versions added is not known here.",
            stacklevel=2,
        )
