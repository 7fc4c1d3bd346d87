"""Names of scans in ``detector.json``, which travels: pseudonyms there, names again beside them."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from typing import Any

from normscan.cohort import Division
from normscan.identity import names_are_kept, pseudonym, unnamed

_QUOTED = ("doubt",)  # texts that quote names


def hidden(about: dict[str, Any], division: Division | None) -> dict[str, Any]:
    """Return the description of a detector without the names of scans and subjects.

    Args:
        about: content of ``detector.json``.
        division: of the scans that it was fitted with.
    """
    if names_are_kept():
        return about
    training = about["training"]
    known = {} if division is None else _pseudonyms(division)
    known |= {name: _of("scan", name) for name in _named(training)}
    changed = _replaced(about, known)
    for one in changed["training"].get("not_scored", ()):
        head, colon, rest = one["reason"].partition(": ")
        one["reason"] = rest if colon and (os.sep in head or head in known) else one["reason"]
    return changed


def nameless(division: Division) -> Division:
    """Return a division that may travel: it knows scans by their content, under pseudonyms."""
    if names_are_kept():
        return division
    names = _pseudonyms(division)
    return Division(
        [m._replace(scan=names[m.scan], subject=names[m.subject]) for m in division.members]
    )


def shown(about: dict[str, Any], division: Division | None) -> dict[str, Any]:
    """Undo ``hidden`` where the division lies beside it and the user's secret is the same."""
    if division is None:
        return about
    return _replaced(about, {new: name for name, new in _pseudonyms(division).items()})


def names_left(about: dict[str, Any]) -> bool:
    """Whether a description, which ``hidden`` went over, still names scans: no division told it which."""
    nearest = (about.get("gate") or {}).get("nearest") or {}
    review = about["training"].get("healthy") or {}
    names = [*nearest.get("names", ()), *filter(None, [review.get("sets_threshold")])]
    return not all(re.fullmatch(r"scan-[0-9a-f]{12}", name) for name in names)


def _named(record: Any) -> Iterator[str]:
    """Yield the scans that a record names by themselves: those of ``scan`` and ``left_out``."""
    if isinstance(record, list):
        for one in record:
            yield from _named(one)
    elif isinstance(record, dict):
        for key, value in record.items():
            some = value if isinstance(value, list) else [value]
            if key in ("scan", "left_out"):
                yield from (name for name in some if isinstance(name, str))
            else:
                yield from _named(value)


def _pseudonyms(division: Division) -> dict[str, str]:
    members = division.members
    names = {member.subject: _of("subject", member.subject) for member in members}
    return names | {member.scan: _of("scan", member.scan) for member in members}


def _of(kind: str, name: str) -> str:
    return f"{kind}-{pseudonym(f'{kind} {name}', 12)}"


def _replaced(about: dict[str, Any], names: dict[str, str]) -> dict[str, Any]:
    training = {
        key: value if key in ("device", "calibration") else unnamed(value, names)
        for key, value in about["training"].items()
    }
    told = training.get("healthy")
    if isinstance(told, dict):
        quoted = {k: _in_text(told[k], names) for k in _QUOTED if isinstance(told.get(k), str)}
        training["healthy"] = told | quoted
    changed = about | {"training": training}
    nearest = (about.get("gate") or {}).get("nearest")
    if isinstance(nearest, dict) and isinstance(nearest.get("names"), list):
        nearest = nearest | {"names": unnamed(nearest["names"], names)}
        changed["gate"] = about["gate"] | {"nearest": nearest}
    return changed


def _in_text(text: str, names: dict[str, str]) -> str:
    found = [n for n in names if n in text and not n.replace(".", "").isdigit()]
    for name in sorted(found, key=len, reverse=True):
        quoted = names[name].replace("\\", r"\\")
        text = re.sub(rf"(?<!\w){re.escape(name)}(?!\w)", quoted, text)
    return text
