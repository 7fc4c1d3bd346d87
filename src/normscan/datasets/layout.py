"""Files of a download: patterns of their paths, and what to say where they don't fit."""

from __future__ import annotations

import os
import re
from collections import Counter
from collections.abc import Iterable
from functools import cache
from pathlib import Path

from normscan.errors import CohortError
from normscan.io.files import walk_files

Groups = dict[str, str]

_TOKEN = re.compile(r"\{(\w+)(?::((?:[^{}]|\{\d+(?:,\d*)?\})+))?\}|\*\*/|\*")


@cache
def compile_pattern(pattern: str) -> re.Pattern[str]:
    """Turn a pattern of a recipe into a regular expression for whole relative paths.

    A name that stands twice must match the same text twice.

    Raises:
        CohortError: no valid pattern.
    """
    parts: list[str] = []
    names: set[str] = set()
    last = 0
    for token in _TOKEN.finditer(pattern):
        parts.append(re.escape(pattern[last : token.start()]))
        last = token.end()
        name, inner = token.groups()
        if name is None:
            parts.append("(?:[^/]+/)*" if token.group() == "**/" else "[^/]*")
        elif name in names:
            parts.append(f"(?P={name})")
        else:
            names.add(name)
            parts.append(f"(?P<{name}>{inner or '[^/]+?'})")
    parts.append(re.escape(pattern[last:]))
    try:
        return re.compile("".join(parts), re.IGNORECASE)
    except re.error as error:
        raise CohortError(f"the pattern '{pattern}' is no pattern: {error}.") from error


class Tree:
    """The files below a root, as relative paths with slashes in natural order.

    Args:
        root: the folder.
        paths: instead of reading the folder.

    Attributes:
        notes: what a reader of the tree could not use.
    """

    def __init__(self, root: Path, paths: Iterable[str] | None = None) -> None:
        self.root = root
        self.paths = _walk(root) if paths is None else list(paths)
        self.notes: list[str] = []

    def match(self, pattern: str, exclude: Iterable[str] = ()) -> list[tuple[str, Groups]]:
        """Return the paths that fit a pattern, with its named parts."""
        fits = compile_pattern(pattern)
        unwanted = [compile_pattern(p) for p in exclude]
        found = []
        for path in self.paths:
            hit = fits.fullmatch(path)
            if hit and not any(u.fullmatch(path) for u in unwanted):
                found.append((path, {k: v for k, v in hit.groupdict().items() if v is not None}))
        return found

    def join(self, pattern: str) -> Lookup:
        """Return what finds the files of a pattern for rows by the names that both have."""
        return Lookup(self.match(pattern), set(compile_pattern(pattern).groupindex))

    def explain(self, patterns: list[str], layout: str, id: str) -> CohortError:
        """Return the error of a root that holds none of the expected files."""
        head = f"{self.root}: is not the root folder of '{id}'."
        better = self._better_root(patterns)
        if better:
            return CohortError(f"{head} {better}")
        there = Counter(p.partition("/")[0] + "/" * ("/" in p) for p in self.paths)
        shown = ", ".join(list(there)[:6]) + (" ..." if len(there) > 6 else "") or "nothing"
        expected = "; ".join(" ".join(line.split()) for line in layout.strip().splitlines()[:2])
        return CohortError(
            f"{head} Expected: {expected}. Found: {shown}. Give the folder in which this layout "
            f"begins; `normscan datasets show {id}` prints all of it."
        )

    def _better_root(self, patterns: list[str]) -> str:
        """Say which folder above or below fits, if one does."""
        full = Path(os.path.abspath(self.root))
        for levels in (1, 2):
            if len(full.parts) <= levels:
                break
            prefix = "/".join(full.parts[-levels:]) + "/"
            if _any_match(patterns, (prefix + p for p in self.paths)):
                up = full.parents[levels - 1]
                return f"It is {_levels(levels)} too low: give {up}."
        for levels in (1, 2):
            below: dict[str, list[str]] = {}
            for path in self.paths:
                parts = path.split("/", levels)
                if len(parts) > levels and parts[levels]:
                    below.setdefault("/".join(parts[:levels]), []).append(parts[levels])
            fitting = [folder for folder, inner in below.items() if _any_match(patterns, inner)]
            if fitting:
                names = " or ".join(str(full / f) for f in fitting[:3])
                return f"It is {_levels(levels)} too high: give {names}."
        return ""


class Lookup:
    """Finds the files of a pattern that share names with a row."""

    def __init__(self, found: list[tuple[str, Groups]], names: set[str]) -> None:
        self.found, self.names = found, names
        self.index: dict[tuple[str, ...], dict[tuple[str, ...], list[str]]] = {}

    def of(self, groups: Groups) -> list[str]:
        """Return the paths whose named parts agree with those of the row."""
        shared = tuple(sorted(self.names & set(groups)))
        if shared not in self.index:
            index: dict[tuple[str, ...], list[str]] = {}
            for path, own in self.found:
                index.setdefault(tuple(own.get(n, "").lower() for n in shared), []).append(path)
            self.index[shared] = index
        return self.index[shared].get(tuple(groups[n].lower() for n in shared), [])


def _any_match(patterns: list[str], paths: Iterable[str]) -> bool:
    fits = [compile_pattern(p) for p in patterns]
    return any(f.fullmatch(path) for path in paths for f in fits)


def _levels(count: int) -> str:
    return "one level" if count == 1 else f"{count} levels"


def _walk(root: Path) -> list[str]:
    """List the files in natural order; hidden ones and loops of links are left out."""
    if not root.is_dir():
        raise CohortError(f"{root}: is no folder. Give the folder of the download.")
    return sorted(walk_files(root), key=natural)


def natural(path: str) -> list[tuple[int, int, str]]:
    """Sort key by which ``img2`` comes before ``img10``."""
    return [(1, int(t), t) if t.isdecimal() else (0, 0, t) for t in re.split(r"(\d+)", path) if t]
