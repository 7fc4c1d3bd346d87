"""File names of BIDS: entities, suffix, extension; and the files of a data set."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from normscan.errors import CohortError
from normscan.io.files import EXTENSIONS, extension

# In the order in which they stand in a file name (BIDS 1.11.1, schema 2.0.1, rules/entities).
ENTITIES = (
    "sub", "tpl", "ses", "cohort", "sample", "task", "tracksys", "acq", "nuc", "voi", "ce", "trc",
    "stain", "rec", "dir", "run", "mod", "echo", "flip", "inv", "mt", "part", "proc", "hemi",
    "space", "split", "recording", "chunk", "atlas", "seg", "scale", "res", "den", "label", "desc",
)  # fmt: skip
ANOMALY = "anomaly"
"""Value of ``desc`` in what normscan writes."""

# Entities whose values are numbers: run-1 is run-01. The labels of others are texts.
_NUMBERS = {"run", "echo", "flip", "inv", "split", "chunk"}
_ENTITY = re.compile(r"([a-z]+)-([A-Za-z0-9+]+)")
_SUFFIX = re.compile(r"[A-Za-z0-9]+")
# sub-01/ses-1/anat/sub-01_ses-1_T1w.nii.gz; nothing that BIDS names lies deeper.
_DEPTH = 3


@dataclass(frozen=True)
class BidsFile:
    """An image of a BIDS data set.

    Attributes:
        path: where it lies.
        entities: ``{"sub": "01", "ses": "1", "acq": "mprage"}``, without their keys' dashes.
        suffix: what it is: ``T1w``, ``FLAIR``, ``mask``.
        datatype: folder that it lies in: ``anat``, ``dwi``; empty where there is none.
    """

    path: Path
    entities: Mapping[str, str]
    suffix: str
    datatype: str = ""

    def get(self, key: str) -> str:
        """Return the value of an entity, of ``suffix`` or ``datatype``; empty without it."""
        if key in ("suffix", "datatype"):
            return str(getattr(self, key))
        return self.entities.get(key, "")


@dataclass
class Index:
    """The images of a data set, and how many files were passed over for what reason."""

    files: list[BidsFile] = field(default_factory=list)
    ignored: int = 0
    absent: int = 0
    misplaced: list[str] = field(default_factory=list)

    def notes(self) -> list[str]:
        """Say what was passed over."""
        notes = []
        if self.ignored:
            notes.append(f"{self.ignored} images were left out by .bidsignore.")
        if self.absent:
            notes.append(
                f"{self.absent} images are links to nothing: fetch them (for example with "
                "'datalad get' or 'git annex get')."
            )
        if self.misplaced:
            notes.append(
                f"{len(self.misplaced)} images lie in the folder of another subject or session "
                f"than their name says and were left out: {', '.join(self.misplaced[:3])}."
            )
        return notes


def parse_name(name: str) -> tuple[dict[str, str], str] | None:
    """Return the entities and the suffix of a file name, or None if it isn't named as in BIDS.

    Example:
        >>> parse_name("sub-01_ses-2_acq-mprage_T1w.nii.gz")
        ({'sub': '01', 'ses': '2', 'acq': 'mprage'}, 'T1w')
        >>> parse_name("T1w.nii.gz") is None
        True
    """
    *pairs, suffix = name.partition(".")[0].split("_")
    matches = [_ENTITY.fullmatch(pair) for pair in pairs]
    entities = {match[1]: match[2] for match in matches if match}
    if not pairs or len(entities) < len(pairs) or not _SUFFIX.fullmatch(suffix):
        return None
    return (entities, suffix) if "sub" in entities else None


def build_name(entities: Mapping[str, str], suffix: str) -> str:
    """Return a file name without extension; entities in the order of BIDS, unknown ones last.

    Example:
        >>> build_name({"desc": "anomaly", "ses": "2", "sub": "01"}, "mask")
        'sub-01_ses-2_desc-anomaly_mask'
    """
    keys = sorted(entities, key=place)
    return "_".join([*(f"{key}-{entities[key]}" for key in keys if entities[key]), suffix])


def same(key: str, one: str, other: str) -> bool:
    """Tell whether two values of an entity are the same; numbers may be padded by zeros."""
    if key in _NUMBERS and one.isdigit() and other.isdigit():
        return one.lstrip("0") == other.lstrip("0")
    return one == other


def place(key: str) -> int:
    """Return where an entity stands in a file name, to sort by; unknown ones are last."""
    return ENTITIES.index(key) if key in ENTITIES else len(ENTITIES)


def differing(files: Sequence[BidsFile]) -> set[str]:
    """Return the entities in which files are not all alike."""
    keys = {key for file in files for key in file.entities}
    return {key for key in keys if len({file.get(key) for file in files}) > 1}


def index_files(root: Path) -> Index:
    """List the images below the ``sub-`` folders of a data set, sorted by name.

    Hidden files and those named in ``.bidsignore`` are left out, and so is everything outside the
    subjects' folders: sourcedata, derivatives, code. A folder that links lead to twice is read
    once.

    Raises:
        CohortError: no such folder, or a ``.bidsignore`` that can't be read.
    """
    if not root.is_dir():
        raise CohortError(f"{root}: no such folder. Name the root of a BIDS data set.")
    index, seen = Index(), {os.path.realpath(root)}
    ignored = _ignore_rules(root)
    subjects = sorted(p for p in root.iterdir() if p.name.startswith("sub-") and p.is_dir())
    for subject in subjects:
        for here, folders, names in os.walk(subject, followlinks=True):
            real = os.path.realpath(here)
            parts = Path(here).relative_to(root).parts
            deep = len(parts) >= _DEPTH
            if real in seen:
                folders.clear()
                continue
            seen.add(real)
            folders[:] = [] if deep else sorted(f for f in folders if not f.startswith("."))
            for name in sorted(names):
                if name.startswith(".") or extension(name) not in EXTENSIONS:
                    continue
                relative = "/".join((*parts, name))
                if ignored is not None and ignored.match_file(relative):
                    index.ignored += 1
                    continue
                _add(index, root, parts, name)
    return index


def _add(index: Index, root: Path, parts: tuple[str, ...], name: str) -> None:
    parsed = parse_name(name)
    if parsed is None:
        return
    entities, suffix = parsed
    folders = dict(part.split("-", 1) for part in parts if part.startswith(("sub-", "ses-")))
    if any(entities.get(key, value) != value for key, value in folders.items()):
        index.misplaced.append("/".join((*parts, name)))
        return
    path = root.joinpath(*parts, name)
    if not path.exists():
        index.absent += 1
        return
    datatype = "" if parts[-1].startswith(("sub-", "ses-")) else parts[-1]
    index.files.append(BidsFile(path, {**folders, **entities}, suffix, datatype))


def _ignore_rules(root: Path) -> Any:
    path = root / ".bidsignore"
    if not path.is_file():
        return None
    from pathspec import GitIgnoreSpec

    try:
        return GitIgnoreSpec.from_lines(path.read_text(encoding="utf-8").splitlines())
    except (OSError, ValueError) as error:
        raise CohortError(f"{path}: can't be read as a list of patterns ({error}).") from error
