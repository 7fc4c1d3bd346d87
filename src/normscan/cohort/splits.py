"""Who trains, who sets the threshold, who tests: by subject, and never one of them twice."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from normscan.cohort.division import Division, content_of
from normscan.errors import ArgumentError, CohortError, ScanError
from normscan.io.read import content_hash

if TYPE_CHECKING:
    import pandas as pd


def assign_splits(
    table: pd.DataFrame,
    root: Path,
    seed: int = 0,
    fractions: Sequence[float] = (0.7, 0.1, 0.2),
    source: str = "The cohort",
    division: Division | None = None,
) -> tuple[pd.DataFrame, list[str]]:
    """Fill the column ``split``, or check and complete the one that is there.

    Without any split: the subjects with healthy scans are shuffled by ``seed`` and divided into
    train, val and test by ``fractions`` (of subjects, not of scans); with three subjects or more
    every part with a fraction above 0 gets one. Subjects that share an exact copy of a file count
    as one. Anomalous scans go to test, and so do all scans of a subject with an anomalous one,
    unless fewer than three subjects are wholly healthy; then they are divided too, and their
    anomalous scans in train and val become ``extra``. Unlabelled scans become ``extra``.

    With a split: anomalous and unlabelled scans in train and val become ``extra``, since both are
    healthy only; where there is a train but no val, val is drawn from the training subjects.

    With the division of a detector nothing is drawn: scans stand where they stood when it was
    fitted, and those that it wasn't given go to test, unlabelled ones to extra.

    Args:
        table: a normalised table.
        root: folder of its relative paths.
        seed: of the shuffle.
        fractions: of train, val and test.
        source: what to call the cohort in messages.
        division: of the scans that a detector was fitted with.

    Returns:
        The table with its splits, and notes of what was done.

    Raises:
        ArgumentError: fractions that are negative or don't sum to 1.
        CohortError: a subject in more than one of train, val and test.
    """
    parts = [float(f) for f in fractions]
    if len(parts) != 3 or min(parts) < 0 or parts[0] <= 0 or abs(sum(parts) - 1) > 1e-6:
        raise ArgumentError(
            f"fractions={tuple(fractions)}: give three numbers for train, val and test, none "
            "negative, train above 0, that sum to 1, for example (0.7, 0.1, 0.2)."
        )
    table = table.copy()
    notes: list[str] = []
    given = [str(s) for s in table["split"]]
    if any(given):
        check_subjects(table, source)
        if "train" in given and "val" not in given:
            notes += _take_over(table, root, division) if division else []
            if "val" not in set(table["split"]):
                notes += _draw_val(table, root, seed, parts)
    elif division:
        notes += _take_over(table, root, division)
    else:
        notes += _divide(table, root, seed, parts)
    notes += only_healthy_trains(table)
    unassigned = sum(not s for s in table["split"])
    if unassigned:
        notes.append(f"{unassigned} scans have no split and belong to no part.")
    return table, notes


def check_subjects(table: pd.DataFrame, source: str) -> None:
    """Refuse a table in which a subject stands in two of train, val and test.

    ``extra`` may train some methods, so it may share subjects with train and val, not with test.

    Raises:
        CohortError: naming up to five such subjects.
    """
    places: dict[str, set[str]] = {}
    for subject, split in zip(table["subject"], table["split"], strict=True):
        if split:
            places.setdefault(subject, set()).add(split)
    bad = [s for s, p in places.items() if len(p - {"extra"}) > 1 or {"test", "extra"} <= p]
    if bad:
        shown = "; ".join(f"{s} in {' and '.join(sorted(places[s]))}" for s in sorted(bad)[:5])
        raise CohortError(
            f"{source}: {len(bad)} subjects stand in more than one split, so the test would "
            f"measure memory: {shown}. Put all scans of a subject into one split."
        )


def groups(table: pd.DataFrame, root: Path) -> list[str]:
    """Return for each row the name of its group: subjects joined by exact copies of their files."""
    parent: dict[str, str] = {s: s for s in table["subject"]}

    def find(name: str) -> str:
        while parent[name] != name:
            parent[name] = parent[parent[name]]
            name = parent[name]
        return name

    owner: dict[tuple[str, ...], str] = {}
    for subject, key in zip(table["subject"], copies(table, root), strict=True):
        if key is None:
            continue
        first, second = find(owner.setdefault(key, subject)), find(subject)
        # The smaller name leads, so that the order of the rows changes nothing.
        parent[max(first, second)] = min(first, second)
    return [find(s) for s in table["subject"]]


def copies(table: pd.DataFrame, root: Path) -> list[tuple[str, ...] | None]:
    """Return for each row the hashes of its files, or None where no other row can be its copy.

    Only files of equal size are read, so a cohort of large volumes isn't read twice.
    """
    columns = [c for c in table.columns if c == "path" or c.startswith("path_")]
    rows = [tuple(root / p for p in row if p) for row in table[columns].to_numpy()]
    sizes = [tuple(_size(p) for p in paths) for paths in rows]
    counts: dict[tuple[int, ...], int] = {}
    for key in sizes:
        counts[key] = counts.get(key, 0) + 1
    return [
        _hashes(paths) if counts[key] > 1 and min(key) >= 0 else None
        for paths, key in zip(rows, sizes, strict=True)
    ]


def shared_copy(one: tuple[pd.DataFrame, Path], other: tuple[pd.DataFrame, Path]) -> str | None:
    """Return the name of a scan in the other table whose files are exact copies of one in the first.

    Args:
        one: a table and the root of its paths.
        other: likewise.
    """
    import pandas as pd

    tables = []
    for table, root in (one, other):
        columns = [c for c in table.columns if c == "path" or c.startswith("path_")]
        tables.append(
            table[columns].map(lambda p, root=root: os.path.abspath(root / p) if p else "")
        )
    keys = copies(pd.concat(tables, ignore_index=True).fillna(""), Path())
    held = {key for key in keys[: len(one[0])] if key is not None}
    names = zip(keys[len(one[0]) :], other[0]["scan"], strict=True)
    return next((str(name) for key, name in names if key in held), None)


def _size(path: Path) -> int:
    try:
        return path.stat().st_size
    except OSError:
        return -1


def _hashes(paths: tuple[Path, ...]) -> tuple[str, ...] | None:
    try:
        return tuple(content_hash(p) for p in paths)
    except ScanError:
        return None  # the summary reports it, and so does the loop that reads it


def draw_references(
    table: pd.DataFrame, root: Path, count: int, seed: int, lent: Sequence[str] = ()
) -> tuple[pd.DataFrame, list[str]]:
    """Return the table with so many training scans, each of another subject, drawn by a seed.

    The other subjects of train go to val, since nothing is learnt of them. Further scans of the
    drawn subjects, and exact copies, belong to no part. Where train has too few, the healthy scans
    of parts that nobody named may be references too: first the maps, then a threshold and a test.

    Args:
        table: a normalised table with splits.
        root: folder of its relative paths.
        count: of references, or 0.
        seed: of the draw.
        lent: parts whose scans were drawn, in the order in which they are taken back.

    Returns:
        The table, and notes of what was taken back.

    Raises:
        CohortError: it has fewer training subjects.
    """
    table, notes = table.copy(), []
    group = groups(table, root) if count else list(table["subject"])
    rows = _in_train(table, group)
    for part in lent:
        if len(rows) < count:
            back = (table["split"] == part) & (table["label"] == 0).fillna(False)
            table.loc[back, "split"] = "train"
            rows = _in_train(table, group)
            if back.any():
                notes.append(
                    f"The {int(back.sum())} healthy scans drawn for {part} may be references."
                )
    if len(rows) < count:
        raise CohortError(
            f"{count} healthy references were asked for (shots), and train has scans of "
            f"{len(rows)} subjects. Ask for fewer, or give more."
        )
    generator = np.random.default_rng(seed)
    drawn = sorted(rows)
    drawn = [drawn[i] for i in generator.permutation(len(drawn))[:count]]
    chosen = {sorted(rows[name])[generator.integers(len(rows[name]))] for name in drawn}
    table["split"] = [
        split if split != "train" or scan in chosen else "" if name in drawn else "val"
        for name, scan, split in zip(group, table["scan"], table["split"], strict=True)
    ]
    return table, notes


def _in_train(table: pd.DataFrame, group: Sequence[str]) -> dict[str, list[str]]:
    """The scans of train, by the group of subjects that they are of."""
    rows: dict[str, list[str]] = {}
    for name, scan, split in zip(group, table["scan"], table["split"], strict=True):
        if split == "train":
            rows.setdefault(name, []).append(scan)
    return rows


def _divide(table: pd.DataFrame, root: Path, seed: int, fractions: list[float]) -> list[str]:
    """Fill an empty split column in place."""
    group = groups(table, root)
    labels = _labels(table)
    healthy = {g for g, label in zip(group, labels, strict=True) if label == 0}
    sick = {g for g, label in zip(group, labels, strict=True) if label == 1}
    divided = healthy - sick if len(healthy - sick) >= 3 else healthy
    place = _shuffle(sorted(divided), seed, fractions)
    table["split"] = [place.get(g, "test" if g in sick else "extra") for g in group]
    joined = len(set(table["subject"])) - len(set(group))
    notes = [
        f"No split was given: {len(divided)} healthy subjects were divided by seed {seed} into "
        + ", ".join(
            f"{sum(v == part for v in place.values())} {part}" for part in ("train", "val", "test")
        )
        + "; anomalous scans go to test."
    ]
    if joined:
        notes.append(f"{joined} subjects hold exact copies of others and were kept with them.")
    mixed = len((healthy & sick) - divided)
    if mixed:
        notes.append(f"{mixed} subjects with healthy and anomalous scans are wholly in test.")
    return notes


def _take_over(table: pd.DataFrame, root: Path, division: Division) -> list[str]:
    """Fill the split column in place as a detector's scans were divided; others don't train."""
    columns = [c for c in table.columns if c == "path" or c.startswith("path_")]
    rows = [
        (scan, subject, content_of(root / p for p in files if p))
        for scan, subject, files in zip(
            table["scan"], table["subject"], table[columns].to_numpy(), strict=True
        )
    ]
    places, named = division.places(rows)
    splits = []
    for place, given, label in zip(places, table["split"], _labels(table), strict=True):
        if given:  # a table with train, but without val
            splits.append(place if given == "train" and place in ("train", "val") else given)
        elif place is None:
            splits.append("extra" if label is None else "test")
        else:
            splits.append(place)
    table["split"] = splits
    counts = ", ".join(f"{splits.count(s)} {s}" for s in ("train", "val", "test") if s in splits)
    new = sum(place is None for place in places)
    notes = [
        f"The detector's own split was taken over: {counts}; {new} scans are new to it and were not "
        "in its cohort."
    ]
    if named:
        notes.append(
            f"{named} scans were known by their name and subject, not by their content. If they are "
            "others, give the table a column split."
        )
    return notes


def _shuffle(names: list[str], seed: int, fractions: list[float]) -> dict[str, str]:
    """Map each name to train, val or test."""
    order = [names[i] for i in np.random.default_rng(seed).permutation(len(names))]
    n_val, n_test = (_share(len(names), f) for f in fractions[1:])
    if len(names) == 2:  # the threshold comes before a test of healthy subjects
        n_val, n_test = (1, 0) if fractions[1] > 0 else (0, n_test)
    while n_val + n_test >= len(names) and n_val + n_test > 0:
        n_val, n_test = (n_val - 1, n_test) if n_val > n_test else (n_val, n_test - 1)
    parts = ["val"] * n_val + ["test"] * n_test + ["train"] * (len(names) - n_val - n_test)
    return dict(zip(order, parts, strict=True))


def _share(count: int, fraction: float) -> int:
    at_least = 1 if fraction > 0 and count >= 2 else 0
    return max(at_least, round(count * fraction))


def _draw_val(table: pd.DataFrame, root: Path, seed: int, fractions: list[float]) -> list[str]:
    """Move some training subjects to val, in place."""
    group = groups(table, root)
    rows = list(zip(group, _labels(table), table["split"], strict=True))
    names = sorted({g for g, label, split in rows if split == "train" and label == 0})
    if len(names) < 2 or fractions[1] == 0:
        return ["There is no val split, and too few training subjects to draw one from."]
    share = fractions[1] / (fractions[0] + fractions[1])
    count = min(len(names) - 1, _share(len(names), share))
    order = np.random.default_rng(seed).permutation(len(names))
    drawn = {names[i] for i in order[:count]}
    table["split"] = ["val" if s == "train" and g in drawn else s for g, _, s in rows]
    return [
        f"There is no val split: {count} of {len(names)} training subjects were drawn for it by "
        f"seed {seed}."
    ]


def only_healthy_trains(table: pd.DataFrame) -> list[str]:
    """Move anomalous and unlabelled scans out of train and val, in place."""
    notes = []
    labels = _labels(table)
    for wanted, word in ((1, "anomalous"), (None, "unlabelled")):
        moved = [
            split in ("train", "val") and label == wanted
            for split, label in zip(table["split"], labels, strict=True)
        ]
        if any(moved):
            table["split"] = [
                "extra" if m else s for m, s in zip(moved, table["split"], strict=True)
            ]
            notes.append(
                f"{sum(moved)} {word} scans of train and val were put into extra: train and val "
                "are healthy only."
            )
    return notes


def _labels(table: pd.DataFrame) -> list[int | None]:
    known = table["label"].notna()
    return [int(v) if there else None for v, there in zip(table["label"], known, strict=True)]
