"""A reduction is settled: what it needs is learnt from healthy maps, or planted lesions choose it.

No lesion of a patient and no test scan takes part. Every healthy scan was mapped by a method that
didn't see its subject, and so were its twins with planted lesions; all reductions are judged from
these same maps (``normscan.decide.judging``).
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import numpy as np

from normscan.decide import PixelThreshold
from normscan.decide.judging import Trials, choose, judge, judging_rank, recorded
from normscan.detector.sheets import Sheet
from normscan.detector.state import EVIDENCE, State
from normscan.errors import CohortError
from normscan.scores.places import Places, Sums
from normscan.scores.reductions import LEVELLED, REDUCTIONS, Reduction

OWN = "own"  # the score that the method gives by itself
FEWEST = 5  # subjects, below which planted lesions choose nothing
LEVEL = 0.01  # share of the healthy foreground above the level of a mass
OVERLAP = 0.8  # least Dice of a foreground with the mean one, to compare place by place
INNER = ("max", "top_0.1_percent", "top_1_percent", "p_norm_8", "component_mass")
PLACED = ("foreground_mean", "max", "top_0.1_percent", "top_1_percent", "p_norm_4")


@dataclass(frozen=True)
class Maps:
    """The kept maps of healthy scans.

    Attributes:
        paths: of the sheets.
        subjects: whose they are.
    """

    paths: Sequence[str]
    subjects: Sequence[str]

    def __iter__(self) -> Iterator[tuple[str, Sheet]]:
        for path, subject in zip(self.paths, self.subjects, strict=True):
            yield subject, Sheet.load(path)

    @cached_property
    def unaligned(self) -> str:
        """Why the maps can't be compared place by place; empty where they can."""
        shapes, total = set[tuple[int, ...]](), None
        for _, sheet in self:
            shapes |= {m.shape for m in sheet.maps}
            if len(shapes) > 1:
                some = " and ".join("x".join(map(str, s)) for s in sorted(shapes)[:2])
                return f"their grids differ ({some})"
            inside = sheet.foregrounds[0].astype(np.float64)
            total = inside if total is None else total + inside
        if total is None or len(set(self.subjects)) < 3:
            return "there are fewer than three subjects"
        mean = total / len(self.paths)
        usual = mean >= 0.5
        overlaps = [
            2 * (usual & s.foregrounds[0]).sum() / max(1, usual.sum() + s.foregrounds[0].sum())
            for _, s in self
        ]
        if (overlap := float(np.mean(overlaps))) < OVERLAP:
            return f"their foregrounds overlap by {overlap:.2f} only (Dice with the usual one)"
        return ""

    @cached_property
    def sums(self) -> dict[str, Sums]:
        """Sums over the plain maps of each subject."""
        found: dict[str, Sums] = {}
        for subject, sheet in self:
            found.setdefault(subject, Sums(sheet.maps[0].shape)).add(sheet.maps[0])
        return found

    @cached_property
    def total(self) -> Sums:
        """Sums over all plain maps."""
        first, *others = self.sums.values()
        whole = first.less(Sums(first.total.shape))
        for other in others:
            whole.n += other.n
            whole.total += other.total
            whole.squares += other.squares
        return whole

    def places_without(self, subject: str) -> Places:
        """Healthy mean and deviation at each place, of the other subjects."""
        return self.total.less(self.sums[subject]).places()

    def level(self, reduction: Reduction) -> float:
        """The level above which lies ``LEVEL`` of the healthy foreground."""
        pixels = PixelThreshold(LEVEL)
        for subject, sheet in self:
            anomaly, inside = sheet.maps[0], sheet.foregrounds[0]
            if reduction.place:
                anomaly = self.places_without(subject).normalised(anomaly).astype(np.float32)
            pixels.add(anomaly, inside if inside.any() else None)
        return pixels.threshold

    def learnt(self, reduction: Reduction) -> Reduction:
        """Return the reduction with what it needs of healthy maps but the places."""
        if reduction.name in LEVELLED and reduction.level is None:
            return replace(reduction, level=self.level(reduction))
        return reduction


@dataclass
class Scored:
    """Scores of all scans by one reduction: of the plain ones, and of those with lesions."""

    healthy: list[float]
    planted: list[float]


def candidates(usual: Reduction, own: bool, maps: Maps) -> dict[str, Reduction | None]:
    """Return what is judged, by name, the method's usual score first; None is the method's own."""
    named: list[Reduction] = [usual, *map(Reduction.parse, (*REDUCTIONS, *LEVELLED))]
    named += [replace(Reduction.parse(name), inner=True) for name in INNER]
    if not maps.unaligned:
        named += [replace(Reduction.parse(name), place=True) for name in PLACED]
    learnt = [maps.learnt(reduction) for reduction in named]
    return {**({OWN: None} if own else {}), **{str(r): r for r in learnt}}


def scored(maps: Maps, reductions: dict[str, Reduction | None]) -> dict[str, Scored]:
    """Return the scores of all kept maps; places are those of the other subjects."""
    found = {name: Scored([], []) for name in reductions}
    placed = any(r is not None and r.place for r in reductions.values())
    for subject, sheet in maps:
        places = maps.places_without(subject) if placed else None
        for name, reduction in reductions.items():
            scores = sheet.own if reduction is None else [
                reduction(anomaly, inside, places)
                for anomaly, inside in zip(sheet.maps, sheet.foregrounds, strict=True)
            ]  # fmt: skip
            found[name].healthy.append(scores[0])
            found[name].planted += scores[1:]
    return found


def settle(state: State, maps: Maps) -> tuple[State, list[float]]:
    """Settle the reduction of a state whose reduction is still to be learnt.

    Args:
        state: with a fitted method.
        maps: of the healthy scans that set the threshold.

    Returns:
        The state with its reduction, and the scores of the healthy scans by it.

    Raises:
        CohortError: a reduction was asked for that these scans can't have.
    """
    subjects = len(set(maps.subjects))
    own = bool(maps.paths) and bool(Sheet.load(maps.paths[0]).own)
    mapped = bool(maps.paths) and bool(Sheet.load(maps.paths[0]).maps)
    usual = OWN if own else state.usual_reduction
    if state.reduction != EVIDENCE:
        return _asked_for(state, maps, mapped)
    if not mapped or subjects < FEWEST:
        few = f"{subjects} healthy subjects are too few to judge by, {FEWEST} are needed"
        why = few if subjects < FEWEST else "the method only scores"
        return _kept(state, maps, usual, own, f"{why}: the method's usual score stays.")
    named = candidates(Reduction.parse(state.usual_reduction), own, maps)
    table = scored(maps, named)
    sheets = [(subject, kind) for subject, sheet in maps for kind in sheet.kinds]
    if not sheets:
        return _kept(state, maps, usual, own, "no lesion could be planted: the usual score stays.")
    owners, kinds = [s for s, _ in sheets], [k for _, k in sheets]
    judged = judge(
        {n: s.healthy for n, s in table.items()}, {n: s.planted for n, s in table.items()},
        Trials.of(maps.subjects, owners, kinds, state.fpr), state.seed,
    )  # fmt: skip
    best = choose(judged)
    record = recorded(
        "score", judged, best, fpr=state.fpr, judged_at=judging_rank(subjects, state.fpr) / subjects,
        subjects=subjects, lesions=len(kinds), unaligned=maps.unaligned,
    )  # fmt: skip
    reduction = named[best.name]
    return _with(state, reduction, maps, record), table[best.name].healthy


def _asked_for(state: State, maps: Maps, mapped: bool) -> tuple[State, list[float]]:
    reduction = Reduction.parse(state.reduction)
    why = maps.unaligned if mapped and reduction.place else ""
    if not maps.paths:
        why = "there are no healthy scans"
    elif not mapped:
        why = "the method gives no map"
    if why:
        raise CohortError(
            f"the reduction '{reduction}' learns from maps of healthy scans, and {why}. Take "
            "another reduction."
        )
    reduction = maps.learnt(reduction)
    record = {"chosen": str(reduction), "reason": "asked for; learnt from healthy maps."}
    found = scored(maps, {str(reduction): reduction})[str(reduction)]
    return _with(state, reduction, maps, record), found.healthy


def _kept(
    state: State, maps: Maps, usual: str, own: bool, reason: str
) -> tuple[State, list[float]]:
    reduction = None if own else Reduction.parse(usual)
    scores = scored(maps, {usual: reduction})[usual].healthy
    return _with(
        state, reduction, maps, {"chosen": usual, "usual": usual, "reason": reason}
    ), scores


def _with(state: State, reduction: Reduction | None, maps: Maps, record: dict[str, Any]) -> State:
    return state.changed(
        reduction=state.usual_reduction if reduction is None else str(reduction),
        replaces=reduction is not None,
        places=maps.total.places() if reduction is not None and reduction.place else None,
        training={**state.training, "reduction": record},
    )
