"""The table of backbones in howto/weights.md, from the presets, timm and the packages known."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path

from normscan.networks.sources import PACKAGED
from normscan.networks.taps import TRANSFORMERS, import_timm
from normscan.registry import Card

PAGE = Path(__file__).resolve().parent / "howto" / "weights.md"
MARKERS = ("<!-- backbones -->", "<!-- /backbones -->")
HEADER = ("backbone", "weights", "licence", "from", "hash", "input", "named by presets of")


def rows(cards: Mapping[str, Card]) -> list[tuple[str, ...]]:
    """Return a row for each network that a preset names, and for each package."""
    timm = import_timm()
    users: dict[str, list[str]] = {}
    for card in cards.values():
        for preset in card.presets:
            arguments = card.arguments(preset)
            if preset == "tiny" or arguments.get("weights") != "hub" or "backbone" not in arguments:
                continue
            named = users.setdefault(arguments["backbone"], [])
            if card.id not in named:
                named.append(card.id)
    found = []
    for name, ids in sorted(users.items()):
        known = timm.get_pretrained_cfg(name)
        digest = re.search(r"-([0-9a-f]{8})\.pth$", known.url or "")
        found.append(
            (
                f"`{name}`", "`hub`", known.license or "not said", f"`{known.hf_hub_id}` on the hub",
                f"original file {digest[1]}…" if digest else "the hub's", "ImageNet",
                ", ".join(f"`{id}`" for id in ids),
            )
        )  # fmt: skip
    sizes = ", ".join(name.rpartition("dinov2-")[2] for name in TRANSFORMERS)
    found.append(
        (
            "`hf:facebook/dinov2-...`", "`hub`", "apache-2.0", f"the hub: {sizes}", "the hub's",
            "ImageNet", "",
        )
    )  # fmt: skip
    for name, source in PACKAGED.items():
        users_of = [
            card.id
            for card in cards.values()
            if card.presets.get("lite0", {}).get("weights") == f"pip:{name}"
        ]
        mean, std = (", ".join(f"{v:.4g}" for v in values) for values in (source.mean, source.std))
        used = "preset `lite0` of " + ", ".join(f"`{id}`" for id in users_of) if users_of else ""
        found.append(
            (
                f"`{source.network}`", f"`pip:{name}`", source.licence,
                f"`{source.package}` (PyPI): {source.origin}", f"sha256 {source.sha256[:16]}…",
                f"minus ({mean}), over ({std})", used,
            )
        )  # fmt: skip
    return found


def filled(text: str, table: str) -> str:
    """Return the page with its table up to date."""
    begin, end = MARKERS
    head, _, rest = text.partition(begin)
    return f"{head}{begin}\n\n{table}\n\n{end}{rest.partition(end)[2]}"
