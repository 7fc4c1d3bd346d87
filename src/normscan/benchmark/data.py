"""From the sets of a protocol to cohort tables, and what to say where data are missing."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from normscan.benchmark.protocol import Part, Protocol, Set
from normscan.errors import ArgumentError, CohortError, NormscanError, OutputError
from normscan.io.values import plain, write_json

if TYPE_CHECKING:
    from normscan.cohort import Cohort
    from normscan.progress import Progress


class MissingDataError(NormscanError):
    """Data of a set that aren't on this machine; the message says how to get them."""


@dataclass(frozen=True)
class Data:
    """Where the user's data lie.

    Attributes:
        named: folders or tables by the id of their data set.
        roots: folders whose sub-folders are named by id, or cohorts of the protocol ``local``.
    """

    named: Mapping[str, Path] = field(default_factory=dict)
    roots: tuple[Path, ...] = ()

    @classmethod
    def parse(cls, text: str | None) -> Data:
        """Read ``ID=PATH`` pairs and folders, separated by commas.

        Raises:
            ArgumentError: a path that isn't there, or a name given twice.
        """
        named: dict[str, Path] = {}
        roots: list[Path] = []
        for piece in filter(None, (text or "").split(",")):
            name, equals, path = piece.partition("=")
            if not equals or Path(piece).exists():
                name, path = "", piece
            if not Path(path).exists():
                raise ArgumentError(f"--data: {path} isn't there. Give ID=PATH or a folder.")
            if name in named:
                raise ArgumentError(f"--data names '{name}' twice.")
            if name:
                named[name] = Path(path)
            else:
                roots.append(Path(path))
        return cls(named, tuple(roots))

    def find(self, id: str) -> Path | None:
        """Return the folder or table of a data set, or None."""
        if id in self.named:
            return self.named[id]
        places = [root / name for root in self.roots for name in (id, f"{id}.csv")]
        return next((p for p in places if p.exists()), None)


def local_sets(protocol: Protocol, data: Data) -> list[Set]:
    """Return the sets of a protocol; a ``local`` one stands for every cohort the user named.

    Raises:
        ArgumentError: a local protocol without a cohort.
    """
    sets: list[Set] = []
    for each in protocol.expanded():
        if not any(part.local for part in each.parts):
            sets.append(each)
            continue
        given = {**{_stem(p): p for p in data.roots}, **data.named}
        if not given:
            raise ArgumentError(
                f"the protocol '{protocol.id}' works on your own cohorts: name them with --data "
                "COHORT or --data NAME=COHORT,NAME=COHORT (tables or folders)."
            )
        wrong = [n for n in given if n in ("", ".", "..") or set(n) & set("/\\\0")]
        if wrong:
            raise ArgumentError(f"--data: '{wrong[0]}' can't name a folder. Write NAME=PATH.")
        if len(given) < len(data.roots) + len(data.named):
            raise ArgumentError("two cohorts of --data have the same name. Write NAME=PATH.")
        sets += [each.model_copy(update={"id": name, "title": name}) for name in given]
    return sets


def _stem(path: Path) -> str:
    full = Path(os.path.abspath(path))
    return full.parent.name if full.stem == "cohort" else full.stem


def prepare_set(
    each: Set, data: Data, folder: Path, redo: bool = False, progress: Progress | None = None
) -> Path:
    """Write the cohort table of a set and return its path.

    Tables of public data sets and simulations are made once; the user's own are read every time.

    Args:
        each: the set.
        data: where the user's data lie.
        folder: for the tables; files that have to be made go beside them.
        redo: make it again if it was made with other settings.
        progress: bar.

    Raises:
        MissingDataError: data that aren't there; the message says how to get them.
        OutputError: an earlier table of other settings or data, and no ``redo``.
        NormscanError: data that can't be read.
    """
    found = [_locate(part, data, each) for part in each.parts]
    table, note = folder / f"{each.id}.csv", folder / f"{each.id}.json"
    made_of = plain(
        {
            "parts": [part.model_dump() for part in each.parts],
            "from": [None if path is None else os.path.abspath(path) for path in found],
        }
    )
    costly = any(part.recipe or part.phantom is not None for part in each.parts)
    if costly and table.exists() and note.exists():
        before = json.loads(note.read_text("utf-8"))
        if {k: before.get(k) for k in made_of} == made_of:
            return table
        if not redo:
            raise OutputError(
                f"{table} was made of other data or settings. Take another --out, or --redo."
            )
    table.unlink(missing_ok=True)
    pieces = [folder / f"{each.id}.{number}.csv" for number in range(len(each.parts))]
    for piece in pieces:  # what an interrupted or another run left
        for old in (piece.with_suffix(""), piece.with_name(f"{piece.stem}_files")):
            shutil.rmtree(old, ignore_errors=True)
    cohorts = [
        _read(part, path, piece, progress)
        for part, path, piece in zip(each.parts, found, pieces, strict=True)
    ]
    cohort = cohorts[0] if len(cohorts) == 1 else joined(cohorts, each.id)
    cohort.require_healthy()
    cohort.write(table)
    write_json(note, {**made_of, "notes": list(cohort.notes)})
    return table


def _locate(part: Part, data: Data, each: Set) -> Path | None:
    """Return where a part lies; None for a phantom."""
    if part.phantom is not None:
        return None
    id = part.recipe or part.folder or each.id
    path = data.find(id)
    if path is None and part.local:
        path = next((p for p in data.roots if _stem(p) == each.id), None)
    if path is not None:
        return path
    where = " or ".join(str(root / id) for root in data.roots) or f"--data {id}=FOLDER"
    if not part.recipe:
        raise MissingDataError(f"'{id}' isn't there. {part.get} Put it at {where}.")
    from normscan.datasets.recipe import ACCESS, load

    recipe = load(part.recipe)
    page = f" Page: {recipe.home}." if recipe.home else ""
    raise MissingDataError(
        f"{recipe.name} ('{id}') isn't there. Access {ACCESS[recipe.access]}. {recipe.how}{page} "
        f"Put it at {where}. `normscan datasets show {id}` tells more."
    )


def _read(part: Part, path: Path | None, table: Path, progress: Progress | None) -> Cohort:
    from normscan.cohort import Cohort

    if part.phantom is not None:
        from normscan.phantom import simulate

        def shown(done: int, total: int) -> None:
            if progress is not None:
                progress.update("simulate", done, total)

        folder = table.with_suffix("")
        table.parent.mkdir(parents=True, exist_ok=True)
        cohort = Cohort.read(simulate(folder, **part.phantom, progress=shown))
    elif part.recipe and path is not None and path.is_dir():
        from normscan.datasets import prepare

        listed = path / part.split_file if part.split_file else None
        if listed is not None and not listed.is_file():
            from normscan.datasets.recipe import load

            needs = load(part.recipe).splits[part.split or ""].needs
            raise MissingDataError(
                f"the split '{part.split}' of '{part.recipe}' is a list that isn't part of this "
                f"package: {needs}. Put it at {listed}."
            )
        cohort = prepare(
            part.recipe, path, part.split, table, only=part.only, channels=part.channels,
            split_file=None if listed is None else str(listed),
            fractions=part.fractions, progress=progress,
        )  # fmt: skip
    else:
        assert path is not None
        cohort = Cohort.read(path, fractions=part.fractions)
    if part.take:
        cohort = cohort.select(cohort.table["split"].isin(part.take))
    if part.slices is not None:
        track = None if progress is None else progress.track
        cohort = cohort.slices(*part.slices, progress=track)
    return cohort


def joined(cohorts: list[Cohort], source: str, names: list[str] | None = None) -> Cohort:
    """Put several cohorts into one, with a prefix before scans and subjects.

    A cohort with a single channel keeps only its files, not the channel's name: the names differ
    from set to set. Free columns that not all have are left empty.

    Args:
        cohorts: to be joined.
        source: what to call the result in messages.
        names: prefixes; p0, p1, ... by default.

    Raises:
        CohortError: cohorts with different channels.
    """
    import pandas as pd

    from normscan.cohort import Cohort
    from normscan.cohort.table import holds_files

    tables = []
    for number, cohort in enumerate(cohorts):
        table, prefix = cohort.table.copy(), names[number] if names else f"p{number}"
        channels = [c for c in table.columns if c.startswith("path_")]
        if len(channels) == 1:
            table = table.rename(columns={channels[0]: "path"})
        for column in filter(holds_files, table.columns):
            table[column] = [os.path.abspath(cohort.root / p) if p else "" for p in table[column]]
        for column in ("scan", "subject"):
            table[column] = prefix + "-" + table[column].astype(str)
        tables.append(table)
    if len({"path" in t.columns for t in tables}) > 1:
        raise CohortError(f"{source}: its parts have different channels. Choose one for each.")
    whole: Any = pd.concat([t.astype(object) for t in tables], ignore_index=True)
    whole = whole.where(whole.notna(), "")
    return Cohort(whole, Path(os.sep), [note for c in cohorts for note in c.notes])
