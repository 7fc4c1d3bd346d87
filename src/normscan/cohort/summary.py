"""What is in a cohort: looked at before anything is trained on it."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from normscan.errors import ScanError
from normscan.io import Header, MaskReport, content_hash, probe
from normscan.io.address import split_address
from normscan.io.read import load_mask_array

if TYPE_CHECKING:
    from normscan.cohort.row import CohortRow

Progress = Callable[[Iterable[Any], str], Iterable[Any]]
LABELS = {0: "healthy", 1: "anomalous", None: "unlabelled"}
_SHOWN = 5


@dataclass
class CohortSummary:
    """Counts and properties of a cohort; ``str()`` gives a plain-text table.

    Attributes:
        scans: number of scans.
        subjects: number of subjects.
        splits: per split the number of healthy, anomalous and unlabelled scans, of subjects and of
            lesion masks; scans without a split stand under ``none``.
        sizes: the distinct spatial shapes (up to five), or the smallest and the largest per axis.
        dims: number of scans per number of spatial axes.
        channels: number of scans per number of channels stored.
        dtypes: number of scans per data type in the file.
        spacing: smallest and largest spacing in mm per axis, or None where no file says.
        duplicates: ``groups`` of exact copies, ``scans`` in them, and the groups that cross labels
            or splits (names of their scans).
        unreadable: (scan, reason) of files that can't be an image or a mask.
        notes: what was done or decided when the cohort was read.
    """

    scans: int
    subjects: int
    splits: dict[str, dict[str, int]]
    sizes: list[str] = field(default_factory=list)
    dims: dict[int, int] = field(default_factory=dict)
    channels: dict[int, int] = field(default_factory=dict)
    dtypes: dict[str, int] = field(default_factory=dict)
    spacing: list[tuple[float, float]] | None = None
    duplicates: dict[str, Any] = field(default_factory=dict)
    unreadable: list[tuple[str, str]] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)

    def to_dict(self) -> dict[str, Any]:
        """Return the fields as plain data for JSON."""
        return asdict(self)

    def __str__(self) -> str:
        """Return a plain-text table."""
        head = ("split", "healthy", "anomalous", "unlabelled", "subjects", "masks")
        lines = [f"{self.scans} scans of {self.subjects} subjects", ""]
        lines.append(f"{head[0]:8}" + "".join(f"{word:>12}" for word in head[1:]))
        for split, counts in self.splits.items():
            lines.append(f"{split:8}" + "".join(f"{counts[word]:>12}" for word in head[1:]))
        lines += ["", f"sizes      {', '.join(self.sizes) or 'unknown'}"]
        lines.append(f"dimensions {_counts(self.dims, 'D')}")
        lines.append(f"channels   {_counts(self.channels)}")
        lines.append(f"data types {_counts(self.dtypes)}")
        spacing = "not in the files"
        if self.spacing:
            spacing = " x ".join(_span(low, high) for low, high in self.spacing) + " mm"
        lines.append(f"spacing    {spacing}")
        copies = self.duplicates
        if copies.get("groups"):
            lines.append(f"copies     {copies['scans']} scans in {copies['groups']} groups")
            for word in ("labels", "splits"):
                crossing = copies[f"crossing_{word}"]
                if crossing:
                    shown = "; ".join(" = ".join(group) for group in crossing[:3])
                    lines.append(f"  WARNING: {len(crossing)} groups cross {word}: {shown}")
        if self.unreadable:
            lines.append(f"unreadable {len(self.unreadable)} files")
            lines += [f"  {scan}: {reason}" for scan, reason in self.unreadable[:_SHOWN]]
        lines += ["note: " + note for note in self.notes]
        return "\n".join(lines)


def summarise(
    rows: Sequence[CohortRow], notes: Iterable[str] = (), progress: Progress | None = None
) -> CohortSummary:
    """Look at every file of a cohort: its header, its hash and its lesion mask, no other pixels.

    Args:
        rows: the scans of the cohort.
        notes: what was decided when it was read.
        progress: wraps the rows and a description, for a progress bar.
    """
    summary = CohortSummary(
        scans=len(rows),
        subjects=len({row.subject for row in rows}),
        splits=_splits(rows),
        notes=list(notes),
    )
    masks, report = set[Path](), MaskReport()
    headers: list[Header] = []
    hashed: dict[tuple[str, ...], list[CohortRow]] = {}
    for row in progress(rows, "looking at the files") if progress else rows:
        try:
            found = [probe(path) for path in row.paths]
            hashed.setdefault(tuple(content_hash(p) for p in row.paths), []).append(row)
        except ScanError as error:
            summary.unreadable.append((row.scan, str(error)))
            continue
        # Several files are the channels of one scan.
        first = found[0]
        count = sum(h.channels for h in found) if len(found) > 1 else first.channels
        headers.append(Header(first.shape, count, first.dtype, first.spacing))
        reason = _mask_problem(row, first)
        if not reason and row.mask is not None:
            reason = _look_at_mask(split_address(row.mask)[0], masks, report)
        if reason:
            summary.unreadable.append((row.scan, reason))
    summary.notes += report.notes()
    if not any(row.label == 0 for row in rows):
        summary.notes.append("No scan is healthy: most methods learn from healthy scans alone.")
    _describe(summary, headers)
    summary.notes += _further(rows, summary.unreadable)
    summary.duplicates = _duplicates(hashed)
    return summary


def _further(rows: Sequence[CohortRow], unreadable: list[tuple[str, str]]) -> list[str]:
    """Say how many cases have each further image, and of which sizes; add those that aren't read."""
    sizes: dict[str, list[str]] = {
        name: [] for row in rows for name in (*row.further, *row.lacking)
    }
    for row in rows:
        for name, path in row.further.items():
            try:
                sizes[name].append(" x ".join(map(str, probe(path).shape)))
            except ScanError as error:
                unreadable.append((row.scan, str(error)))
    return [
        f"Further image {name}: {len(found)} of {len(rows)} cases, "
        f"{', '.join(sorted(set(found))[:_SHOWN]) or 'none readable'}."
        for name, found in sizes.items()
    ]


def _look_at_mask(path: Path, seen: set[Path], report: MaskReport) -> str:
    """Find what kind of mask a file is, once for all slices of it; return what is wrong with it."""
    if path in seen:
        return ""
    seen.add(path)
    try:
        load_mask_array(path, report=report)
    except ScanError as error:
        return str(error)
    return ""


def _mask_problem(row: CohortRow, header: Header) -> str:
    for path in (row.mask, row.foreground):
        if path is None:
            continue
        try:
            shape = probe(path).shape
        except ScanError as error:
            return str(error)
        if shape != header.shape:
            return f"{path}: the mask has the shape {shape}, its scan has {header.shape}."
    return ""


def _splits(rows: Sequence[CohortRow]) -> dict[str, dict[str, int]]:
    result = {}
    for split in ("train", "val", "test", "extra", ""):
        part = [row for row in rows if row.split == split]
        if not part and split in ("extra", ""):
            continue
        labels = Counter(LABELS[row.label] for row in part)
        counts = {word: labels[word] for word in LABELS.values()}
        counts["subjects"] = len({row.subject for row in part})
        counts["masks"] = sum(row.mask is not None for row in part)
        result[split or "none"] = counts
    return result


def _describe(summary: CohortSummary, headers: list[Header]) -> None:
    shapes = sorted({h.shape for h in headers})
    if len(shapes) <= _SHOWN:
        summary.sizes = [" x ".join(map(str, shape)) for shape in shapes]
    else:
        for dims in sorted({len(s) for s in shapes}):
            axes = list(zip(*(s for s in shapes if len(s) == dims), strict=True))
            summary.sizes.append(" x ".join(f"{min(axis)}..{max(axis)}" for axis in axes))
    summary.dims = dict(sorted(Counter(len(h.shape) for h in headers).items()))
    summary.channels = dict(sorted(Counter(h.channels for h in headers).items()))
    summary.dtypes = dict(sorted(Counter(h.dtype for h in headers).items()))
    spacings = [h.spacing for h in headers if h.spacing is not None]
    if spacings:
        steps = [[s[i] for s in spacings if len(s) > i] for i in range(max(map(len, spacings)))]
        summary.spacing = [(min(step), max(step)) for step in steps]


def _duplicates(hashed: dict[tuple[str, ...], list[CohortRow]]) -> dict[str, Any]:
    groups = [rows for rows in hashed.values() if len(rows) > 1]
    return {
        "groups": len(groups),
        "scans": sum(map(len, groups)),
        "crossing_labels": [[r.scan for r in g] for g in groups if len({r.label for r in g}) > 1],
        "crossing_splits": [[r.scan for r in g] for g in groups if len({r.split for r in g}) > 1],
    }


def _counts(counts: dict[Any, int], unit: str = "") -> str:
    return ", ".join(f"{key}{unit} ({count})" for key, count in counts.items()) or "unknown"


def _span(low: float, high: float) -> str:
    return f"{low:.3g}" if high - low < 1e-4 * high else f"{low:.3g}..{high:.3g}"
