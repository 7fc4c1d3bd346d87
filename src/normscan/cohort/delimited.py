"""Tables as text: commas, semicolons or tabs, and nothing that could shift a cell unseen."""

from __future__ import annotations

import csv
import re
from pathlib import Path

from normscan.errors import CohortError

SEPARATORS = {",": "commas", ";": "semicolons", "\t": "tabs"}
_COMMA_NUMBER = re.compile(r"[+-]?\d+,\d+")
_WHOLE = re.compile(r"[+-]?\d+")
_POINT_NUMBER = re.compile(r"[+-]?\d*\.\d+")


def read_cells(path: Path) -> dict[str, list[str]]:
    """Read a .csv or .tsv; the header line says what separates the columns.

    Excel writes semicolons and decimal commas where the language has them (German, French): ``3,5``
    in a column of nothing but such numbers becomes ``3.5``. Its line ``sep=;`` is passed over.

    Returns:
        The cells of each column as text; a row that is shorter than the header ends in empty ones.

    Raises:
        CohortError: a row with more cells than the header, a row with another separator, a column
            that stands twice or has cells and no name, a column with decimal commas and points,
            quotes that don't close. It names the line.
        UnicodeDecodeError: no UTF-8.
    """
    lines = path.read_text(encoding="utf-8-sig").splitlines(keepends=True)
    told = re.fullmatch(r"sep=(.)", lines[0].strip("\r\n")) if lines else None
    first = 1 if told else 0
    if not any(line.strip() for line in lines[first:]):
        raise CohortError(f"{path}: is no readable {path.suffix} table (it is empty).")
    mark = told.group(1) if told else _separator(lines[0], path.suffix.lower())
    reader = csv.reader(lines[first:], delimiter=mark, strict=True)
    rows: list[tuple[int, list[str]]] = []
    try:
        for cells in reader:
            if any(cell.strip() for cell in cells):
                rows.append((reader.line_num + first, [cell.strip() for cell in cells]))
    except csv.Error as error:
        raise CohortError(
            f"{path}: line {reader.line_num + first} can't be parted into cells ({error}). Close its "
            "quotes."
        ) from error
    header = rows[0][1]
    while header and not header[-1]:
        header.pop()
    _check_header(header, path, rows[0][0])
    for number, cells in rows[1:]:
        _check_row(cells, header, mark, path, number)
    columns = {
        name: [cells[n] if n < len(cells) else "" for _, cells in rows[1:]]
        for n, name in enumerate(header)
    }
    if mark == ",":
        return columns
    return {name: _with_points(cells, name, path) for name, cells in columns.items()}


def _separator(line: str, suffix: str) -> str:
    """Return what parts the header; the extension decides where nothing does."""
    bare = re.sub(r'"[^"]*"', "", line)
    counts = {mark: bare.count(mark) for mark in SEPARATORS}
    usual = "\t" if suffix == ".tsv" else ","
    if counts[usual]:
        return usual
    best = max(counts, key=lambda mark: counts[mark])
    return best if counts[best] else usual


def _check_header(header: list[str], path: Path, number: int) -> None:
    doubled = sorted({name for name in header if name and header.count(name) > 1})
    if doubled:
        raise CohortError(
            f"{path}: line {number}: the column {doubled[0]} stands twice, and one of the two would be "
            "lost. Keep one."
        )
    if "" in header:
        raise CohortError(
            f"{path}: line {number}: column {header.index('') + 1} has no name. Name it or drop it."
        )


def _check_row(cells: list[str], header: list[str], mark: str, path: Path, number: int) -> None:
    if any(cells[len(header) :]):
        raise CohortError(
            f"{path}: line {number} has {len(cells)} cells, the header {len(header)}: what lies behind "
            "would be lost. Put a cell with a separator in it in quotes, or name the column."
        )
    others = [m for m in SEPARATORS if m != mark and m in cells[0]]
    if len(cells) == 1 < len(header) and others:
        raise CohortError(
            f"{path}: line {number} is separated by {SEPARATORS[others[0]]}, the header by "
            f"{SEPARATORS.get(mark, mark)}. Save the table with one separator."
        )


def _with_points(cells: list[str], name: str, path: Path) -> list[str]:
    """Return decimal commas as points, in a column of nothing but numbers."""
    filled = [cell for cell in cells if cell]
    commas = [cell for cell in filled if _COMMA_NUMBER.fullmatch(cell)]
    points = [cell for cell in filled if _POINT_NUMBER.fullmatch(cell)]
    whole = [cell for cell in filled if _WHOLE.fullmatch(cell)]
    if not commas or len(commas) + len(points) + len(whole) < len(filled):
        return cells
    if points:
        raise CohortError(
            f"{path}: the column {name} has decimal commas ({commas[0]}) and points ({points[0]}). "
            "Write one of them."
        )
    return [cell.replace(",", ".") for cell in cells]
