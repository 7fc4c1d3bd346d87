"""The limits written down: page, table, picture and figures."""

from __future__ import annotations

import os
from pathlib import Path

from normscan.io import atomic_path, check_folder
from normscan.io.sheets import inert_table
from normscan.io.values import write_json
from normscan.limits.page import write_page
from normscan.limits.pictures import draw
from normscan.limits.result import Limits


def write_limits(limits: Limits, folder: str | os.PathLike[str]) -> Path:
    """Write ``limits.json``, ``.csv``, ``.png``, ``.svg``, ``.pdf`` and ``.html``; return the folder.

    Raises:
        OutputError: the folder can't be written.
    """
    folder = Path(folder)
    check_folder(folder)
    with atomic_path(folder / "limits.csv") as temporary:
        inert_table(limits.rows).to_csv(temporary, index=False)
    for suffix in ("png", "svg", "pdf"):
        with atomic_path(folder / f"limits.{suffix}") as temporary:
            draw(limits, temporary)
    write_page(folder / "limits.html", limits)
    write_json(folder / "limits.json", limits.to_dict())
    return folder
