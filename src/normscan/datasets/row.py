"""A row on its way to a cohort, and the templates that are filled from it."""

from __future__ import annotations

import re
from pathlib import PurePosixPath
from typing import Any

Row = dict[str, Any]
"""One scan: texts by column; ``label`` 0, 1 or None; ``mask`` a list of paths."""

_FIELD = re.compile(r"\{(\w+)(?::(int|lower|upper))?\}")
_FILTERS = {"int": lambda t: str(int(t)), "lower": str.lower, "upper": str.upper}


def fill(template: str, row: Row) -> str:
    """Return a template with the values of a row; a column that it lacks gives an empty text."""

    def value(match: re.Match[str]) -> str:
        name, how = match.groups()
        text = str(row[name] if name in row else file_fields(row).get(name, ""))
        try:
            return _FILTERS[how](text) if how else text
        except ValueError:
            return text

    return _FIELD.sub(value, template)


def first_path(row: Row) -> str:
    """Return the path of a row, or of its first channel."""
    return row.get("path") or next(v for k, v in row.items() if k.startswith("path_") and v)


def file_fields(row: Row) -> dict[str, str]:
    """Return name, stem, folder and path of the (first) file of a row."""
    path = first_path(row)
    pure = PurePosixPath(path)
    stem = re.sub(r"\.nii$", "", pure.stem) if pure.suffix == ".gz" else pure.stem
    return {"name": pure.name, "stem": stem, "folder": pure.parent.name, "path": path}
