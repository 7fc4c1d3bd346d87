"""Fuzz tables of cohorts: commas, tabs, Parquet; see README.md."""

# ruff: noqa: E402
from __future__ import annotations

import io
import sys
import warnings
from collections.abc import Iterator
from pathlib import Path

import atheris

ROOT = Path(__file__).parents[1]
sys.path[:0] = [str(ROOT), str(ROOT / "src")]

with atheris.instrument_imports(include=["normscan.cohort"]):
    from normscan.cohort import Cohort


import pandas as pd
from tests.support import changes as C
from tests.support import mutations as M

from harness import fuzz, structured


def commas(place: Path, data: bytes) -> None:
    """Read a .csv; some of its files are there."""
    _read(place, ".csv", data)


def tabs(place: Path, data: bytes) -> None:
    """Read a .tsv."""
    _read(place, ".tsv", data)


def parquet(place: Path, data: bytes) -> None:
    """Read a Parquet file."""
    _read(place, ".parquet", data)


def _read(place: Path, suffix: str, data: bytes) -> None:
    place.mkdir()
    path = place / f"{place.name}{suffix}"
    path.write_bytes(data)
    for i in range(10):
        (place / f"{i}.png").touch()
    cohort = Cohort.read(path)
    cohort.digest()
    cohort.write(place / "out.csv")


def seeds() -> Iterator[tuple[int, bytes]]:
    """Make good tables."""
    for name, content in M.tables():
        yield int(name.endswith(".tsv")), content
    table, packed = pd.read_csv(io.BytesIO(M.tables()[0][1])), io.BytesIO()
    table.to_parquet(packed)
    yield 2, packed.getvalue()


if __name__ == "__main__":
    warnings.simplefilter("ignore")
    fuzz("tables", (commas, tabs, parquet), seeds(), structured(C.of_text))
