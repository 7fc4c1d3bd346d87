"""Fuzz folders of detectors: descriptions, weights, members; see README.md."""

# ruff: noqa: E402
from __future__ import annotations

import random
import sys
import tempfile
import warnings
from collections.abc import Iterator
from pathlib import Path

import atheris

ROOT = Path(__file__).parents[1]
sys.path[:0] = [str(ROOT), str(ROOT / "src")]

with atheris.instrument_imports(
    include=["normscan.detector", "normscan.quality", "normscan.decide"]
):
    from normscan.detector import load


from tests.support import changes as C
from tests.support import mutations as M

from harness import Read, fuzz, structured

HOME = tempfile.TemporaryDirectory(prefix="normscan-fuzz-home-")
KINDS = M.detectors(Path(HOME.name))
FILES = [
    seed for name in ("detector.json", "safetensors", "division.csv") for seed in KINDS[name].seeds
]
"""Of two detectors: name and content of each file."""


def reader(name: str) -> Read:
    """Return what reads a detector one of whose files is given, and lets it score a picture."""

    def read(place: Path, data: bytes) -> None:
        place.mkdir()
        (place / name).write_bytes(data)
        KINDS["detector.json"].read(place / name)

    return read


def change(data: bytes, rng: random.Random) -> bytes:
    """Change values where the input is a description or the header of weights, else bytes."""
    way = C.of_json if data[:1] == b"{" else C.of_tensors if data[8:9] == b"{" else C.of_text
    return way(data, rng)


def seeds() -> Iterator[tuple[int, bytes]]:
    """The files as they are."""
    for n, (_, content) in enumerate(FILES):
        yield n, content


if __name__ == "__main__":
    warnings.simplefilter("ignore")
    assert load  # instrumented, and used by what reads
    fuzz("detectors", tuple(reader(name) for name, _ in FILES), seeds(), structured(change), 2**18)
