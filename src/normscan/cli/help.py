"""What the command line says of methods without importing them: from the registry's index.

The parser of ``normscan fit METHOD`` needs the method's module and with it torch. Its help and the
list of methods are asked for far more often than a method is trained, and must come at once.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable, Sequence
from typing import Any

from normscan import registry

COLUMNS = ("id", "family", "regime", "dims", "paper")


def methods(as_json: bool) -> str:
    """Return the list of methods as a table or as JSON."""
    entries = registry.index()["methods"]
    shown = (*COLUMNS, "presets", "summary")
    rows = [{"id": id, **entry} for id, entry in entries.items()]
    if as_json:
        return json.dumps([{k: row[k] for k in shown} for row in rows], indent=2)
    table = [COLUMNS] + [
        tuple(", ".join(map(str, r[c])) if c == "dims" else str(r[c]) for c in COLUMNS)
        for r in rows
    ]
    widths = [max(len(line[i]) for line in table) for i in range(len(COLUMNS))]
    return "\n".join(
        "  ".join(cell.ljust(w) for cell, w in zip(line, widths, strict=True)).rstrip()
        for line in table
    )


def method_list() -> str:
    """Return the help of ``normscan fit`` without a method."""
    lines = [f"  {id:<26}{entry['summary']}" for id, entry in registry.index()["methods"].items()]
    return "\n".join(
        [
            "usage: normscan fit METHOD --cohort COHORT --out FOLDER [options]", "", "methods:",
            *lines, "", "`normscan fit METHOD --help` lists all options.",
        ]
    )  # fmt: skip


def method_help(id: str, preset: str) -> str | None:
    """Return the help of ``normscan fit METHOD``, or None for a method or preset not indexed."""
    found = registry.index()
    entry = found["methods"].get(id)
    if entry is None or preset not in entry["changed"]:
        return None
    parser = argparse.ArgumentParser(f"normscan fit {id}", description=entry["summary"])
    _add(parser.add_argument_group("Train a method"), found["fit"], {})
    group = parser.add_argument_group(f"{id}, preset {preset}")
    _add(group, entry["options"], entry["changed"][preset])
    return parser.format_help()


def _add(group: Any, options: Sequence[Sequence[str]], changed: dict[str, str]) -> None:
    for flags, metavar, text in options:
        shown = changed.get(flags, text).replace("%", "%%")
        group.add_argument(*flags.split(), metavar=metavar, help=shown)


def build_index(parser: Callable[[registry.Card, str], Any]) -> dict[str, Any]:
    """Return the index from the registered methods and their parsers.

    Args:
        parser: makes the parser of ``normscan fit`` for a method and a preset.
    """
    cards = registry.load_all()
    common: dict[str, list[str]] = {}
    entries = {}
    for id, card in cards.items():
        options = _options(parser(card, "paper"))
        own = {f: o for f, o in options.items() if f.split()[0].lstrip("-") in card.defaults}
        common = common or {f: o for f, o in options.items() if f not in own}
        changed = {}
        for preset in card.presets:
            other = _options(parser(card, preset))
            changed[preset] = {f: other[f][2] for f, o in own.items() if other[f] != o}
        entries[id] = {
            "module": card.build.__module__,
            "family": card.family,
            "regime": card.regime,
            "dims": list(card.dims),
            "paper": card.paper,
            "presets": [p for p in card.presets if p != "tiny"],
            "summary": card.summary,
            "options": list(own.values()),
            "changed": changed,
        }
    return {"fit": list(common.values()), "methods": entries}


def _options(parser: Any) -> dict[str, list[str]]:
    """Flags, metavar and help of a parser's options, by the flags."""
    formatter = parser._get_formatter()
    found = {}
    for action in parser._actions:
        flags = " ".join(action.option_strings)
        if not flags or action.option_strings[0] in ("-h", "--print_config"):
            continue
        metavar = formatter._metavar_formatter(action, action.dest.upper())(1)[0]
        found[flags] = [flags, metavar, formatter._expand_help(action)]
    return found


def written(index: dict[str, Any]) -> str:
    """Return the index as text, one line an entry, so that a change is seen in its line."""
    common = json.dumps(index["fit"], ensure_ascii=False)
    lines = [
        f"  {json.dumps(id)}: {json.dumps(entry, ensure_ascii=False)}"
        for id, entry in index["methods"].items()
    ]
    return f'{{"fit": {common},\n "methods": {{\n' + ",\n".join(lines) + "\n}}\n"
