"""Usual folder layouts, recognised by the names of their folders."""

from __future__ import annotations

import re
import warnings
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from normscan.cohort.dicom import dicom_rows, may_hold_dicom
from normscan.cohort.table import EXAMPLE
from normscan.errors import CohortError, printable
from normscan.io.address import split_address
from normscan.io.files import EXTENSIONS, extension, stem, walk_files

if TYPE_CHECKING:
    import pandas as pd

HEALTHY = {"no", "normal", "healthy", "good", "control", "controls"}
ANOMALOUS = {
    "yes", "abnormal", "anomaly", "anomalous", "anomalies", "ungood", "bad", "unhealthy",
    "diseased", "defect", "defective",
}  # fmt: skip
SPLIT_NAMES = {
    "train": "train", "training": "train", "val": "val", "valid": "val", "validation": "val",
    "test": "test", "testing": "test",
}  # fmt: skip
MASKS = {"ground_truth", "groundtruth", "ground-truth", "label", "labels", "mask", "masks", "gt"}
IMAGES = {"img", "imgs", "image", "images"}
KNOWN = (
    "no/ yes/; normal/ abnormal/; healthy/ anomaly/; control/ patients/; good/ ungood/; "
    "train/ val/ test/ above any of these; MVTec AD (train/good, test/<defect>, ground_truth/<defect>); BMAD "
    "(test/Ungood/img, test/Ungood/label); masks as <stem>_mask.* or in a folder masks/"
)
_MASK_STEM = re.compile(r"[_-]mask(_?\d+)?$", re.IGNORECASE)
_SUBJECT = re.compile(r"^(sub-[A-Za-z0-9]+)(_|$)")


@dataclass(frozen=True)
class _File:
    path: str  # relative, with slashes
    folders: tuple[str, ...]  # lower case, without mask and image folders
    names: tuple[str, ...]  # the same folders as they are spelt
    stem: str
    is_mask: bool


def read_layout(folder: Path) -> tuple[pd.DataFrame, list[str]]:
    """Make a table of a folder by the names of its sub-folders (in any case).

    Args:
        folder: the folder.

    Returns:
        A table with path (relative to the folder), label, mask, split, subject and, where there
        are several kinds of anomaly, ``defect``; and notes of what was taken for what.

    Raises:
        CohortError: no images, or no known layout; the message shows what is there.
    """
    import pandas as pd

    files = [_describe(p) for p in _walk(folder)]
    images = [f for f in files if not f.is_mask]
    if not images and may_hold_dicom(folder):
        return _dicom_layout(folder)
    if not images:
        raise CohortError(
            f"{folder}: holds no images ({', '.join(EXTENSIONS)}). What it holds: "
            f"{_listing(folder)}. {EXAMPLE}"
        )
    level = _class_level(images, folder)
    others = _check_classes(images, level, folder)
    masks = _Masks([f for f in files if f.is_mask], images)
    defects = {f.names[level] for f in images if f.folders[level] not in HEALTHY}
    rows = []
    for image in images:
        healthy = image.folders[level] in HEALTHY
        split = SPLIT_NAMES.get(image.folders[level - 1], "") if level else ""
        subject = _SUBJECT.match(image.stem)
        row = {
            "path": image.path,
            "label": "0" if healthy else "1",
            "mask": masks.of(image),
            "split": split,
            "subject": subject.group(1) if subject else "",
        }
        if len(defects) > 1 or others:
            row["defect"] = "" if healthy else image.names[level]
        rows.append(row)
    return pd.DataFrame(rows, dtype=object), _notes(rows, others, masks)


def _dicom_layout(folder: Path) -> tuple[pd.DataFrame, list[str]]:
    """Make a table of a folder of DICOM; labels are known where healthy folders are named."""
    import pandas as pd

    rows, notes = dicom_rows(folder)
    if not rows:
        raise CohortError(
            f"{folder}: holds DICOM, but no series that can be read. {' '.join(notes)} {EXAMPLE}"
        )
    images = [_describe(_inside(folder, row["path"])) for row in rows]
    try:
        level = _class_level(images, folder)
        _check_classes(images, level, folder)
    except CohortError:
        notes.append("No folder says who is healthy: every label is unknown.")
        return pd.DataFrame([{**row, "label": ""} for row in rows], dtype=object), notes
    for row, image in zip(rows, images, strict=True):
        row["label"] = "0" if image.folders[level] in HEALTHY else "1"
        row["split"] = SPLIT_NAMES.get(image.folders[level - 1], "") if level else ""
    return pd.DataFrame(rows, dtype=object), notes


def _inside(folder: Path, address: str) -> str:
    """Return a file's path; of a folder, that of a file in it."""
    place, _ = split_address(folder / address)
    inner = place / "image" if place.is_dir() else place
    return inner.relative_to(folder).as_posix()


def _notes(rows: list[dict[str, str]], others: set[str], masks: _Masks) -> list[str]:
    notes = []
    if others:
        notes.append(f"Taken as anomalous beside the healthy folder: {', '.join(sorted(others))}.")
    if not any(row["subject"] for row in rows):
        notes.append(
            "The folder doesn't name subjects, so every scan counts as a subject of its own. If "
            "some belong together, give a table with a subject column."
        )
    if masks.unused():
        notes.append(f"{masks.unused()} masks belong to no image, or to one that has another.")
    return notes


def pictures_in(folder: Path) -> list[str]:
    """List the pictures and volumes below a folder, without masks; empty where all is DICOM."""
    return [name for name in _walk(folder) if not _describe(name).is_mask]


def _walk(folder: Path) -> list[str]:
    """List the image files below, sorted; hidden files and link loops are left out."""
    names = sorted(walk_files(folder))
    for name in names:
        if extension(name) not in EXTENSIONS and Path(name).suffix.lower() in EXTENSIONS:
            warnings.warn(
                f"left out {printable(name)}: what follows # in its name means a part of a file. Rename "
                "it.",
                stacklevel=3,
            )
    return [name for name in names if extension(name) in EXTENSIONS]


def _describe(path: str) -> _File:
    parts = Path(path).parts
    lower = [p.lower() for p in parts[:-1]]
    name = stem(parts[-1])
    in_masks = any(p in MASKS for p in lower)
    kept = [i for i, p in enumerate(lower) if p not in MASKS and p not in IMAGES]
    return _File(
        path=path,
        folders=tuple(lower[i] for i in kept),
        names=tuple(parts[i] for i in kept),
        stem=name,
        is_mask=in_masks or bool(_MASK_STEM.search(name)),
    )


def _class_level(images: list[_File], folder: Path) -> int:
    """Return 0 where the classes are at the top, 1 where they stand below train/val/test."""
    top = {f.folders[0] if f.folders else "" for f in images}
    if top <= set(SPLIT_NAMES):
        level = 1
    elif top & HEALTHY:
        level = 0
    else:
        raise _unknown(folder, images)
    if any(len(f.folders) <= level for f in images):
        raise _unknown(folder, images)
    if not any(f.folders[level] in HEALTHY for f in images):
        raise _unknown(folder, images)
    return level


def _check_classes(images: list[_File], level: int, folder: Path) -> set[str]:
    """Return the folders that are anomalous only because they stand beside the healthy one."""
    classes = {f.folders[level]: f.names[level] for f in images}
    others = {name for low, name in classes.items() if low not in HEALTHY | ANOMALOUS}
    if level == 0 and others and set(classes) & ANOMALOUS:
        raise _unknown(folder, images)
    return others


class _Masks:
    """Finds the mask of an image by folder and stem."""

    def __init__(self, masks: list[_File], images: list[_File]) -> None:
        self.by_place: dict[tuple[tuple[str, ...], str], str] = {}
        self.count = len(masks)
        self.found: set[str] = set()
        for mask in masks:
            key = _MASK_STEM.sub("", mask.stem).lower()
            self.by_place.setdefault((mask.folders, key), mask.path)
        stems = Counter(f.stem.lower() for f in images)
        self.unique = {s for s, count in stems.items() if count == 1}

    def of(self, image: _File) -> str:
        """Return the path of the mask, or an empty string."""
        key = image.stem.lower()
        places = [image.folders]
        if image.folders and image.folders[0] in SPLIT_NAMES:
            places.append(
                image.folders[1:]
            )  # MVTec: test/crack/000 and ground_truth/crack/000_mask
        if key in self.unique:
            places.append(())
        for place in places:
            path = self.by_place.get((place, key), "")
            if path:
                self.found.add(path)
                return path
        return ""

    def unused(self) -> int:
        """Return how many masks no image asked for."""
        return self.count - len(self.found)


def _unknown(folder: Path, images: list[_File]) -> CohortError:
    seen = sorted({"/".join(Path(f.path).parts[:-1][:2]) or "images at the top" for f in images})
    shown = ", ".join(seen[:8]) + (f" and {len(seen) - 8} more" if len(seen) > 8 else "")
    return CohortError(
        f"{folder}: its layout isn't known. Found: {shown}. Known: {KNOWN}. {EXAMPLE} Save it as "
        f"{folder.name}/cohort.csv."
    )


def _listing(folder: Path) -> str:
    names = sorted(p.name for p in folder.iterdir() if not p.name.startswith("."))
    return ", ".join(names[:8]) + (" ..." if len(names) > 8 else "") or "nothing"
