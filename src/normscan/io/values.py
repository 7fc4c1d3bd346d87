"""Plain values: as JSON knows them, and to a file and back."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from normscan.errors import CohortError
from normscan.io.atomic import atomic_path


def plain(value: Any) -> Any:
    """Return a value as JSON will give it back: tuples become lists."""
    return json.loads(json.dumps(value))


def tupled(value: Any) -> Any:
    """Return lists as tuples, the form that methods take."""
    return tuple(tupled(v) for v in value) if isinstance(value, list) else value


def finite(value: Any) -> Any:
    """Return a value as strict JSON knows it: what is not finite becomes None."""
    if isinstance(value, dict):
        return {k: finite(v) for k, v in value.items()}
    if isinstance(value, list | tuple):
        return [finite(v) for v in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def read_json(path: Path) -> Any:
    """Read a JSON file.

    Raises:
        OSError: it can't be read.
        ValueError: it is no JSON, or nests too deeply to be any of ours.
    """
    return parse_json(path.read_text(encoding="utf-8"))


def parse_json(text: str | bytes) -> Any:
    """Return the value of a text of JSON; what nests too deeply is a ``ValueError`` like the rest."""
    try:
        return json.loads(text)
    except RecursionError:
        raise ValueError("it nests too deeply") from None


def write_json(path: Path, value: Any) -> None:
    """Write a JSON file that is there whole or not at all."""
    with atomic_path(path) as temporary:
        temporary.write_text(json.dumps(value, indent=2) + "\n", encoding="utf-8")


def inherited(id: str, raw: Mapping[str, Any], what: str) -> dict[str, Any]:
    """Return a table with what it lacks from the one that its ``inherits`` names, and so on.

    Args:
        id: of the table.
        raw: all tables by id.
        what: they are, for messages.

    Raises:
        CohortError: a name that is no table's, or tables that inherit from each other.
    """
    table, seen = dict(raw[id]), [id]
    while parent := table.pop("inherits", ""):
        if parent in seen or not isinstance(raw.get(str(parent)), Mapping):
            why = (
                "inherits from itself" if parent in seen else f"inherits '{parent}', which is none"
            )
            raise CohortError(f"{what} {id}: {why}. Name another.")
        seen.append(parent)
        table = {**raw[parent], **table}
    return table
