"""Malformed files made by the tests: each is refused in one clear sentence, or odd but readable."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

SECRET = "SECRET"
"""In every name and number of a patient in these files, so that no message may hold it."""

Make = Callable[[Path], Path]


@dataclass(frozen=True)
class Case:
    """A file or folder that isn't as it should be.

    Attributes:
        name: what is wrong with it.
        make: writes it below an empty folder and returns what to read, an address maybe.
        says: pattern of the reason in the message.
    """

    name: str
    make: Make
    says: str


@dataclass(frozen=True)
class Odd:
    """A file that breaks a rule and still says beyond doubt what it holds.

    Attributes:
        name: what is odd in it.
        make: as in ``Case``.
        shape: of the scan.
        mean: of its values.
    """

    name: str
    make: Make
    shape: tuple[int, ...]
    mean: float


def written(name: str, content: bytes | Callable[[], bytes]) -> Make:
    """Return what writes one file."""

    def make(folder: Path) -> Path:
        path = folder / name
        path.write_bytes(content if isinstance(content, bytes) else content())
        return path

    return make


def addressed(make: Make, address: str) -> Make:
    """Return the same with an address behind its name."""
    return lambda folder: Path(f"{make(folder)}{address}")


def cases() -> list[Case]:
    """Return all malformed files."""
    return [case for part in _parts() for case in part.cases()]


def odd() -> list[Odd]:
    """Return all files that are odd but readable."""
    return [one for part in _parts() for one in part.odd()]


def _parts() -> tuple[Any, ...]:
    from tests.support import (
        malformed_bytes,
        malformed_dicom,
        malformed_pictures,
        malformed_volumes,
    )

    return malformed_dicom, malformed_bytes, malformed_volumes, malformed_pictures
