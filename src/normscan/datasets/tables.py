"""Side tables of a download: grades, reads, boxes."""

from __future__ import annotations

import json
from collections import Counter
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING, Any

from normscan.datasets.layout import Groups, Tree
from normscan.datasets.recipe import BoxRule, TableRule
from normscan.datasets.row import fill
from normscan.errors import CohortError, nearest

if TYPE_CHECKING:
    import pandas as pd

MAX_BYTES = 2**31
"""Largest side table that is read."""


class SpreadsheetError(CohortError):
    """A spreadsheet without an installed reader."""


class SideTable:
    """A table joined by a key; several files where the pattern has names (one a split)."""

    def __init__(self, rule: TableRule, tree: Tree) -> None:
        self.rule = rule
        self.names = [*rule.columns, *rule.onehot, *rule.votes]
        self.files: list[tuple[Groups, dict[str, dict[str, str]]]] = []
        for path, groups in find(rule.file, rule.optional, tree):
            try:
                frame = read(path, rule.separator, rule.header)
            except SpreadsheetError as error:
                if not rule.optional:
                    raise
                tree.notes.append(str(error))
                continue
            several = chain(*rule.onehot.values(), *rule.votes.values())
            require(frame, path, [*rule.columns.values(), *several])
            self.files.append((groups, self._index(frame, path)))

    def of(self, key: str, row: dict[str, Any]) -> dict[str, str]:
        """Return the columns of a key, empty where the table doesn't name it."""
        for groups, index in self.files:
            if all(str(row.get(k, v)).lower() == v.lower() for k, v in groups.items()):
                found = index.get(key.strip())
                if found:
                    return found
        return {name: str(row.get(name, "")) for name in self.names}

    def _index(self, frame: pd.DataFrame, path: Path) -> dict[str, dict[str, str]]:
        keys = key_cells(frame, self.rule.key, path)
        cells = {new: list(frame[old]) for new, old in self.rule.columns.items()}
        for new, columns in {**self.rule.onehot, **self.rule.votes}.items():
            hot = [[c for c in columns if _is_one(v[c])] for v in frame[columns].to_dict("records")]
            if new in self.rule.votes:
                cells[new] = [str(int(2 * len(names) > len(columns))) for names in hot]
            else:
                cells[new] = ["|".join(names) for names in hot]
        lines: dict[str, dict[str, list[str]]] = {}
        for i, key in enumerate(keys):
            line = lines.setdefault(key, {name: [] for name in cells})
            for name, values in cells.items():
                line[name].append(values[i])
        return {
            key: {name: _reduce(values, self.rule.many) for name, values in line.items()}
            for key, line in lines.items()
        }


class Boxes:
    """A table of boxes, several lines for one image; empty lines are images without any."""

    def __init__(self, rule: BoxRule, tree: Tree) -> None:
        self.rule = rule
        self.index: dict[str, list[tuple[list[float], str]]] = {}
        for path, _ in find(rule.file, rule.optional, tree):
            frame = read(path, rule.separator, [])
            require(frame, path, [*rule.box, *([rule.kind] if rule.kind else [])])
            columns = [frame[c] for c in rule.box]
            kinds = frame[rule.kind] if rule.kind else [""] * len(frame)
            keys = key_cells(frame, rule.key, path)
            for key, kind, *cells in zip(keys, kinds, *columns, strict=True):
                try:
                    a, b, c, d = (float(cell) for cell in cells)
                except ValueError:
                    continue
                if a == a and b == b and c == c and d == d:
                    box = [a, b, c - a, d - b] if rule.corners else [a, b, c, d]
                    self.index.setdefault(key, []).append((box, str(kind)))

    def of(self, key: str, row: dict[str, Any]) -> dict[str, str]:
        """Return the columns ``boxes`` (JSON) and, where the rule names one, ``box_kinds``."""
        found = self.index.get(key.strip(), [])
        result = {"boxes": json.dumps([box for box, _ in found]) if found else ""}
        if self.rule.kind:
            result["box_kinds"] = "|".join(kind for _, kind in found)
        return result


def find(pattern: str, optional: bool, tree: Tree) -> list[tuple[Path, Groups]]:
    """Return the files of a table.

    Raises:
        CohortError: none is there and it isn't optional.
    """
    found = tree.match(pattern)
    if not found and not optional:
        raise CohortError(
            f"{tree.root}: the table {pattern} is missing, and the labels stand in it. Download it "
            "to that place."
        )
    return [(tree.root / path, groups) for path, groups in found]


def read(path: Path, separator: str = "", header: list[str] | None = None) -> pd.DataFrame:
    """Read a side table, every cell as text without blanks around it.

    Raises:
        CohortError: not readable, too large, a spreadsheet without its reader.
    """
    import pandas as pd

    suffix = path.suffix.lower()
    if suffix in (".xls", ".xlsx") and path.with_suffix(".csv").is_file():
        path, suffix = path.with_suffix(".csv"), ".csv"
    names: dict[str, Any] = {"names": header, "header": None} if header else {}
    try:
        if path.stat().st_size > MAX_BYTES:
            raise CohortError(f"{path}: is larger than {MAX_BYTES} bytes, no side table is.")
        if suffix in (".xls", ".xlsx"):
            frame = pd.read_excel(path, dtype=str, **names)
        else:
            default = {".tsv": "\t", ".txt": r"\s+"}.get(suffix, ",")
            frame = pd.read_csv(
                path,
                sep=separator or default,
                dtype=str,
                keep_default_na=False,
                encoding="utf-8-sig",
                encoding_errors="replace",
                index_col=False,
                **names,
            )
    except CohortError:
        raise
    except ImportError as error:
        raise SpreadsheetError(
            f"{path}: no reader of spreadsheets is installed. Save the sheet beside it as "
            f"{path.with_suffix('.csv').name}."
        ) from error
    except Exception as error:  # the parsers raise anything on a damaged file
        raise CohortError(f"{path}: is no readable table ({str(error)[:150]}).") from error
    frame.columns = [str(c).strip() for c in frame.columns]
    return frame.fillna("").map(lambda cell: str(cell).strip())


def require(frame: pd.DataFrame, path: Path, columns: list[str]) -> None:
    """Refuse a table that lacks a column.

    Raises:
        CohortError: it names the column and the nearest one there is.
    """
    for column in columns:
        if column not in frame.columns:
            there = [str(c) for c in frame.columns]
            raise CohortError(
                f"{path}: has no column '{column}', only {', '.join(there[:12])}."
                f"{nearest(column, there)} Is it the table of another release?"
            )


def key_cells(frame: pd.DataFrame, key: str, path: Path) -> list[str]:
    """Return the key of every line: a column, or a template over columns.

    Raises:
        CohortError: no such column.
    """
    if "{" not in key:
        require(frame, path, [key])
        return list(frame[key])
    records: list[dict[str, Any]] = [
        {str(k): v for k, v in r.items()} for r in frame.to_dict("records")
    ]
    return [fill(key, {"path": "-", **record}) for record in records]


def _is_one(cell: str) -> bool:
    try:
        return float(cell) == 1
    except ValueError:
        return False


def _reduce(values: list[str], many: str) -> str:
    if len(set(values)) == 1:
        return values[0]
    if many == "majority":
        return Counter(values).most_common(1)[0][0]
    if many in ("max", "mean"):
        numbers = [float(v) for v in values if v]
        if not numbers:
            return ""
        best = max(numbers) if many == "max" else sum(numbers) / len(numbers)
        return f"{best:g}"
    return "|".join(dict.fromkeys(v for v in values if v))
