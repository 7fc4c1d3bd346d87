"""Which images belong together: series found in a heap of files, each usable or left out."""

from __future__ import annotations

import hashlib
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field, replace
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np

from normscan.errors import ScanError
from normscan.io.dicom.instance import PROJECTIONS, Instance, Plane, describe
from normscan.io.dicom.mending import (
    JOINED,
    named,
    own_frames,
    rejoined,
    repeated,
    unseparated,
    without_doubles,
)
from normscan.io.dicom.scales import mixed_scales
from normscan.io.dicom.source import PathLike, Source, find_sources, looks_like_dicom

SAME_DIRECTION = 1e-3
"""Largest difference of direction cosines, and of spacings in parts, within a volume."""

_REPEATED = (
    "repetition", "temporal position", "acquisition", "acquisition time", "content time",
)  # fmt: skip

SAME_PLACE = 0.01
"""Planes nearer to each other than this part of a pixel lie at one place."""


@dataclass(frozen=True)
class SeriesInfo:
    """A series, or the part of a series that makes one scan.

    Attributes:
        label: how to choose it, ``#series=<label>``: its number where no other series has it, else
            eight hexadecimal digits made of its UID; ``.1``, ``.2`` for the parts of a series.
        uid: Series Instance UID.
        number: Series Number, or an empty string.
        modality: CT, MR, DX, ...
        images: number of planes or frames.
        size: rows, columns.
        kind: ``volume``, ``picture`` or ``clip`` (frames that are chosen by ``#frame=``).
        reason: why it is left out, or an empty string.
        split: by what its part differs from the others, for example ``echo time 30``.
        repetition: of parts that only time or order tells apart, which one it is, from 1; else 0.
        subject: eight hexadecimal digits that stand for the Patient ID (``normscan.identity``), or an
            empty string.
        files: the files that it is made of, sorted.
        notes: what is to be known of it: copies, files left out.
    """

    label: str
    uid: str = field(repr=False)
    number: str
    modality: str
    images: int
    size: tuple[int, int]
    kind: str = "volume"
    reason: str = ""
    split: str = ""
    repetition: int = 0
    subject: str = field(default="", repr=False)
    files: tuple[Path, ...] = field(default=(), repr=False)
    notes: tuple[str, ...] = ()
    planes: tuple[Plane, ...] = field(default=(), repr=False, compare=False)

    @property
    def usable(self) -> bool:
        """True if it makes a scan."""
        return not self.reason

    @property
    def address(self) -> str:
        """As ``label``, by the hash of its UID: true whatever other series lie beside it."""
        part = self.label.partition(".")[2]
        return _hash(self.uid) + (f".{part}" if part else "")

    @property
    def is_image(self) -> bool:
        """True if it can be looked at, even where it belongs in no volume."""
        return not self.planes[0].file.reason and self.kind != "volume"

    @property
    def name(self) -> str:
        """``series-<8 hexadecimal digits>``, with its part behind: fit for a file name."""
        return f"series-{self.address}".replace(".", "_")

    def __str__(self) -> str:
        """Return one line without anything that could name a patient."""
        what = f"{self.label}: {self.modality}, {self.images} image{'s' * (self.images != 1)}"
        what += f" of {self.size[0]} x {self.size[1]}" if min(self.size) else ""
        what += f", {self.split}" if self.split else ""
        return what + (f"; left out: {self.reason}" if self.reason else "")


def find_series(path: PathLike | Sequence[PathLike]) -> list[SeriesInfo]:
    """Find all DICOM series of a file, a folder, a zip archive or a list of files.

    Only headers are read. What can't be one volume is split: other orientation, matrix or pixel
    spacing, localisers among the rest, several images at one place (echoes, b-values, repetitions).

    Returns:
        The series, usable and left out, in the order of their numbers.

    Raises:
        ScanError: nothing there, no DICOM in it, an unsafe archive, a single file that is damaged.
    """
    sources = find_sources(path)
    alone = len(sources) == 1 and not sources[0].place and isinstance(path, str | Path)
    found: list[Instance] = []
    broken: list[str] = []
    for source in sources:
        try:
            if looks_like_dicom(source.head()):
                found.append(_described(source))
        except ScanError as error:
            if alone and Path(path) == sources[0].path:  # type: ignore[arg-type]
                raise
            broken.append(str(error))
        except OSError as error:
            broken.append(f"{source}: can't be read ({error.strerror}).")
    where = path if isinstance(path, str | Path) else f"a list of {len(sources)} files"
    if not found:
        if broken:
            raise ScanError(f"{where}: no DICOM file could be read. The first: {broken[0]}")
        if isinstance(where, str | Path) and Path(where).is_dir():
            raise ScanError(
                f"{where}: is a folder without DICOM images ({len(sources)} files). Give the image "
                "file itself, or read a Cohort."
            )
        raise ScanError(
            f"{where}: holds no DICOM image ({len(sources)} files were looked at). Give the files of an "
            "image series."
        )
    return _labelled(_by_series(found, broken))


def _described(source: Source) -> Instance:
    return describe(source) if source.place else _remembered(source)


@lru_cache(maxsize=4096)
def _remembered(source: Source) -> Instance:
    return describe(source)


def _by_series(found: list[Instance], broken: list[str]) -> list[list[SeriesInfo]]:
    """Return the parts of each series."""
    notes = []
    if broken:
        notes.append(f"{len(broken)} files couldn't be read. The first: {broken[0]}")
    return [_parts(uid, heap, [*said, *notes]) for uid, heap, said in rejoined(found)]


def _parts(uid: str, heap: list[Instance], notes: list[str]) -> list[SeriesInfo]:
    heap, copies = _without_copies(heap)
    parts: list[SeriesInfo] = []
    for reason, some in _grouped(heap, lambda i: i.reason).items():
        if reason:
            parts.append(_info(uid, [Plane(i, 0) for i in some], "picture", reason))
    apart = len(parts)
    good = [i for i in heap if not i.reason]
    lost = len(heap) - len(good)
    for file in good:
        if file.kind != "plane":
            parts.append(_info(uid, [Plane(file, 0)], file.kind, _bare(file)))
    planes = [Plane(i, f) for i in good if i.kind == "plane" for f in range(i.frames)]
    scattered = own_frames(planes)
    parts += _mixed([p for block in _blocks(planes, scattered) for p in _volumes(uid, block)])
    if scattered:
        notes = [
            f"Each of the {len({id(p.file) for p in planes})} files has a Frame of Reference UID of its "
            "own, which can't be: they were joined by patient, orientation, size and spacing.",
            *notes,
        ]
    aside = [p for p in parts[apart:] if not p.usable]
    notes = [*copies, *notes]
    if aside:
        count = sum(p.images for p in aside)
        notes.append(f"{count} images of the series were left out: {aside[0].reason}.")
    if lost and len(good):
        notes.append(
            f"{lost} files of the series were left out: {next(i.reason for i in heap if i.reason)}."
        )
    return [replace(p, notes=(*notes, *p.notes)) if p.usable else p for p in parts]


def _without_copies(heap: list[Instance]) -> tuple[list[Instance], list[str]]:
    """Drop files of the same SOP Instance UID at the same place."""
    kept: dict[tuple, Instance] = {}
    for one in heap:
        place = None if one.positions is None else np.round(one.positions, 3).tobytes()
        kept.setdefault((one.uid or str(one.source), place), one)
    dropped = len(heap) - len(kept)
    notes = [f"{dropped} files are copies of others (same SOP Instance UID)."] if dropped else []
    return list(kept.values()), notes


def _bare(file: Instance) -> str:
    """Return why an image without a place in the patient is left out, or an empty string."""
    if file.localiser:
        return "a localiser"
    if file.modality in PROJECTIONS:
        return ""
    if file.secondary:
        return "a secondary capture: a screenshot or a report as picture"
    if file.kind == "clip":
        return ""
    return "has no position and orientation, so it can't be placed in a volume"


def _grouped(heap: Iterable[Any], key: Callable[[Any], Any]) -> dict[Any, list[Any]]:
    groups: dict[Any, list[Any]] = defaultdict(list)
    for one in heap:
        groups[key(one)].append(one)
    return groups


def _blocks(planes: list[Plane], scattered: bool = False) -> list[list[Plane]]:
    """Part planes by what no volume can mix: matrix, localiser, frame of reference, direction.

    Args:
        planes: of one series.
        scattered: every file has a frame of reference of its own, so that it says nothing.
    """
    frames = {p.file.frame_of_reference for p in planes} - {""}
    inherited = next(iter(frames)) if len(frames) == 1 else ""
    groups = _grouped(
        planes,
        lambda p: (
            p.file.localiser, p.file.rows, p.file.columns, p.file.samples,
            "" if scattered else p.file.frame_of_reference or inherited,
        ),
    )  # fmt: skip
    blocks: list[list[Plane]] = []
    for group in groups.values():
        alike: list[list[Plane]] = []
        for plane in group:
            for block in alike:
                if _parallel(block[0], plane):
                    block.append(plane)
                    break
            else:
                alike.append([plane])
        blocks += alike
    return blocks


def _parallel(one: Plane, other: Plane) -> bool:
    turned = float(np.abs(one.orientation - other.orientation).max())
    scaled = float(np.abs(one.spacing / other.spacing - 1).max())
    return turned < SAME_DIRECTION and scaled < SAME_DIRECTION


def _volumes(uid: str, block: list[Plane]) -> list[SeriesInfo]:
    """Split a block where several images lie at one place."""
    first = block[0].file
    reason = "a localiser" if first.localiser else ""
    if first.samples == 3 and len(block) > 1:
        reason = reason or "colour pictures in space (a derived map), no measured values"
    notes: list[str] = []
    parts = _split(block, "")
    if parts is None:
        block, notes = without_doubles(block, _places(block))
        parts = _split(block, "") or repeated(block, _places(block))
    if parts is None:
        reason = reason or unseparated(block, _places(block))
        return [_info(uid, block, "volume", reason)]
    made = []
    for planes, split in parts:
        why, more = _scales(planes)
        info = _info(uid, planes, "volume", reason or why, split)
        made.append(replace(info, notes=(*notes, *more)))
    names = {
        part.split.rsplit(" ", 1)[0] if part.split[-1:].isdigit() else part.split for part in made
    }
    if len(made) > 1 and len(names) == 1 and names <= set(_REPEATED):
        made = [replace(part, repetition=n) for n, part in enumerate(made, 1)]
    return made


def _scales(planes: list[Plane]) -> tuple[str, list[str]]:
    if len(planes) < 2:
        return "", []
    scales = [p.file.scales[p.frame] for p in planes]
    return mixed_scales(scales, [named(p) for p in planes], planes[0].file.modality)


def _places(planes: list[Plane]) -> np.ndarray:
    """Number the distinct places along the normal: one number per plane."""
    along = np.array([p.position for p in planes]) @ planes[0].normal
    order = np.argsort(along, kind="stable")
    apart = max(SAME_PLACE * float(planes[0].spacing.min()), 1e-4)
    numbers = np.empty(len(planes), int)
    numbers[order] = np.concatenate([[0], np.cumsum(np.diff(along[order]) > apart)])
    return numbers


def _split(planes: list[Plane], split: str) -> list[tuple[list[Plane], str]] | None:
    """Part planes until no two lie at one place; None where no tag does it.

    A tag counts if each of its values covers more than half of the places.
    """
    places = _places(planes)
    distinct = len(set(places))
    if distinct == len(planes):
        return [(planes, split)]
    names = list(dict.fromkeys(n for p in planes for n in p.file.marks[p.frame]))
    for name in names:
        values = [p.file.marks[p.frame].get(name, "") for p in planes]
        groups = _grouped(range(len(planes)), values.__getitem__)
        covered = [len({places[i] for i in members}) for members in groups.values()]
        if len(groups) < 2 or min(covered) * 2 <= distinct:
            continue
        made = []
        for value in sorted(groups, key=_by_number):
            what = name if "time" in name and "echo" not in name else f"{name} {value}"[:40]
            parts = _split([planes[i] for i in groups[value]], f"{split}, {what}".strip(", "))
            if parts is None:
                break
            made += parts
        else:
            return made
    return None


def _by_number(text: str) -> tuple[float, str]:
    try:
        return float(text), text
    except ValueError:
        return float("inf"), text


def _mixed(parts: list[SeriesInfo]) -> list[SeriesInfo]:
    """Leave out single planes beside a volume, and planes that all look another way."""
    usable = [p for p in parts if p.usable]
    largest = max((p.images for p in usable), default=0)
    if len(usable) < 2:
        return parts
    what = _differing(usable)
    if largest == 1:
        reason = f"mixed: {len(usable)} images of different {what}"
    elif largest > 2:
        reason = f"a single image of another {what} beside a volume"
    else:
        return parts
    return [replace(p, reason=reason) if p.usable and p.images == 1 else p for p in parts]


def _differing(parts: list[SeriesInfo]) -> str:
    """Say in what the planes of parts differ."""
    planes = [p.planes[0] for p in parts]
    first = planes[0]

    def far(name: str) -> bool:
        values = np.stack([getattr(p, name) for p in planes])
        return bool(np.abs(values - getattr(first, name)).max() >= SAME_DIRECTION)

    found = [
        ("orientation", far("orientation")),
        ("size", len({p.size for p in parts}) > 1),
        ("spacing", far("spacing")),
        ("frame of reference", len({p.file.frame_of_reference for p in planes}) > 1),
    ]
    words = [word for word, differs in found if differs]
    return " or ".join([", ".join(words[:-1])] * (len(words) > 1) + words[-1:]) or "kind"


def _info(
    uid: str, planes: list[Plane], kind: str, reason: str = "", split: str = ""
) -> SeriesInfo:
    first = planes[0].file
    if kind == "volume" and len(planes) == 1:
        kind = "picture"
    own = uid if uid.startswith(JOINED) else first.series or uid
    return SeriesInfo(
        label="", uid=own, number=first.number, modality=first.modality,
        images=first.frames if kind == "clip" else len(planes), size=(first.rows, first.columns),
        kind=kind, reason=reason, split=split, subject=first.subject,
        files=tuple(sorted({p.file.source.path for p in planes})), planes=tuple(planes),
    )  # fmt: skip


def _labelled(series: list[list[SeriesInfo]]) -> list[SeriesInfo]:
    """Give each part its label; the order depends on nothing but the content."""
    numbers = Counter(parts[0].number for parts in series)
    result = []
    for parts in sorted(series, key=lambda p: (_by_number(p[0].number), p[0].uid)):
        name = parts[0].number
        if not name.isdigit() or len(name) > 12 or numbers[name] > 1:
            name = _hash(parts[0].uid)
        ordered = sorted(parts, key=lambda p: (not p.usable, *_sorting(p)))
        for place, part in enumerate(ordered, 1):
            label = name if len(ordered) == 1 else f"{name}.{place}"
            result.append(replace(part, label=label))
    return result


def _sorting(part: SeriesInfo) -> tuple:
    first = min(part.planes, key=lambda p: (p.file.order, p.file.uid)).file
    return (-part.images, tuple(map(_by_number, part.split.split())), first.order, first.uid)


def _hash(uid: str) -> str:
    return hashlib.sha256(uid.encode()).hexdigest()[:8]


def choose(
    found: list[SeriesInfo],
    path: object,
    series: str | int | None,
    repetition: int | None = None,
) -> SeriesInfo:
    """Return the one usable series, or the one that was asked for.

    An image file that is named by itself needs no place in a volume, and may be a localiser.

    Raises:
        ScanError: none is usable, several are and none was asked for, no such series.
    """
    last = max((s.repetition for s in found), default=0)
    if repetition is not None:
        found = [s for s in found if s.repetition == repetition]
        if not found:
            has = f"only 1 to {last}" if last else "no repetitions, so leave it out"
            raise ScanError(f"{path}: there is no #repetition={repetition}; it has {has}.")
    usable = [s for s in found if s.usable]
    again = f" or #repetition=1 to {last}" if last and repetition is None else ""
    listing = "; ".join(map(str, found[:12])) + (f" and {len(found) - 12} more" * (len(found) > 12))
    if series is None:
        if len(usable) == 1:
            return usable[0]
        if len(found) == 1 and str(found[0].files[0]) == str(path) and found[0].is_image:
            return replace(found[0], reason="")
        if not usable:
            raise ScanError(
                f"{path}: holds no DICOM series that can be read. Found: {listing}. "
                "Export the images again, or give the folder of another series."
            )
        raise ScanError(
            f"{path}: holds {len(usable)} DICOM series. Choose one by #series=, for example "
            f"{path}#series={usable[0].label}{again}. Found: {listing}."
        )
    asked = str(series).strip()
    for same in (
        [s for s in found if asked == s.label],
        [s for s in found if asked in (s.uid, s.number, _hash(s.uid))],
        [s for s in found if asked == _hash(s.uid) + "." + s.label.partition(".")[2]],
    ):
        good = [s for s in same if s.usable]
        if len(good) == 1 or len(same) == 1:
            if not good:
                raise ScanError(f"{path}: the series {asked} is left out: {same[0].reason}.")
            return good[0]
        if same:
            listing = "; ".join(map(str, same[:12]))
            raise ScanError(
                f"{path}: the series {asked} is no single volume. Choose one of its parts by "
                f"#series=, for example #series={same[0].label}{again}. Found: {listing}."
            )
    raise ScanError(f"{path}: has no series {asked[:64]}. Found: {listing}.")
