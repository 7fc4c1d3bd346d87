"""Who is healthy, by a column of the tables of a BIDS data set."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from normscan.bids.tables import Cells
from normscan.errors import ArgumentError, CohortError, nearest

Rule = str | Mapping[str, Mapping[str, int]] | None

COLUMNS = ("label", "diagnosis", "group", "dx")
HEALTHY = {
    "cn", "con", "control", "controls", "ctrl", "hc", "healthy", "healthy control",
    "healthy controls", "healthy_control", "nc", "normal", "normal control",
}  # fmt: skip
_SHOWN = 8
EXAMPLE = 'for example "group:control=0,patient=1", or "group:control=0,*=1" for all others'


def parse_rule(rule: Rule) -> tuple[str, dict[str, str]]:
    """Return the column of a rule, and the label ``0`` or ``1`` of each of its values.

    Args:
        rule: ``"group:control=0,patient=1"``; ``*`` stands for all values that aren't named. A
            column alone, ``"group"``, is read by its words. Or a dict ``{"group": {"control": 0}}``.

    Raises:
        ArgumentError: another form, or a label that is neither 0 nor 1.
    """
    if isinstance(rule, Mapping):
        if len(rule) != 1:
            raise ArgumentError(f"label={dict(rule)!r}: name one column, {EXAMPLE}.")
        column, values = next(iter(rule.items()))
        pairs = [(str(k), str(v)) for k, v in dict(values).items()]
    else:
        column, colon, rest = (rule or "").partition(":")
        split = [part.rpartition("=") for part in rest.split(",")] if colon else []
        pairs = [(name.strip(), label.strip()) for name, _, label in split]
    column = column.strip()
    wrong = [name for name, label in pairs if not name or label not in ("0", "1")]
    if not column or wrong:
        raise ArgumentError(
            f"label={rule!r}: write the column, a colon, and value=0 (healthy) or value=1 "
            f"(anomalous), {EXAMPLE}."
        )
    return column, dict(pairs)


def label_rows(rows: Sequence[Cells], rule: Rule, source: str) -> tuple[list[str], list[str]]:
    """Return the label of each row, ``0``, ``1`` or empty, and notes of how it came about.

    Args:
        rows: what the tables say of each scan.
        rule: as in ``parse_rule``; None takes the first column called label, diagnosis, group or
            dx in which a value is known to mean healthy.
        source: the data set, to name it in errors.

    Raises:
        CohortError: no such column.
        ArgumentError: as ``parse_rule``.
    """
    names = list(dict.fromkeys(name for row in rows for name in row))
    if rule is None:
        known = {name.lower(): name for name in reversed(names)}
        for column in COLUMNS:
            if column in known:
                values = _values(rows, known[column])
                if column == "label" and values and set(values) <= {"0", "1"}:
                    return _apply(rows, known[column], {"0": "0", "1": "1"}, values)
                if any(value.lower() in HEALTHY for value in values):
                    return _apply(rows, known[column], {}, values)
        return [""] * len(rows), [
            "No column says who is healthy (looked for label, diagnosis, group, dx), so all labels "
            f"are unknown. Give a rule, {EXAMPLE}."
        ]
    column, mapping = parse_rule(rule)
    if column not in names:
        raise CohortError(
            f"{source}: its tables have no column '{column}', only "
            f"{', '.join(names) or 'none at all'}.{nearest(column, names)}"
        )
    values = _values(rows, column)
    if not mapping and not any(value.lower() in HEALTHY for value in values):
        raise CohortError(
            f"{source}: no value of '{column}' is known to mean healthy: {_some(values)}. "
            f"Say which is, {EXAMPLE}."
        )
    return _apply(rows, column, mapping, values)


def _some(values: Sequence[str]) -> str:
    more = f" and {len(values) - _SHOWN} more" if len(values) > _SHOWN else ""
    return ", ".join(values[:_SHOWN]) + more


def _values(rows: Sequence[Cells], column: str) -> list[str]:
    return sorted({row.get(column, "") for row in rows} - {""})


def _apply(
    rows: Sequence[Cells], column: str, mapping: Mapping[str, str], values: Sequence[str]
) -> tuple[list[str], list[str]]:
    # Without a mapping the words decide: a healthy one is 0, any other 1.
    words = {value: "0" if value.lower() in HEALTHY else "1" for value in values}
    default = mapping.get("*", "")
    label = {value: mapping.get(value, default) for value in values} if mapping else words
    said = [
        f"{word}: {_some([v for v in values if label[v] == code])}"
        for code, word in (("0", "healthy"), ("1", "anomalous"), ("", "unknown"))
        if code in label.values()
    ]
    found = [label.get(row.get(column, ""), "") for row in rows]
    empty = sum(not row.get(column) for row in rows)
    notes = [f"Labels by the column {column}: {'; '.join(said)}."]
    if empty:
        notes.append(f"{empty} scans have no {column}, so their label is unknown.")
    return found, notes
