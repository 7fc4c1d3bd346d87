"""Splits of the literature, put on the rows of a data set."""

from __future__ import annotations

import json
from collections import Counter
from importlib.resources import files
from pathlib import Path
from typing import TYPE_CHECKING, Any

from normscan.datasets.row import Row, file_fields, first_path
from normscan.datasets.tables import read
from normscan.errors import ArgumentError, CohortError, nearest

if TYPE_CHECKING:
    from normscan.datasets.recipe import Recipe, SplitRule

PARTS = {
    "train": "train", "training": "train", "val": "val", "valid": "val", "validation": "val",
    "test": "test", "testing": "test", "extra": "extra", "": "",
}  # fmt: skip


def apply(recipe: Recipe, name: str | None, rows: list[Row], split_file: str | None) -> list[str]:
    """Fill the column ``split`` of the rows, in place.

    Args:
        recipe: of the data set.
        name: of the split; None takes the ids of ``split_file``, or without one nothing, so that
            the cohort makes its own.
        rows: all rows.
        split_file: id list of the user: CSV (an id column and ``split``), JSON
            (``{"train": ["a.png"], "test": {"0": [...], "1": [...]}}``), or one text or CSV file a
            part as ``train=a.csv,val=b.csv,test=c.txt``.

    Returns:
        Notes.

    Raises:
        ArgumentError: no such split; a split that needs a file.
        CohortError: a list that fits no row, a leak that the recipe doesn't declare.
    """
    if name is None:
        # The download's own folders are a split only if the user asks for it.
        for row in rows:
            row["given_split"] = row.pop("split", "")
        return _from_list(_lists(split_file), rows, split_file) if split_file else []
    if name not in recipe.splits:
        known = ", ".join(recipe.splits) or "none"
        raise ArgumentError(
            f"'{recipe.id}' has no split '{name}'; it has {known}.{nearest(name, recipe.splits)}"
        )
    rule = recipe.splits[name]
    if rule.rule == "none":
        raise ArgumentError(
            f"the split '{name}' of '{recipe.id}' can't be made from the download alone: "
            f"{rule.note or rule.needs}"
        )
    used = [
        row
        for row in rows
        if all(str(row.get(column, "")) in words for column, words in rule.where.items())
    ]
    notes = [f"Split '{name}': {rule.source}"]
    if rule.rule == "list":
        file = split_file or (str(files("normscan.datasets") / rule.file) if rule.file else "")
        if not file:
            raise ArgumentError(
                f"the split '{name}' of '{recipe.id}' is a list that isn't part of this package: "
                f"{rule.needs}. Download it and add --split_file FILE."
            )
        notes += _from_list(_lists(file), used, file)
    else:
        _by_rule(rule, used)
    chosen = {id(row) for row in used}
    for row in rows:
        if id(row) not in chosen:
            row["split"] = ""
    return notes + _check_counts(rule, rows) + _leaks(rule, name, rows)


def _by_rule(rule: SplitRule, rows: list[Row]) -> None:
    if rule.rule == "given":
        for row in rows:
            value = str(row.get(rule.column, ""))
            part = rule.values.get(value, PARTS.get(value.lower()))
            if part is None:
                raise CohortError(
                    f"{first_path(row)}: '{value}' in '{rule.column}' names no part of the split."
                )
            row["split"] = part
        return
    for row in rows:
        row["split"] = "test" if row["label"] is not None else ""
    if rule.rule == "normals":
        from sklearn.model_selection import train_test_split

        healthy = [row for row in rows if row["label"] == 0]
        if len(healthy) > 1:
            kept, _ = train_test_split(healthy, test_size=rule.test_size, random_state=rule.seed)
            for row in kept:
                row["split"] = "train"


def _lists(file: str | None) -> dict[str, str]:
    """Return the part of every id in an id list."""
    assert file is not None
    found: dict[str, str] = {}
    if "=" in file and not Path(file).exists():
        for piece in file.split(","):
            part, _, name = piece.partition("=")
            listed = Path(name.strip())
            found |= dict.fromkeys(_ids(listed), _part(part.strip(), listed))
        return found
    path = Path(file)
    if path.suffix.lower() == ".json":
        try:
            data = json.loads(path.read_text("utf-8"))
        except (OSError, ValueError) as error:
            raise CohortError(f"{path}: is no readable JSON ({str(error)[:100]}).") from error
        if not isinstance(data, dict):
            raise CohortError(f"{path}: isn't of the form {{'train': [...], 'test': [...]}}.")
        for name, ids in data.items():
            for group in ids.values() if isinstance(ids, dict) else [ids]:
                if not isinstance(group, list):
                    raise CohortError(f"{path}: '{name}' holds no list of ids.")
                found |= {str(id): _part(name, path) for id in group}
        return found
    frame = read(_existing(path))
    column = next((c for c in frame.columns if c.lower() in ("split", "part", "fold", "set")), None)
    if column is None:
        raise CohortError(
            f"{path}: has no column 'split'. Name one file a part: train=FILE,test=FILE."
        )
    ids = next(c for c in frame.columns if c != column)
    return {id: _part(part, path) for id, part in zip(frame[ids], frame[column], strict=True)}


def _ids(path: Path) -> list[str]:
    """Return the cells that may be ids of a list of one part: every column, if it is a table."""
    if _existing(path).suffix.lower() in (".csv", ".tsv"):
        frame = read(path)
        names = [c for c in frame.columns if c.lower() in _ID_COLUMNS] or list(frame.columns[:1])
        return list(frame[names[0]])
    text = path.read_text("utf-8", errors="replace")
    return [line.split()[0] for line in text.splitlines() if line.strip()]


_ID_COLUMNS = ("path", "img_path", "image_path", "filename", "file", "img_name", "image", "id")


def _existing(path: Path) -> Path:
    if not path.is_file():
        raise CohortError(f"{path}: no such list. Give the file that the split needs.")
    return path


def _part(word: str, path: Path) -> str:
    if word.lower() not in PARTS:
        raise CohortError(f"{path}: '{word}' is no part of a split: train, val, test or extra.")
    return PARTS[word.lower()]


def _from_list(parts: dict[str, str], rows: list[Row], source: str | None) -> list[str]:
    """Match ids with whatever name of the rows fits most of them."""
    by_kind = {
        kind: {form(id): part for id, part in parts.items()} for kind, form in _FORMS.items()
    }
    names = [_names(row) for row in rows]
    best = max(
        ((kind, key) for kind in _FORMS for key in _KEYS),
        key=lambda pair: sum(n[pair[1]] in by_kind[pair[0]] for n in names),
    )
    table = by_kind[best[0]]
    for row, name in zip(rows, names, strict=True):
        row["split"] = table.get(name[best[1]], "")
    placed = sum(bool(row["split"]) for row in rows)
    if not placed:
        raise CohortError(
            f"{source}: none of its {len(parts)} ids, such as {next(iter(parts), 'none')}, is in "
            "the download."
        )
    absent = len(set(table) - {name[best[1]] for name in names})
    return [f"{absent} ids of the split's list aren't in the download."] if absent else []


_KEYS = ("path", "name", "stem", "scan", "subject")
_FORMS = {
    "path": lambda id: id.replace("\\", "/").lstrip("./"),
    "name": lambda id: file_fields({"path": id.replace("\\", "/")})["name"],
    "stem": lambda id: file_fields({"path": id.replace("\\", "/")})["stem"],
}


def _names(row: Row) -> dict[str, str]:
    return {
        **{k: str(row.get(k) or "") for k in ("scan", "subject")},
        **{k: v for k, v in file_fields(row).items() if k in _KEYS},
    }


def _check_counts(rule: SplitRule, rows: list[Row]) -> list[str]:
    found = Counter(f"{row['split']} {row['label']}" for row in rows)
    return [
        f"The split should have {count} in {key} (part and label), here are {found[key]}."
        for key, count in rule.counts.items()
        if found[key] != count
    ]


def _leaks(rule: SplitRule, name: str, rows: list[Row]) -> list[str]:
    """Let a published split stand that has subjects on both sides, if the recipe says so."""
    places: dict[str, set[str]] = {}
    for row in rows:
        if row.get("subject") and row["split"]:
            places.setdefault(row["subject"], set()).add(row["split"])
    leaking = sum("test" in parts and len(parts) > 1 for parts in places.values())
    if not leaking:
        return []
    if not rule.leaks:
        raise CohortError(
            f"the split '{name}' has {leaking} subjects on both sides of the test. Use normscan's "
            "own split (no --split)."
        )
    for row in rows:
        row["patient"] = row.pop("subject", "")
    return [
        f"{leaking} subjects stand in the test and in another part of this published split, so it "
        "measures memory too. It is kept for comparison: the column patient holds the subjects."
    ]


def only(rows: list[Row], wanted: str | None) -> list[Row]:
    """Return the rows with some values, given as ``column=value|value,column=value``.

    Raises:
        ArgumentError: no such column or value; those that exist are named.
    """
    for piece in (wanted or "").split(","):
        if not piece.strip():
            continue
        column, _, text = piece.partition("=")
        column, values = column.strip(), {v.strip() for v in text.split("|")}
        there: set[Any] = {str(row.get(column, "")) for row in rows}
        columns = sorted({k for row in rows for k in row if not k.startswith("_")})
        if column not in columns:
            raise ArgumentError(
                f"only: there is no column '{column}': {', '.join(columns)}."
                f"{nearest(column, columns)}"
            )
        if not values <= there:
            shown = ", ".join(sorted(there)[:20])
            raise ArgumentError(
                f"only: '{column}' is never {' or '.join(sorted(values - there))}: {shown}."
            )
        rows = [row for row in rows if str(row.get(column, "")) in values]
    return rows
