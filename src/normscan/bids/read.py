"""A BIDS data set, raw or derived, as a cohort."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from normscan.bids.labels import Rule, label_rows
from normscan.bids.masks import NO_SCAN, Filters, find_masks, mask_of, matches
from normscan.bids.names import ANOMALY, BidsFile, Index, differing, index_files, place
from normscan.bids.tables import Cells, SubjectTables, participants
from normscan.errors import CohortError, nearest

if TYPE_CHECKING:
    import pandas as pd

# One file, or None, for each channel of each scan.
Scans = Sequence[Sequence[BidsFile | None]]
# What a row of a cohort has.
_COLUMNS = ("scan", "subject", "path", "label", "mask", "foreground", "split", "site")
_RESERVED = {*_COLUMNS, "session"}
_SHOWN = 5


def bids_table(
    root: str | os.PathLike[str],
    suffix: str | Sequence[str] | None = None,
    filters: Filters | None = None,
    derivatives: str | os.PathLike[str] | None = None,
    space: str | None = None,
    label: Rule | Literal[False] = None,
    masks: Filters | None = None,
) -> tuple[pd.DataFrame, list[str]]:
    """Return the table of a BIDS data set, without splits, and notes of what was taken.

    Subjects are ``sub-XX``, over all their sessions. The columns of ``participants.tsv``,
    ``*_sessions.tsv`` and ``*_scans.tsv`` become free columns, a column ``site`` (or ``centre``)
    the site; a column that would hide one of the cohort's own gets the prefix ``bids_``.

    Lesion masks (``label-lesion*_mask``, ``desc-*lesion*_mask``, ``*_roi``, lesion ``dseg``) are
    looked for beside the images, in the root and in its ``derivatives/*``; brain masks
    (``desc-brain_mask``, as foreground) beside the images. Subject, session, space and every
    entity of the mask must agree with the image.

    Args:
        root: folder with ``dataset_description.json``, raw or derived.
        suffix: ``"T1w"``, or several, which become the channels of one scan for each subject,
            session and run, with columns ``path_t1w``, ``path_flair``. By default the anatomical
            suffix that most subjects have.
        filters: values that entities must have, for example ``{"acq": "mprage", "ce": None,
            "run": [1, 2]}``; None means that the entity is absent. Also ``datatype``.
        derivatives: take the images from this folder of ``derivatives/`` (or any path) instead of
            the root; tables and masks still come from the root too.
        space: value of the entity ``space``; by default the scan's own space if there is such a
            file, else the only one there is.
        label: who is healthy, ``"group:control=0,patient=1"`` (``*`` for all other values) or
            ``{"group": {"control": 0, "patient": 1}}``. By default a column label, diagnosis,
            group or dx in which a value is known to mean healthy; without one, unknown. False
            leaves all labels empty and says nothing of them.
        masks: as ``filters``, for lesion masks, where several raters drew one.

    Raises:
        CohortError: no such folder or suffix, a table that can't be read (names file and line),
            several spaces or variants of an image and none asked for.
        ArgumentError: an unknown entity in a filter, a label rule of another form.
    """
    import pandas as pd

    root = Path(root)
    source = _images_root(root, derivatives)
    given = {**(filters or {}), **({"space": space} if space is not None else {})}
    index = index_files(source)
    notes = index.notes()
    images = _images(index, given)
    wanted = [suffix] if isinstance(suffix, str) else list(dict.fromkeys(suffix or ()))
    wanted = wanted or [common_suffix(images, source)]
    chosen = [_chosen(images, name, given, source, notes) for name in wanted]
    scans: list[list[BidsFile | None]] = [[file] for file in chosen[0]]
    if len(wanted) > 1:
        scans = _channels(chosen, notes)
    cells = _cells(scans, root, source, notes)
    labels, said = [""] * len(scans), list[str]()
    if label is not False:
        labels, said = label_rows(cells, label, str(root))
    places = list(dict.fromkeys([source, root, *_folders(root / "derivatives")]))
    lesions, brains = find_masks(places, {source: index.files}, masks or {})
    entities = _telling(scans)
    rows = []
    for scan, own, value in zip(scans, cells, labels, strict=True):
        there = [file for file in scan if file is not None]
        row = dict.fromkeys(_COLUMNS, "") | {"subject": _subject(there[0]), "label": value}
        for name, file in zip(wanted, scan, strict=True):
            column = "path" if len(wanted) == 1 else f"path_{name.lower()}"
            row[column] = _relative(file.path, root) if file else ""
        for name, drawings in (("mask", lesions), ("foreground", brains)):
            drawn = mask_of(there, drawings, name, notes)
            row[name] = _relative(drawn, root) if drawn else ""
        row |= {k if k != "ses" else "session": _value(there[0], k) for k in entities}
        rows.append(row | _free(own, row))
    for channel, name in enumerate(wanted):
        absent = sum(scan[channel] is None for scan in scans)
        if absent:
            notes.append(f"{absent} of {len(scans)} scans have no {name}.")
    people = len({row["subject"] for row in rows})
    notes = [f"BIDS: {len(rows)} scans ({' + '.join(wanted)}) of {people} subjects.", *said, *notes]
    columns = dict.fromkeys(name for row in rows for name in row)
    table = {name: [row.get(name, "") for row in rows] for name in columns}
    return pd.DataFrame(table, dtype=object), list(dict.fromkeys(notes))


def _chosen(
    images: list[BidsFile], suffix: str, given: Filters, source: Path, notes: list[str]
) -> list[BidsFile]:
    found = [f for f in images if f.suffix == suffix]
    if not found:
        there = sorted({f.suffix for f in images})
        raise CohortError(
            f"{source}: holds no {suffix} that fits, only {', '.join(there) or 'no images'}."
            f"{nearest(suffix, there)}"
        )
    return _one_variant(found, given, source, notes)


def find_suffixes(
    root: str | os.PathLike[str],
    filters: Filters | None = None,
    derivatives: str | os.PathLike[str] | None = None,
    space: str | None = None,
) -> list[str]:
    """Return the suffixes of the images of a data set, sorted; the arguments are as above.

    Raises:
        CohortError: no such folder.
        ArgumentError: an unknown entity in the filters.
    """
    given = {**(filters or {}), **({"space": space} if space is not None else {})}
    index = index_files(_images_root(Path(root), derivatives))
    return sorted({file.suffix for file in _images(index, given)})


def _images(index: Index, given: Filters) -> list[BidsFile]:
    images = [f for f in index.files if f.suffix not in NO_SCAN and matches(f, given)]
    # Maps of an earlier prediction are no scans.
    return [f for f in images if f.get("desc") != ANOMALY or "desc" in given]


def _images_root(root: Path, derivatives: str | os.PathLike[str] | None) -> Path:
    if derivatives is None:
        return root
    folder = root / "derivatives" / derivatives  # an absolute path stays as it is
    if folder.is_dir():
        return folder
    if Path(derivatives).is_dir():
        return Path(derivatives)
    there = [p.name for p in _folders(root / "derivatives")]
    raise CohortError(
        f"{folder}: no such folder.{nearest(str(derivatives), there)} "
        f"There are: {', '.join(there) or 'none'}."
    )


def _folders(folder: Path) -> list[Path]:
    found = folder.iterdir() if folder.is_dir() else ()
    return sorted(p for p in found if p.is_dir() and not p.name.startswith("."))


def common_suffix(images: Sequence[BidsFile], source: Path) -> str:
    """Return the anatomical suffix that most subjects have; among equals T1w, or the first by name.

    Raises:
        CohortError: no images.
    """
    anatomical = [f for f in images if f.datatype == "anat"] or list(images)
    counts = Counter(name for name, _ in {(f.suffix, f.get("sub")) for f in anatomical})
    if not counts:
        raise CohortError(
            f"{source}: holds no image named as in BIDS (sub-01/anat/sub-01_T1w.nii.gz)."
        )
    return min(counts, key=lambda name: (-counts[name], name != "T1w", name))


def _one_variant(
    files: list[BidsFile], given: Filters, source: Path, notes: list[str]
) -> list[BidsFile]:
    """Keep one space, resolution and description, so that no image stands twice."""
    for key, preferred in (("space", ""), ("res", ""), ("desc", "preproc")):
        counts = Counter(f.get(key) for f in files)
        if key in given or len(counts) == 1:
            continue
        kept = preferred if preferred in counts else ""
        if kept not in counts:
            raise CohortError(
                f"{source}: the {files[0].suffix} come with several values of {key}: "
                f"{', '.join(sorted(counts))}. Choose one, as in filters={{'{key}': "
                f"'{min(counts)}'}}."
            )
        others = ", ".join(f"{v or 'none'} ({n})" for v, n in sorted(counts.items()) if v != kept)
        notes.append(f"{files[0].suffix}: took {key} {kept or 'none'}, left out {others}.")
        files = [f for f in files if f.get(key) == kept]
    places: dict[tuple[Any, ...], list[BidsFile]] = {}
    for file in files:
        places.setdefault((file.get("sub"), file.get("ses")), []).append(file)
    kept_files, named = [], set()
    for file in files:  # T1w.nii beside T1w.nii.gz
        name = (file.datatype, *sorted(file.entities.items()))
        if name in named:
            notes.append(f"{file.path.name} stands there in two formats; the first was taken.")
        else:
            kept_files.append(file)
        named.add(name)
    several = [found for found in places.values() if len(found) > 1]
    keys = sorted({k for found in several for k in differing(found)}, key=place)
    if keys:
        notes.append(
            f"{len(several)} sessions have several {files[0].suffix}, told apart by "
            f"{', '.join(keys)}; each is a scan unless filters choose."
        )
    return kept_files


def _channels(chosen: list[list[BidsFile]], notes: list[str]) -> list[list[BidsFile | None]]:
    """Join the files of a subject, session and run; a file without run counts as the first."""
    places: dict[tuple[str, str, str], list[BidsFile | None]] = {}
    doubled = 0
    for channel, files in enumerate(chosen):
        # Fewer entities first: the plain T1w goes before the one with contrast agent.
        for file in sorted(files, key=lambda f: (len(f.entities), f.path)):
            key = (file.get("sub"), file.get("ses"), (file.get("run") or "1").lstrip("0"))
            scan = places.setdefault(key, [None] * len(chosen))
            if scan[channel] is None:
                scan[channel] = file
            else:
                doubled += 1
    if doubled:
        notes.append(
            f"{doubled} more files of the same subject, session and run were left out: the name "
            "with the fewest entities was taken. Choose with filters."
        )
    return [places[key] for key in sorted(places)]


def _cells(scans: Scans, root: Path, source: Path, notes: list[str]) -> list[Cells]:
    """Return what the tables say of each scan, and note who is in one place only."""
    home = root
    if root.absolute().parent.name == "derivatives" and not (root / "participants.tsv").is_file():
        home = root.absolute().parents[1]  # the raw data set describes the participants
    people = participants(home, source)
    tables = SubjectTables(home)
    found = []
    for scan in scans:
        first = next(f for f in scan if f is not None)
        session = f"ses-{first.get('ses')}" if first.get("ses") else ""
        person = (people or {}).get(_subject(first), {})
        own = tables.cells(_subject(first), session, first.path)
        found.append(person | {k: v for k, v in own.items() if v or k not in person})
    with_files = {_subject(f) for scan in scans for f in scan if f is not None}
    if people is None:
        notes.append("There is no participants.tsv, so nothing is known of the subjects.")
    else:
        for names, what in (
            (sorted(set(people) - with_files), "in participants.tsv have no such image"),
            (sorted(with_files - set(people)), "with images aren't in participants.tsv"),
        ):
            if names:
                shown = ", ".join(names[:_SHOWN]) + (" ..." if len(names) > _SHOWN else "")
                notes.append(f"{len(names)} subjects {what}: {shown}.")
    return found


def _telling(scans: Scans) -> list[str]:
    """Return the entities that are worth a column: the session, and what tells scans apart."""
    firsts = [next(f for f in scan if f is not None) for scan in scans]
    keys = {k for k in differing(firsts) if k != "sub"}
    if any(f.get("ses") for f in firsts):
        keys.add("ses")
    return sorted(keys, key=place)


def _subject(file: BidsFile) -> str:
    return f"sub-{file.get('sub')}"


def _value(file: BidsFile, key: str) -> str:
    value = file.get(key)
    return f"ses-{value}" if key == "ses" and value else value


def _free(cells: Cells, row: Mapping[str, str]) -> Cells:
    """Return the cells as free columns; site and a known split as the cohort's own."""
    free: Cells = {}
    for name, value in cells.items():
        low = name.lower()
        if low in ("site", "centre", "center"):
            free["site"] = value
        elif low == "split" and value in ("", "train", "val", "test", "extra"):
            free["split"] = value
        elif low in _RESERVED or name in row or name.startswith("path_"):
            free[f"bids_{name}"] = value
        else:
            free[name] = value
    return free


def _relative(file: Path, root: Path) -> str:
    """Return the path below the root, or the absolute one of a file elsewhere."""
    full, base = Path(os.path.abspath(file)), Path(os.path.abspath(root))
    return full.relative_to(base).as_posix() if full.is_relative_to(base) else full.as_posix()
