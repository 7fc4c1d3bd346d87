"""The table of sentences: objects, states and templates by the kind of scan."""

from __future__ import annotations

import tomllib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from normscan.errors import ArgumentError, nearest
from normscan.networks.backbones import comes_from_state

TABLE = Path(__file__).with_name("prompts.toml")
Template = Literal["photo", "varied", "plain"]


def _read(path: Path) -> dict[str, Any]:
    try:
        return tomllib.loads(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError) as error:
        raise ArgumentError(
            f"the table of prompts {path} can't be read ({error}). It is a TOML file like "
            f"{TABLE.name} of normscan."
        ) from error


@dataclass(frozen=True)
class Wording:
    """What is said of a kind of scan.

    Attributes:
        object: what the sentences speak of.
        healthy: states, each with {} for the object.
        ill: likewise.
        concepts: classes of healthy images.
        sentences: of concepts, what may be seen there.
        templates: of photographs, by name, each with {}.
    """

    object: str
    healthy: tuple[str, ...]
    ill: tuple[str, ...]
    concepts: tuple[str, ...]
    sentences: dict[str, list[str]]
    templates: dict[str, list[str]]

    def ensembles(self, template: Template) -> list[list[str]]:
        """All sentences about healthy and about ill objects: every state in every template."""
        frames = self.templates[template]
        return [
            [frame.format(state.format(self.object)) for state in states for frame in frames]
            for states in (self.healthy, self.ill)
        ]


def wording(prompts: str, table: str | None = None, medical: bool = True) -> Wording:
    """Return what the table says of a kind of scan.

    Args:
        prompts: an entry of the table, or else any object in words, which then has the states that
            hold for all.
        table: a file of one's own, whose entries come before those of the table.
        medical: take an entry's own states besides those that hold for all.

    Raises:
        ArgumentError: the file can't be read or an entry is no such thing.
    """
    if comes_from_state():  # what followed from the sentences is stored
        return Wording("", (), (), (), {}, _read(TABLE)["templates"])
    base, own = _read(TABLE), _read(Path(table)) if table else {}
    unknown = set(own) - set(base)
    if unknown:
        name = sorted(unknown)[0]
        raise ArgumentError(f"{table} has an unknown part '{name}'.{nearest(name, base)}")
    objects = {**base["objects"], **own.get("objects", {})}
    entry = objects.get(prompts, {"object": prompts})
    states = {**base["states"], **own.get("states", {})}
    name = entry.get("object")
    further = {kind: entry.get(kind, []) if medical else [] for kind in ("healthy", "ill")}
    concepts = entry.get("concepts", [])
    said = [*states["healthy"], *states["ill"], *further["healthy"], *further["ill"]]
    if not isinstance(name, str) or any("{}" not in state for state in said):
        raise ArgumentError(
            f"the entry '{prompts}' of the table of prompts needs an object, and {{}} in each state."
        )
    return Wording(
        name, (*states["healthy"], *further["healthy"]), (*states["ill"], *further["ill"]),
        tuple(concepts), entry.get("sentences", {}),
        {**base["templates"], **own.get("templates", {})},
    )  # fmt: skip


def concepts_of(
    words: Wording, classes: Sequence[str], prompts: str, least: int = 2
) -> tuple[str, ...]:
    """The classes that an image is compared with: those that are given, else the table's.

    Raises:
        ArgumentError: fewer than ``least``.
    """
    chosen = tuple(classes) or words.concepts
    if len(chosen) < least and not comes_from_state():
        raise ArgumentError(
            f"an image is compared with at least {least} classes of healthy images, and '{prompts}' "
            f"has {len(chosen)} in the table of prompts. Name them: --classes "
            '\'["axial brain MRI", "sagittal brain MRI"]\'.'
        )
    return chosen
