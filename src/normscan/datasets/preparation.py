"""From the download of a public data set to a checked cohort."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any

from normscan.datasets.layout import Tree
from normscan.datasets.recipe import Recipe, load
from normscan.datasets.row import Row
from normscan.datasets.rows import check_counts, collect, main_patterns
from normscan.errors import ArgumentError, CohortError

if TYPE_CHECKING:
    from normscan.cohort import Cohort
    from normscan.progress import Progress


def prepare(
    id: str,
    root: str | os.PathLike[str],
    split: str | None = None,
    out: str | os.PathLike[str] | None = None,
    *,
    only: str | None = None,
    channels: Sequence[str] | None = None,
    split_file: str | None = None,
    seed: int = 0,
    fractions: Sequence[float] = (0.7, 0.1, 0.2),
    progress: Progress | None = None,
) -> Cohort:
    """Turn the download of a data set into a cohort, and compare it with what is known of the set.

    The download itself is never changed. Masks and images that have to be made (the union of
    several masks, some labels of a mask, NRRD) go to the folder ``<stem of out>_files`` beside
    ``out``.

    Args:
        id: of the data set.
        root: the folder of the download, in which the recipe's layout begins.
        split: one of the literature's splits by its name in the recipe; by default normscan's own,
            by subject and seed.
        out: the table to write, CSV, TSV or Parquet.
        only: rows to keep, as ``column=value|value,column=value``, for example
            ``category=bottle``.
        channels: of a set with one file a channel, those to take.
        split_file: id list, where the split needs one; see ``normscan.datasets.splits.apply``.
        seed: of normscan's own split.
        fractions: healthy subjects for train, val and test, where the split doesn't say.
        progress: bar.

    Returns:
        The cohort; its notes say what is missing or differs from the expected numbers.

    Raises:
        ArgumentError: no such data set, split, column or channel; a data set that isn't resolved.
        CohortError: a root that doesn't hold the layout (the message says which folder does, where
            that can be seen), a missing side table.
    """
    from normscan.cohort import Cohort
    from normscan.cohort.splits import assign_splits
    from normscan.cohort.table import normalise
    from normscan.datasets import masks, splits

    recipe = load(id)
    if recipe.access == "unresolved":
        raise ArgumentError(f"'{id}' can't be prepared: {recipe.how}")
    folder = Path(root)
    tree = Tree(folder)
    work = _work_folder(out)
    rows = _rows(recipe, tree, work)
    if not rows:
        raise tree.explain(main_patterns(recipe), recipe.layout, id)
    _choose_channels(rows, channels)
    notes = tree.notes + check_counts(recipe, tree, rows)
    rows = splits.only(rows, only)
    notes += splits.apply(recipe, split, rows, split_file)
    if any(row.get("boxes") for row in rows):
        notes.append("The column boxes holds boxes (x, y, width, height). They are no masks.")
    notes += masks.materialise(rows, folder, work, progress.track if progress else _silent)
    table = normalise(_frame(rows), id)
    table, more = assign_splits(table, folder, seed, fractions, id)
    cohort = Cohort(table, folder, [*notes, *more])
    if out is not None:
        cohort.write(out)
    return cohort


def _rows(recipe: Recipe, tree: Tree, work: Callable[[], Path]) -> list[Row]:
    rows = collect(recipe, tree)
    if recipe.builder:
        module, _, name = recipe.builder.partition(":")
        build = getattr(import_module(f"normscan.datasets.{module}"), name)
        rows = build(tree, rows, work)
    for row in rows:
        row.setdefault("label", None)
        row.setdefault("_mask_values", [])
        row.setdefault("_wants_mask", False)
        mask = row.get("mask") or []
        row["mask"] = [mask] if isinstance(mask, str) else list(mask)
    return rows


def _work_folder(out: str | os.PathLike[str] | None) -> Callable[[], Path]:
    def folder() -> Path:
        if out is None:
            raise ArgumentError(
                "this data set needs files of its own (united masks, converted images): give "
                "out=TABLE, they go beside it."
            )
        table = Path(os.path.abspath(out))
        return table.with_name(f"{table.stem}_files")

    return folder


def _choose_channels(rows: list[Row], channels: Sequence[str] | None) -> None:
    """Drop the other channels, and scans that have none of them, in place."""
    if not channels:
        return
    there = list(dict.fromkeys(k[5:] for row in rows for k in row if k.startswith("path_")))
    wrong = [c for c in channels if c not in there]
    if wrong:
        known = ", ".join(there) or "one file a scan, no channels to choose from"
        raise ArgumentError(f"there is no channel {wrong[0]}: {known}.")
    for row in rows:
        for channel in set(there) - set(channels):
            row.pop(f"path_{channel}", None)
    rows[:] = [row for row in rows if any(row.get(f"path_{c}") for c in channels)]


def _frame(rows: list[Row]) -> Any:
    import pandas as pd

    columns = list(dict.fromkeys(k for row in rows for k in row if not k.startswith("_")))
    paths = [c for c in columns if c == "path" or c.startswith("path_")]
    if "path" in paths and len(paths) > 1:
        raise CohortError("the recipe mixes rows of one file with rows of one file a channel.")
    subjects = [str(row.get("subject", "")).replace("/", "-") for row in rows]
    if "path" not in paths and "scan" not in columns and len(set(subjects)) == len(rows):
        # One file a channel: the subject is a better name than that of its first file.
        rows = [{"scan": name, **row} for name, row in zip(subjects, rows, strict=True)]
        columns.insert(0, "scan")
    # An empty column says nothing.
    kept = [c for c in columns if c in ("path", "label") or any(r.get(c) for r in rows)]
    cells = {c: ["" if row.get(c) is None else row.get(c, "") for row in rows] for c in kept}
    return pd.DataFrame(cells, dtype=object)


def _silent(items: Any, name: str) -> Any:
    return items
