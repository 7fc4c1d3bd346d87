"""A cohort of what is at hand in Python: a path, a table, a list of arrays, scans or files."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np

from normscan.cohort.cohort import Cohort
from normscan.errors import ArgumentError
from normscan.scan import Scan

# Of a list there is nothing to test: all of it trains and sets the threshold.
FRACTIONS = (0.8, 0.2, 0.0)


@contextmanager
def as_cohort(
    data: Any, seed: int, fractions: tuple[float, float, float] | None = None
) -> Iterator[Cohort]:
    """Give a cohort of healthy scans, or the one that a path or a table describes.

    Args:
        data: a cohort; the path of a table or folder; a pandas table with paths; or a list of
            healthy arrays, scans or files, each of a subject of its own. Arrays lie in a temporary
            folder as long as the block runs.
        seed: of the split, where none is given.
        fractions: of that split; those of ``Cohort.read`` by default, and for a list no test part.

    Raises:
        CohortError: as ``Cohort.read``.
        ArgumentError: it is something else, or an array, which may be one image or many.
    """
    if isinstance(data, Cohort):
        yield data
    elif isinstance(data, str | os.PathLike) or hasattr(data, "columns"):
        if fractions is None:
            yield Cohort.read(data, seed=seed)
        else:
            yield Cohort.read(data, seed=seed, fractions=fractions)
    elif isinstance(data, np.ndarray):
        raise ArgumentError(
            f"an array of {data.shape} may be one scan or many: give a list of arrays, list(array)."
        )
    elif isinstance(data, Sequence) and len(data):
        with tempfile.TemporaryDirectory(prefix="normscan-arrays-") as folder:
            yield _of_list(data, Path(folder), seed, fractions or FRACTIONS)
    else:
        raise ArgumentError(
            f"{type(data).__name__} is no cohort: give a Cohort, a path, a pandas table, or a list of "
            "arrays, scans or files."
        )


def _of_list(
    items: Sequence[Any], folder: Path, seed: int, fractions: tuple[float, float, float]
) -> Cohort:
    import pandas as pd

    paths = [_file(item, folder / f"scan{n:05d}") for n, item in enumerate(items)]
    return Cohort.from_table(pd.DataFrame({"path": paths, "label": 0}), folder, seed, fractions)


def _file(item: Any, place: Path) -> str:
    """Return the path of an item, written to a file if it is none."""
    if isinstance(item, str | os.PathLike):
        return os.path.abspath(item)
    if isinstance(item, Scan):
        path = place.with_suffix(".npz")
        arrays: dict[str, Any] = {"image": item.data, "channels": np.array(item.channels)}
        np.savez(path, **arrays | ({"affine": item.affine} if item.measured else {}))
    elif isinstance(item, np.ndarray):
        path = place.with_suffix(".npy")
        np.save(path, item, allow_pickle=False)
    else:
        raise ArgumentError(
            f"{type(item).__name__} is no scan: a list holds arrays, scans or paths of files."
        )
    return str(path)
