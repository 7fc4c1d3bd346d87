"""Which paths an assistant may name: those in folders that a person gave, links followed."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator
from pathlib import Path

from normscan.cohort import Cohort, CohortRow
from normscan.errors import ArgumentError
from normscan.io.address import split_address


class Allowed:
    """Folders in which files may be read and written.

    Args:
        roots: existing folders; a relative path is one of the first.

    Raises:
        ArgumentError: none, or one that is no folder.
    """

    def __init__(self, roots: Iterable[str]) -> None:
        self.roots = [Path(os.path.realpath(root)) for root in roots]
        if not self.roots:
            raise ArgumentError("name the folders that may be used: --root FOLDER.")
        for root in self.roots:
            if not root.is_dir():
                raise ArgumentError(f"{root}: no such folder.")

    def path(self, text: str, there: bool = True) -> Path:
        """Return a path as it is on the disk.

        Args:
            text: absolute, or relative to the first folder.
            there: whether it must exist.

        Raises:
            ArgumentError: it lies outside, or isn't there.
        """
        if not text or "\0" in text:
            raise ArgumentError("a path is empty.")
        path = Path(os.path.realpath(self.roots[0] / text))
        if not self._inside(path):
            raise ArgumentError(f"{text}: lies outside of the folders that may be used.")
        if there and not path.exists():
            raise ArgumentError(f"{text}: no such file or folder.")
        return path

    def cohort(self, text: str) -> tuple[Path, Cohort]:
        """Return the path of a cohort and the cohort, all of whose files lie inside.

        Raises:
            ArgumentError: a file lies outside.
            CohortError: it is none.
        """
        path = self.path(text)
        self.check([path.parent / "splits" / f"{path.name}.csv"])  # read where a folder has one
        cohort = Cohort.read(path)
        if cohort.auxiliary is not None:
            raise ArgumentError(f"{text}: brings a second cohort, which isn't supported here.")
        self.check(file for row in cohort for file in files_of(row))
        return path, cohort

    def check(self, files: Iterable[Path]) -> None:
        """Refuse files outside, those that links lead to, and those beside them of the same name.

        Raises:
            ArgumentError: one lies outside; it isn't named, as it may be anybody's.
        """
        beside: dict[Path, dict[str, list[Path]]] = {}
        for file in files:
            base, _ = split_address(file)
            for path in self._read(base, beside):
                if not self._inside(Path(os.path.realpath(path))):
                    raise ArgumentError(
                        "a scan or what stands beside it lies outside of the folders that may be used."
                    )

    def _read(self, path: Path, beside: dict[Path, dict[str, list[Path]]]) -> Iterator[Path]:
        """All files that reading a path may open; folders are listed once."""
        yield path
        if path.is_dir():
            for folder, folders, files in os.walk(path):
                yield from (Path(folder) / name for name in (*folders, *files))
            return
        if path.parent not in beside:
            listed: dict[str, list[Path]] = {}
            for other in path.parent.glob("*"):
                listed.setdefault(_stem(other), []).append(other)
            beside[path.parent] = listed
        yield from beside[path.parent].get(_stem(path), ())

    def _inside(self, path: Path) -> bool:
        return any(path.is_relative_to(root) for root in self.roots)


def _stem(path: Path) -> str:
    return path.name.partition(".")[0]


def files_of(row: CohortRow) -> list[Path]:
    """Return all files of a row."""
    beside = (row.mask, row.foreground, row.structures, *row.targets)
    return [*row.paths, *(path for path in beside if path is not None)]
