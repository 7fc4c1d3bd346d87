"""The command ``normscan datasets``."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from normscan.errors import ArgumentError, nearest

if TYPE_CHECKING:
    from normscan.datasets.recipe import Recipe

ACTIONS = ("list", "show", "prepare", "download")


def datasets(
    action: str = "list",
    id: str | None = None,
    root: str | None = None,
    split: str | None = None,
    out: str | None = None,
    only: str | None = None,
    channels: list[str] | None = None,
    split_file: str | None = None,
    modality: str = "",
    access: str = "",
    seed: int = 0,
    fractions: tuple[float, float, float] = (0.7, 0.1, 0.2),
) -> None:
    """Public data sets: list, show ID, prepare ID --root FOLDER, download ID --root FOLDER.

    Args:
        action: list, show, prepare or download.
        id: of the data set.
        root: folder of the download.
        split: one of the literature's splits; normscan's own by default.
        out: table to write; ID.csv by default.
        only: rows to keep, such as 'category=bottle' or 'group=CN|AD,sex=F'.
        channels: of a set with one file a channel, those to take, such as '["flair"]'.
        split_file: id list for splits that need one, a file or train=FILE,val=FILE,test=FILE.
        modality: of the list, those whose modality holds this word.
        access: of the list, open, form, cred or rules.
        seed: of normscan's own split.
        fractions: healthy subjects for train, val and test, where the split doesn't say.
    """
    from normscan.datasets import download, list_datasets, load, prepare
    from normscan.progress import Progress

    if action not in ACTIONS:
        raise ArgumentError(
            f"datasets {action}: say {', '.join(ACTIONS)}.{nearest(action, ACTIONS)}"
        )
    if action == "list":
        print(_table(list_datasets(modality, access)))
        return
    if id is None:
        raise ArgumentError(f"name a data set: normscan datasets {action} ID.")
    if action == "show":
        print(load(id).text())
        return
    load(id)
    if root is None:
        raise ArgumentError(f"name the folder: normscan datasets {action} {id} --root FOLDER.")
    bar = Progress()
    if action == "download":
        files = download(id, root, progress=bar)
        print(f"{len(files)} files: {root}\nnext: normscan datasets prepare {id} --root {root}")
        return
    table = Path(out or f"{id}.csv")
    cohort = prepare(
        id, root, split, table, only=only, channels=channels, split_file=split_file, seed=seed,
        fractions=fractions, progress=bar,
    )  # fmt: skip
    print(f"{load(id).name}: {cohort!r}")
    for note in cohort.notes:
        print(f"  {note}")
    print(f"cohort: {table}\nnext: normscan cohort {table}")


def _table(recipes: list[Recipe]) -> str:
    rows = [("id", "modality", "access", "task", "name", "licence")]
    rows += [(r.id, r.modality, r.access, r.task, r.name, r.licence) for r in recipes]
    cells = [[_short(cell, n) for cell, n in zip(row, WIDTHS, strict=True)] for row in rows]
    widths = [max(len(line[i]) for line in cells) for i in range(len(WIDTHS))]
    return "\n".join(
        "  ".join(c.ljust(w) for c, w in zip(line, widths, strict=True)).rstrip() for line in cells
    )


WIDTHS = (20, 24, 10, 34, 40, 24)


def _short(text: str, width: int) -> str:
    return text if len(text) <= width else text[: width - 3] + "..."
