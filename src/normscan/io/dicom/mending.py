"""Series whose identifiers an anonymiser broke, and images that stand twice."""

from __future__ import annotations

import hashlib
from collections import defaultdict
from collections.abc import Iterable, Sequence
from pathlib import Path

import numpy as np

from normscan.errors import ScanError
from normscan.io.dicom.instance import Instance, Plane
from normscan.io.dicom.pixels import Pixels
from normscan.io.dicom.source import read_whole

JOINED = "joined "
"""How the UID begins that a series without a usable one of its own is given."""

FEWEST = 3  # files, before a UID that each has of its own is taken for a broken one
_BY = "patient, study, series number, frame of reference, orientation, size and spacing"
Heap = tuple[str, list[Instance], list[str]]


def rejoined(found: Iterable[Instance]) -> list[Heap]:
    """Gather the files of each series.

    Files without a Series Instance UID, and single planes of which each has one of its own, are
    joined by what else tells series apart, within one folder.

    Returns:
        The UID of each series (one that begins with ``joined`` where it was made here), its files,
        and what is to be said.
    """
    heaps: dict[str, list[Instance]] = defaultdict(list)
    blank: list[Instance] = []
    for one in found:
        if one.series:
            heaps[one.series].append(one)
        else:
            blank.append(one)
    lonely = [some[0] for some in heaps.values() if len(some) == 1 and _plane(some[0])]
    made: list[Heap] = []
    for some in _alike([i for i in blank if _plane(i)]):
        said = f"The Series Instance UID is blank: {len(some)} images were joined by {_BY}."
        made.append((_uid(some), some, [said]))
    made += [(f"none {i.source}", [i], []) for i in blank if not _plane(i)]
    for some in _alike(lonely):
        if len(some) < FEWEST:
            continue
        for one in some:
            del heaps[one.series]
        said = (
            f"Each of {len(some)} files has a Series Instance UID of its own: they were joined by "
            f"{_BY}."
        )
        made.append((_uid(some), some, [said]))
    return [*((uid, some, []) for uid, some in heaps.items()), *made]


def _plane(one: Instance) -> bool:
    return one.kind == "plane" and one.frames == 1 and not one.reason


def _uid(some: Sequence[Instance]) -> str:
    """Return a UID that depends on nothing but the content."""
    return JOINED + min(one.uid or str(one.source) for one in some)


def _alike(files: Sequence[Instance]) -> list[list[Instance]]:
    """Group planes that could be of one series."""
    groups: dict[tuple, list[Instance]] = defaultdict(list)
    for one in files:
        folder = "" if one.source.place else str(Path(one.source.path).parent)
        key = (one.subject, one.number, one.modality, one.localiser, folder)
        groups[(*key, one.rows, one.columns, one.samples)].append(one)
    found = []
    for group in groups.values():
        for part in _parted(group, "study"):
            for same in _parted(part, "frame_of_reference"):
                found += _parallel(same)
    return found


def _parted(group: list[Instance], name: str) -> list[list[Instance]]:
    """Part by a UID, but not by one that each file has of its own."""
    values = [getattr(one, name) for one in group]
    if len(group) >= FEWEST and len(set(values)) == len(group):
        return [group]
    parts: dict[str, list[Instance]] = defaultdict(list)
    for one, value in zip(group, values, strict=True):
        parts[value].append(one)
    return list(parts.values())


def _parallel(group: list[Instance]) -> list[list[Instance]]:
    """Part by direction and spacing."""
    alike: list[list[Instance]] = []
    for one in group:
        for some in alike:
            turned = np.abs(some[0].orientations[0] - one.orientations[0]).max()
            scaled = np.abs(some[0].spacings[0] / one.spacings[0] - 1).max()
            if turned < 1e-3 and scaled < 1e-3:
                some.append(one)
                break
        else:
            alike.append([one])
    return alike


def own_frames(planes: Sequence[Plane]) -> bool:
    """Tell whether each file of a series has a frame of reference of its own, which can't be."""
    files = {id(p.file): p.file.frame_of_reference for p in planes}
    named = [uid for uid in files.values() if uid]
    return len(named) >= FEWEST and len(set(named)) == len(files)


def named(plane: Plane) -> str:
    """Return the name of a plane's file for messages, its frame too where there are several."""
    source = plane.file.source
    name = f"file {source.place}" if source.place else source.path.name
    return name + (f" frame {plane.frame}" if plane.file.frames > 1 else "")


def without_doubles(planes: Sequence[Plane], places: np.ndarray) -> tuple[list[Plane], list[str]]:
    """Drop planes that stand at the place of another and have the same pixels.

    Args:
        planes: of one volume.
        places: number of the place of each.

    Returns:
        The planes that are left, in their order, and a note where any was dropped.
    """
    at: dict[int, list[Plane]] = defaultdict(list)
    for place, plane in zip(places, planes, strict=True):
        at[int(place)].append(plane)
    dropped: list[tuple[Plane, Plane]] = []
    for some in at.values():
        seen: dict[str, Plane] = {}
        some = sorted(some, key=lambda p: (p.file.order, p.file.uid, p.frame))
        for plane in some if len(some) > 1 else ():
            digest = _digest(plane)
            if digest and digest in seen:
                dropped.append((plane, seen[digest]))
            else:
                seen[digest] = plane
    if not dropped:
        return list(planes), []
    gone = {id(plane) for plane, _ in dropped}
    copy, original = dropped[0]
    note = (
        f"{len(dropped)} of {len(planes)} images stand twice, at the same place with the same pixels, "
        f"and were dropped (the first: {named(copy)}, as {named(original)})."
    )
    return [p for p in planes if id(p) not in gone], [note]


def _digest(plane: Plane) -> str:
    """Return a hash of the values of a plane, or an empty string where they can't be decoded."""
    try:
        picture = Pixels(read_whole(plane.file.source), plane.file).frame(plane.frame)
    except (ScanError, OSError):
        return ""
    return hashlib.sha256(np.ascontiguousarray(picture.values).tobytes()).hexdigest()


def repeated(planes: Sequence[Plane], places: np.ndarray) -> list[tuple[list[Plane], str]] | None:
    """Part planes that stand equally often at each place by their instance numbers.

    Returns:
        The planes of each repetition and its name; None where the numbers don't tell.
    """
    at: dict[int, list[Plane]] = defaultdict(list)
    for place, plane in zip(places, planes, strict=True):
        at[int(place)].append(plane)
    stacks = [sorted(some, key=lambda p: (p.file.order, p.frame)) for some in at.values()]
    count = len(stacks[0])
    told = all(len({(p.file.order, p.frame) for p in some}) == len(some) for some in stacks)
    if len(stacks) < 2 or count < 2 or not told or any(len(some) != count for some in stacks):
        return None
    return [([some[n] for some in stacks], f"repetition {n + 1}") for n in range(count)]


def unseparated(planes: Sequence[Plane], places: np.ndarray) -> str:
    """Say how many images stand at the place of another, and name two."""
    first: dict[int, Plane] = {}
    pairs = [(first.setdefault(int(n), p), p) for n, p in zip(places, planes, strict=True)]
    doubles = [(one, two) for one, two in pairs if one is not two]
    one, two = doubles[0]
    return (
        "several images lie at one place and no tag known here tells them apart: "
        f"{len(doubles)} of {len(planes)}, for example {named(two)} at the place of {named(one)} "
        "with other pixels"
    )
