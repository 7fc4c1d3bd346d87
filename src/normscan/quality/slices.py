"""A volume at the gate of a detector of pictures: it is looked at slice by slice, as it will be cut."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np

from normscan.preprocess.grid import orient
from normscan.preprocess.samples import EMPTY_SLICE
from normscan.quality.measures import LONGEST, reduced, slice_runs
from normscan.quality.rules import Problem
from normscan.scan import Scan

# Slices that are looked at, evenly taken; more hardly say more.
MOST_SLICES = 16
# Part of those with foreground that they are taken from: pictures that train seldom show the ends, and
# another kind of volume is another kind in its middle, too.
MIDDLE = (0.25, 0.75)
# Pictures have no ends along the third axis to compare with. Flagged and refused beyond these shares;
# whole heads had up to 0.24 of empty slices at an end (benchmarks/results/gate.md).
RUNS = {
    "empty_end": (0.3, 0.42, "{:.0%} of its slices at one end are empty"),
    "empty_inside": (0.03, 0.1, "{:.0%} of its slices are empty though others around them aren't"),
    "repeated": (0.05, 0.25, "{:.0%} of its slices repeat the one before"),
}


def axial_slices(scan: Scan, most: int = MOST_SLICES) -> list[Scan]:
    """Return slices of a volume as pictures, laid out as those that the detector cuts.

    Args:
        scan: 3D.
        most: so many of the middle half of the slices with foreground, evenly taken; the fullest
            one where none has.
    """
    axes, signs = orient(scan, upright=True)
    data = scan.data.transpose(0, *(a + 1 for a in axes))
    data = data[(slice(None), *(slice(None, None, s) for s in signs))]
    _, foreground = reduced(data, scan.channels)
    share = foreground.mean(axis=(0, 1))
    factor = -(-data.shape[3] // LONGEST[3])
    full = np.flatnonzero(share >= EMPTY_SLICE)
    full = full if full.size else np.array([int(share.argmax())])
    first, last = (part * (len(full) - 1) for part in MIDDLE)
    places = np.unique(np.linspace(first, last, min(most, len(full))).round().astype(int))
    planes = [min(int(full[i]) * factor + factor // 2, data.shape[3] - 1) for i in places]
    spacing = scan.spacing[axes[0]], scan.spacing[axes[1]]
    return [
        Scan.from_array(
            np.ascontiguousarray(data[..., k]), spacing, channels=scan.channels, source=scan.source
        )
        for k in planes
        if float(data[..., k].min()) < float(data[..., k].max())
    ]


def run_problems(image: np.ndarray) -> Iterator[Problem]:
    """Yield what is missing along the third axis of a canonical volume (C, *spatial)."""
    low, high = np.percentile(image[:, ::4, ::4, ::4], [0, 99.5])
    runs = [slice_runs(channel, 2, float(high - low)) for channel in image]
    for name, (doubtful, certain, sentence) in RUNS.items():
        worst = max(run[name] for run in runs)
        if worst > doubtful:
            yield worst > certain, sentence.format(worst) + "."


def summed(problems: Sequence[Sequence[Problem]]) -> tuple[list[Problem], dict[str, Any]]:
    """Sum up the problems of slices: what befalls more than half of them counts for the volume.

    Returns:
        The problems, each in the words of a slice in the middle of those it befalls, and how many
        slices were looked at and would be flagged and refused.
    """
    n = len(problems)
    refused = sum(any(severe for severe, _ in each) for each in problems)
    kinds: dict[str, list[Problem]] = {}
    for each in problems:
        for problem in each:
            kinds.setdefault(_kind(problem[1]), []).append(problem)
    found: list[Problem] = []
    for befallen in kinds.values():
        grave = [problem for problem in befallen if problem[0]]
        share = len(befallen) / n
        # Several reasons may refuse more than half of the slices together.
        severe = 2 * len(grave) > n or (2 * refused > n and bool(grave))
        if 2 * len(befallen) > n or severe:
            some = grave if severe else befallen
            text = some[len(some) // 2][1].rstrip(".")
            found.append((severe, f"{text} (so {share:.0%} of {n} slices)."))
    flagged = sum(bool(each) for each in problems) - refused
    return found, {"looked_at": n, "flagged": flagged, "refused": refused}


def _kind(text: str) -> str:
    """What a problem is about: its sentence without the numbers."""
    return "".join(c for c in text if not (c.isdigit() or c in ".,%-")).strip()
