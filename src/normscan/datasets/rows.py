"""Rows of a cohort from the files of a download: names, side tables, labels, masks."""

from __future__ import annotations

from collections import Counter

from normscan.datasets.layout import Tree
from normscan.datasets.masks import any_pixel
from normscan.datasets.recipe import FileRule, LabelRule, Recipe
from normscan.datasets.row import Row, fill, first_path
from normscan.datasets.tables import Boxes, SideTable
from normscan.errors import CohortError, ScanError


def collect(recipe: Recipe, tree: Tree) -> list[Row]:
    """Return the rows of all files rules; the first rule that takes a file keeps it.

    Raises:
        CohortError: a side table that isn't there or lacks a column.
    """
    rows: list[Row] = []
    taken: set[str] = set()
    for rule in recipe.files:
        new = [row for row in _matched(rule, tree) if first_path(row) not in taken]
        taken |= {first_path(row) for row in new}
        if new:
            _complete(rule, tree, new)
            rows += new
    return rows


def main_patterns(recipe: Recipe) -> list[str]:
    """Return the pattern of each files rule that makes its rows."""
    return [rule.path or next(iter(rule.channels.values())) for rule in recipe.files]


def _matched(rule: FileRule, tree: Tree) -> list[Row]:
    if rule.path:
        found = {
            path.rpartition("/")[0] or "." if rule.folder else path: groups
            for path, groups in reversed(tree.match(rule.path, rule.exclude))
        }
        return [{"path": p, "_groups": g, **g} for p, g in reversed(found.items())]
    (first, pattern), *others = rule.channels.items()
    rows: list[Row] = []
    seen: set[tuple[tuple[str, str], ...]] = set()
    for path, groups in tree.match(pattern, rule.exclude):
        key = tuple(groups.items())
        if key not in seen:  # a second file of the same names is a copy in another folder
            seen.add(key)
            rows.append({f"path_{first}": path, "_groups": groups, **groups})
    for channel, pattern in others:
        lookup = tree.join(pattern)
        for row in rows:
            row[f"path_{channel}"] = next(iter(lookup.of(row["_groups"])), "")
    return rows


def _complete(rule: FileRule, tree: Tree, rows: list[Row]) -> None:
    """Fill in columns, masks, boxes and labels, in place."""
    for row in rows:
        row.update({name: fill(template, row) for name, template in rule.set.items()})
        row.update(
            {name: words.get(str(row.get(name)), row.get(name)) for name, words in rule.map.items()}
        )
    for table in rule.tables:
        side = SideTable(table, tree)
        for row in rows:
            row.update(side.of(fill(table.on, row), row))
    if rule.boxes:
        boxes = Boxes(rule.boxes, tree)
        for row in rows:
            row.update(boxes.of(fill(rule.boxes.on, row), row))
    lookups = [tree.join(pattern) for pattern in rule.masks]
    foreground = tree.join(rule.foreground) if rule.foreground else None
    for row in rows:
        groups = row.pop("_groups")
        own = {row.get(k) for k in row if k.startswith("path")}
        row["mask"] = [p for lookup in lookups for p in lookup.of(groups) if p not in own]
        if foreground:
            row["foreground"] = next(iter(foreground.of(groups)), "")
        row["_mask_values"] = rule.mask_values
        row["_wants_mask"] = bool(rule.masks)
        row["label"] = _label(rule, tree, row)
        if row["label"] == 0 and rule.label == "pixels":
            row["mask"] = []


def _label(rule: FileRule, tree: Tree, row: Row) -> int | None:
    if rule.label is None or isinstance(rule.label, int):
        return rule.label
    if rule.label == "mask":
        return int(bool(row["mask"]))
    if rule.label == "pixels":
        paths = [tree.root / p for p in row["mask"]]
        try:
            return int(any_pixel(paths, rule.mask_values)) if paths else None
        except ScanError as error:
            tree.notes.append(str(error))
            return None
    return apply_label(rule.label, str(row.get(rule.label.column, "")))


def apply_label(rule: LabelRule, value: str) -> int | None:
    """Return 0, 1 or None for the value of the rule's column."""
    value = value.strip()
    if rule.above is not None:
        try:
            return int(float(value) > rule.above)
        except ValueError:
            return None
    if value in rule.values:
        return rule.values[value]
    known = {k.lower(): v for k, v in rule.values.items()}
    return known.get(value.lower(), rule.other if value else None)


def check_counts(recipe: Recipe, tree: Tree, rows: list[Row]) -> list[str]:
    """Compare what was found with what the recipe expects; name what is missing."""
    notes = []
    for pattern, expected in recipe.parts.items():
        found = len(tree.match(pattern))
        if found not in _values(expected):
            what = "nothing" if not found else str(found)
            notes.append(f"{pattern}: expected {_words(expected)} files, found {what}.")
    labels = Counter(row["label"] for row in rows)
    found_counts = {
        "scans": len(rows),
        "healthy": labels[0],
        "anomalous": labels[1],
        "unlabelled": labels[None],
        "subjects": len({row.get("subject") or first_path(row) for row in rows}),
        "masks": sum(bool(row["mask"]) for row in rows),
    }
    unknown = set(recipe.counts) - set(found_counts)
    if unknown:
        raise CohortError(f"recipe {recipe.id}: counts: unknown {', '.join(sorted(unknown))}.")
    for name, expected in recipe.counts.items():
        if found_counts[name] not in _values(expected):
            notes.append(f"expected {_words(expected)} {name}, found {found_counts[name]}.")
    notes += _missing(rows)
    return notes


def _missing(rows: list[Row]) -> list[str]:
    notes = []
    channels = [k for row in rows[:1] for k in row if k.startswith("path_")]
    for channel in channels:
        lacking = [first_path(row) for row in rows if not row.get(channel)]
        if lacking:
            notes.append(f"no {channel[5:]} file beside {_some(lacking)}.")
    bare = [first_path(r) for r in rows if r["_wants_mask"] and r["label"] == 1 and not r["mask"]]
    if bare:
        notes.append(f"anomalous, but no mask file for {_some(bare)}.")
    return notes


def _some(paths: list[str]) -> str:
    more = f" and {len(paths) - 5} more" if len(paths) > 5 else ""
    return ", ".join(paths[:5]) + more


def _values(expected: int | list[int]) -> list[int]:
    return expected if isinstance(expected, list) else [expected]


def _words(expected: int | list[int]) -> str:
    return " or ".join(map(str, _values(expected)))
