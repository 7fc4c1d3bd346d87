"""The ledger of published figures, to stand beside the achieved ones.

``targets.toml`` holds tables as they were printed: ``columns`` are ``SET METRIC`` (or
``SET METRIC sd`` for the spread of the column before), ``rows`` one list of numbers a method, with
``nan`` where the publication has none. ``percent`` says that 67.5 means 0.675.
"""

from __future__ import annotations

import math
import tomllib
from dataclasses import dataclass
from functools import cache
from importlib.resources import files

from normscan.errors import CohortError


@dataclass(frozen=True)
class Target:
    """A published figure.

    Attributes:
        protocol: id of the protocol.
        set: id of the set, or of the group of sets that was averaged.
        method: id of the method, or the printed name where the library has none.
        metric: name of the metric, or ``unnamed``.
        value: as a share, 0.675 for 67.5 %.
        sd: published spread, or None.
        source: where it was read.
        note: what to know before comparing.
    """

    protocol: str
    set: str
    method: str
    metric: str
    value: float
    sd: float | None
    source: str
    note: str


@cache
def targets() -> tuple[Target, ...]:
    """Return all published figures.

    Raises:
        CohortError: a row that doesn't fit its columns.
    """
    text = (files("normscan.benchmark") / "targets.toml").read_text("utf-8")
    found: list[Target] = []
    for table in tomllib.loads(text)["tables"]:
        columns, unit = [c.split() for c in table["columns"]], 0.01 if table["percent"] else 1.0
        for method, row in table["rows"].items():
            if len(row) != len(columns):
                raise CohortError(
                    f"targets.toml: {method} of {table['protocol']} has {len(row)} figures for "
                    f"{len(columns)} columns."
                )
            cells = {tuple(c): v * unit for c, v in zip(columns, row, strict=True)}
            for (name, metric, *spread), value in cells.items():
                if not spread and not math.isnan(value):
                    sd = cells.get((name, metric, "sd"))
                    known = None if sd is None or math.isnan(sd) else round(sd, 6)
                    target = Target(
                        table["protocol"], name, method, metric, round(value, 6), known,
                        table["source"], table.get("note", ""),
                    )  # fmt: skip
                    found.append(target)
    return tuple(found)


def published(protocol: str, set: str, method: str) -> dict[str, Target]:
    """Return the published figures of a method on a set by metric."""
    return {
        t.metric: t for t in targets() if (t.protocol, t.set, t.method) == (protocol, set, method)
    }
