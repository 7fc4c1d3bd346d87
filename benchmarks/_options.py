"""What the scripts beside this one ask for alike on their command lines, and how they fill a page."""

from __future__ import annotations

import argparse
from pathlib import Path

MARK = "<!-- tables -->"


def cell_options(
    description: str | None, sets: tuple[str, ...], steps: tuple[str, ...] = ("run", "table")
) -> argparse.ArgumentParser:
    """Return a parser for scripts that run cells of sets and methods, then make a table of them."""
    parser = argparse.ArgumentParser(description=description)
    parser.add_argument("step", choices=steps)
    parser.add_argument("--data", type=Path)
    parser.add_argument("--weights", default="random")
    parser.add_argument("--work", type=Path, required=True)
    parser.add_argument("--sets", nargs="+", default=sets)
    parser.add_argument("--methods", nargs="+", default=["patchcore", "padim"])
    return parser


def gate_options(description: str | None) -> argparse.ArgumentParser:
    """Return a parser for scripts that fit gates."""
    parser = argparse.ArgumentParser(description=description)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--work", type=Path, required=True, help="where the phantoms are simulated")
    return parser


def parsed(parser: argparse.ArgumentParser) -> argparse.Namespace:
    """Return the options that were given; the folder for work is there then."""
    found = parser.parse_args()
    found.work.mkdir(parents=True, exist_ok=True)
    return found


def write_below(page: Path, text: str, mark: str = MARK) -> None:
    """Write below a mark of a page; what stands above it in words stays."""
    head = page.read_text(encoding="utf-8").partition(mark)[0] if page.exists() else ""
    page.write_text(f"{head}{mark}\n\n{text}", encoding="utf-8")
