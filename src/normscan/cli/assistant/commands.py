"""The commands ``normscan mcp`` and ``normscan skill``."""

from __future__ import annotations

from pathlib import Path

from normscan.errors import ArgumentError


def mcp(root: list[str]) -> None:
    """Serve tools to an assistant by the Model Context Protocol, over standard input and output.

    Args:
        root: folders that it may read and write, joined by commas; nothing outside is touched.
    """
    try:
        from normscan.cli.assistant.server import serve
    except ImportError as error:
        if error.name is None or not error.name.startswith("mcp"):
            raise
        raise ArgumentError(
            "this command needs the package mcp: pip install 'normscan[mcp]'."
        ) from error
    serve(root)


def skill(out: str | None = None) -> None:
    """Print what an assistant should know to use the command line, in the form of an agent skill.

    Args:
        out: folder of skills, in which normscan/SKILL.md is written instead.
    """
    from normscan.io import atomic_path

    text = (Path(__file__).parent / "SKILL.md").read_text(encoding="utf-8")
    if out is None:
        print(text, end="")
        return
    path = Path(out) / "normscan" / "SKILL.md"
    with atomic_path(path) as temporary:
        temporary.write_text(text, encoding="utf-8")
    print(f"skill: {path}")
