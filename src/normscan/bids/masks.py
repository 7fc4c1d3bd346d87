"""Lesion and brain masks of a BIDS data set: which are there, and whose they are."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from normscan.bids.names import ENTITIES, BidsFile, differing, index_files, same
from normscan.errors import ArgumentError, nearest

Filters = Mapping[str, Any]

# Suffixes of what was drawn on a scan.
DRAWN = {"mask", "roi", "dseg", "brainmask", "lesion", "lesionmask"}
# Suffixes that are no scan at all.
NO_SCAN = DRAWN | {"probseg", "defacemask", "photo"}
_LESION = re.compile(r"lesion|tumou?r|stroke|infarct|wmh|ha?emorrhage", re.IGNORECASE)
# Entities that say how a mask was drawn, not which scan it belongs to.
_OF_MASKS = {"label", "desc", "res", "den", "atlas", "seg", "scale", "mod", "space"}


def matches(file: BidsFile, filters: Filters) -> bool:
    """Tell whether a file has the wanted entities; ``run`` 1 is ``01``.

    Raises:
        ArgumentError: no such entity.
    """
    known = (*ENTITIES, "datatype", "suffix")
    for key, wanted in filters.items():
        if key not in known:
            raise ArgumentError(
                f"'{key}' is no entity of BIDS.{nearest(key, known)} Known: {', '.join(known)}."
            )
        values = wanted if isinstance(wanted, list | tuple | set) else [wanted]
        texts = ["" if v is None else str(v).removeprefix(f"{key}-") for v in values]
        if not any(same(key, file.get(key), text) for text in texts):
            return False
    return True


def find_masks(
    places: Sequence[Path], known: Mapping[Path, list[BidsFile]], filters: Filters
) -> tuple[list[BidsFile], list[BidsFile]]:
    """Return the lesion masks and the brain masks of data sets.

    A brain mask counts beside the images only: that of another pipeline mostly lies on a grid of
    its own.

    Args:
        places: roots of the data sets, that of the images first.
        known: files of those that were listed already.
        filters: of the lesion masks.

    Raises:
        ArgumentError: no such entity in the filters.
    """
    lesions, brains = [], []
    for place in places:
        for file in known[place] if place in known else index_files(place).files:
            words = (file.get("label"), file.get("desc"), file.suffix)
            if file.suffix not in DRAWN:
                continue
            if file.suffix == "roi" or any(_LESION.search(word) for word in words):
                if matches(file, filters):
                    lesions.append(file)
            elif place == places[0] and (file.suffix == "brainmask" or "brain" in words):
                brains.append(file)
    return lesions, brains


def mask_of(
    images: Sequence[BidsFile], masks: Sequence[BidsFile], kind: str, notes: list[str]
) -> Path | None:
    """Return the mask of the first image that has one, the one with most entities in common.

    Args:
        images: channels of a scan.
        masks: of all scans.
        kind: ``mask`` or ``foreground``, for the note.
        notes: take one where several masks fit.
    """
    for image in images:
        fitting = [mask for mask in masks if _belongs(mask, image)]
        if fitting:
            shared = [len(set(m.entities.items()) & set(image.entities.items())) for m in fitting]
            best = [m for m, n in zip(fitting, shared, strict=True) if n == max(shared)]
            if len(best) > 1:
                keys = differing(best) or {"folder"}
                notes.append(
                    f"Some scans have several {kind} files, told apart by "
                    f"{', '.join(sorted(keys))}; the first by folder and name was taken."
                    + (" Choose with masks." if kind == "mask" else "")
                )
            return best[0].path
    return None


def _belongs(mask: BidsFile, image: BidsFile) -> bool:
    own = {"", "orig", "individual", image.suffix}
    spaces = {mask.get("space"), image.get("space")}
    if mask.get("ses") != image.get("ses") or (len(spaces) > 1 and not spaces <= own):
        return False
    asked = {k: v for k, v in mask.entities.items() if k not in _OF_MASKS}
    return all(same(key, image.get(key), value) for key, value in asked.items())
