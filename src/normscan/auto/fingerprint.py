"""What a cohort is like, from its healthy scans: the facts that a plan rests on."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

import numpy as np

from normscan.cohort import CohortRow
from normscan.errors import CohortError, NormscanError
from normscan.preprocess import Preprocess
from normscan.quality.copies import look_of, near_copies
from normscan.scan import Scan

FEWEST = 8  # healthy subjects
MOST = 60  # scans that are read
SIDE = 32  # of the small grid on which scans are compared
SAME = 1e-4  # share of a scan's variance that must differ between scans


@dataclass(frozen=True)
class Fingerprint:
    """Facts of the healthy scans.

    Attributes:
        subjects: number of healthy ones.
        scans: of theirs.
        read: scans that the rest was found out from.
        modality: as the table, or the files, name it; empty where nobody does.
        dims: spatial axes.
        channels: names.
        size: median number of pixels along each axis.
        spacing: median, mm; of 1 where the files give none.
        measured: whether they do.
        depth: median number of slices; 1 for 2D scans.
        foreground: mean share of the working grid.
        intensities: median over the scans of the percentiles 1, 50 and 99, of all channels.
        copies: pairs of scans of different subjects that look like one picture.
        explained: share of the variance of a scan that the mean of the others explains: how well
            they are aligned.
    """

    subjects: int
    scans: int
    read: int
    modality: str
    dims: int
    channels: tuple[str, ...]
    size: tuple[float, ...]
    spacing: tuple[float, ...]
    measured: bool
    depth: int
    foreground: float
    intensities: tuple[float, ...]
    copies: int
    explained: float

    def to_dict(self) -> dict[str, Any]:
        """Return JSON values."""
        return asdict(self)


def fingerprint(rows: Sequence[CohortRow], preprocess: Preprocess) -> Fingerprint:
    """Look at healthy scans, evenly taken.

    Args:
        rows: healthy scans that train or set a threshold.
        preprocess: of the detector; its steps are left out.

    Raises:
        CohortError: fewer than ``FEWEST`` subjects, none that can be read, scans of different dims
            or numbers of channels, or scans that are all the same.
    """
    subjects = {row.subject for row in rows}
    if len(subjects) < FEWEST:
        raise CohortError(
            f"the cohort has {len(subjects)} healthy subjects, and a detector that configures itself "
            f"needs {FEWEST}: fewer can't both teach and judge. Add healthy scans, or fit one method "
            "by name, such as padim."
        )
    taken = np.linspace(0, len(rows) - 1, min(MOST, len(rows))).round().astype(int)
    read, reasons = list[tuple[CohortRow, Scan]](), list[str]()
    for row in (rows[i] for i in taken):
        try:
            read.append((row, row.load()))
        except (NormscanError, OSError) as error:
            reasons.append(str(error))
    if not read:
        raise CohortError(f"no healthy scan can be read: {reasons[0]}")
    _check_kinds(read, preprocess)
    small = replace(preprocess, steps=(), size=SIDE, colour="grey", spacing=None, scaling="median")
    pictures, shares = [], []
    for row, scan in read:
        try:
            prepared = small(scan, scan.dims, row.load_foreground(scan), False)
        except NormscanError as error:
            reasons.append(str(error))
            continue
        pictures.append(_flat(prepared.image[0]))
        shares.append(float(prepared.foreground.mean()))
    if len(pictures) < 2:
        raise CohortError(f"too few healthy scans can be prepared: {reasons[0]}")
    _check_differ(pictures, read)
    scans = [scan for _, scan in read]
    looks, owners = [look_of(s) for s in scans], [row.subject for row, _ in read]
    values = [np.percentile(s.data, [1, 50, 99]) for s in scans]
    first = scans[0]
    return Fingerprint(
        len(subjects), len(rows), len(read), _modality(read), first.dims, first.channels,
        tuple(np.median([s.shape for s in scans], axis=0).tolist()),
        tuple(np.round(np.median([s.spacing for s in scans], axis=0), 4).tolist()),
        all(s.measured for s in scans),
        int(np.median([s.shape[2] if s.dims == 3 else 1 for s in scans])),
        round(float(np.mean(shares)), 4),
        tuple(np.round(np.median(values, axis=0), 4).tolist()),
        len(near_copies(looks, owners)), round(explained(pictures), 4),
    )  # fmt: skip


def explained(pictures: Sequence[np.ndarray]) -> float:
    """Return the share of the variance of pictures (n,) that the mean of the others explains."""
    table = np.stack(pictures).astype(np.float64)
    others = (table.sum(0) - table) / (len(table) - 1)
    whole = ((table - table.mean(1, keepdims=True)) ** 2).sum()
    return float(np.clip(1 - ((table - others) ** 2).sum() / max(whole, 1e-12), -1, 1))


def _flat(image: np.ndarray) -> np.ndarray:
    """Return a picture of one size whatever the depth: a volume is seen as its mean slice."""
    return (image if image.ndim == 2 else image.mean(axis=2)).ravel()


def _check_kinds(read: Sequence[tuple[CohortRow, Scan]], preprocess: Preprocess) -> None:
    first_row, first = read[0]
    for row, scan in read:
        if scan.dims != first.dims:
            raise CohortError(
                f"{first_row.scan} has {first.dims} spatial axes and {row.scan} {scan.dims}: a "
                "detector knows one kind of scan. Split the cohort in two."
            )
        grey = preprocess.colour != "keep" and {len(scan.channels), len(first.channels)} == {1, 3}
        if len(scan.channels) != len(first.channels) and not grey:
            raise CohortError(
                f"{first_row.scan} has the channels {', '.join(first.channels)} and {row.scan} "
                f"{', '.join(scan.channels)}: give all scans the same ones."
            )


def _check_differ(pictures: Sequence[np.ndarray], read: Sequence[tuple[CohortRow, Scan]]) -> None:
    table = np.stack(pictures).astype(np.float64)
    differing = table.var(axis=0).sum() / max(
        float(table.var(axis=1).mean()) * table.shape[1], 1e-12
    )
    if differing < SAME:
        raise CohortError(
            f"the healthy scans are nearly identical ({read[0][0].scan} and the others differ by "
            f"{differing:.1e} of their variance): nothing tells what healthy scans may differ in. "
            "Give scans of different subjects."
        )


def _modality(read: Sequence[tuple[CohortRow, Scan]]) -> str:
    told = {str(row.columns["modality"]) for row, _ in read if row.columns.get("modality")}
    told = told or {str(s.extra["modality"]) for _, s in read if s.extra.get("modality")}
    return ", ".join(sorted(told))
