"""The gate before a detector: learnt from its healthy training scans, asked before each prediction."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from normscan.cohort import CohortRow
from normscan.errors import ArgumentError, CohortError, NormscanError
from normscan.parallel import each
from normscan.preprocess.samples import Aside
from normscan.quality import kinds, measures, rules, slices
from normscan.quality.features import describe
from normscan.quality.nearest import Nearest
from normscan.quality.rules import Problem, Verdict
from normscan.scan import Scan

FORMAT = 1
# Training scans that are kept to compare with, evenly taken from all.
MOST_SCANS = 500
LOOKS = {
    "picture": "what it shows, coarsely",
    "histogram": "the distribution of its values",
    "texture": "its texture and noise",
    "outline": "the outline of what it shows",
}


@dataclass(frozen=True)
class Profile:
    """A scan as the gate sees it: header, wholeness, features by view."""

    header: dict[str, Any]
    whole: dict[str, Any]
    views: dict[str, np.ndarray]
    scan: str = ""  # its name in a cohort

    @classmethod
    def of(cls, scan: Scan) -> Profile:
        """Measure a scan, which must be finite and not constant."""
        image = measures.canonical(scan)
        small, foreground = measures.reduced(image, scan.channels)
        whole: dict[str, Any] = measures.wholeness(image, small, foreground)
        whole["hounsfield"] = measures.is_hounsfield(scan.data)
        colour = scan.channels == measures.RGB
        return cls(measures.header(scan), whole, describe(small, foreground, colour))

    @property
    def vector(self) -> np.ndarray:
        """(features,) whole hundredths, view after view."""
        return np.concatenate(list(self.views.values()))


def damage(scan: Scan) -> str:
    """Return why nothing can be measured of a scan, or an empty string."""
    if not np.isfinite(scan.data).all():
        return f"{int((~np.isfinite(scan.data)).sum())} of its values are not finite."
    if float(scan.data.min()) == float(scan.data.max()):
        return f"Every voxel is {float(scan.data.flat[0]):g}, so there is nothing to see."
    return ""


def profile_of(row: CohortRow) -> Profile | None:
    """Read and measure the scan of a row; None where that can't be done."""
    try:
        scan = row.load()
    except (NormscanError, OSError):
        return None
    return None if damage(scan) else replace(Profile.of(scan), scan=row.scan)


def looked_at(part: Sequence[CohortRow], most: int = MOST_SCANS) -> list[CohortRow]:
    """Return the rows of a part that a gate measures, evenly taken."""
    return list(part)[:: -(-len(part) // most) or 1]


class Thinned:
    """At most so many of a stream, evenly taken: every one, then every second, fourth, ..."""

    def __init__(self, most: int) -> None:
        self.most, self.stride, self.seen = most, 1, 0
        self.kept: list[tuple[str, Profile]] = []

    def wants(self) -> bool:
        """Count one more; tell whether it is to be kept."""
        self.seen += 1
        return (self.seen - 1) % self.stride == 0

    def keep(self, subject: str, profile: Profile) -> None:
        """Keep one, and drop every other one where there are too many."""
        self.kept.append((subject, profile))
        if len(self.kept) > self.most:
            self.kept, self.stride = self.kept[::2], 2 * self.stride


class GateBuilder:
    """Takes healthy scans one after the other, in any number, and makes a gate of them.

    Args:
        most: scans that are measured and kept; of the others only the header is looked at.
    """

    def __init__(self, most: int = MOST_SCANS) -> None:
        self._train, self._held_out = Thinned(most), Thinned(most)
        self._limits: dict[str, Any] = {}

    def add(self, scan: Scan, subject: str = "", held_out: bool = False) -> None:
        """Look at a healthy scan; one that is not finite or constant is passed over.

        Args:
            scan: as read.
            subject: whose it is; scans of one subject resemble each other, so they don't say how
                far a new subject may lie. Empty: a subject of its own.
            held_out: it doesn't train; it only tells how far healthy scans lie.
        """
        thinned = self._held_out if held_out else self._train
        rules.widen(self._limits, measures.header(scan))
        if thinned.wants() and not damage(scan):
            name = subject or f"{int(held_out)} {thinned.seen}"
            thinned.keep(name, Profile.of(scan))

    def add_profile(self, profile: Profile, subject: str, held_out: bool) -> None:
        """Take a scan that was measured already."""
        rules.widen(self._limits, profile.header)
        thinned = self._held_out if held_out else self._train
        if thinned.wants():
            thinned.keep(subject, profile)

    def build(self) -> Gate:
        """Return the gate.

        Raises:
            CohortError: no usable training scan was added.
        """
        kept = self._train.kept
        if not kept:
            raise CohortError("no healthy training scan can be measured, so there is no gate.")
        first = kept[0][1]
        width = len(first.vector)
        # The detector refuses mixed channel counts; what is here beside the first is left out.
        same = [(s, p.vector, p.scan) for s, p in kept if len(p.vector) == width]
        others = [p.vector for _, p in self._held_out.kept if len(p.vector) == width]
        nearest = Nearest.fit(
            {name: len(v) for name, v in first.views.items()},
            np.stack([v for _, v, _ in same]),
            [s for s, _, _ in same],
            np.array(others, np.int32).reshape(-1, width),
            first.header["dims"],
            [scan for _, _, scan in same],
        )
        limits = dict(self._limits)
        rules.widen_values(limits, [p.whole for _, p in kept + self._held_out.kept])
        return Gate(limits, nearest, (self._train.seen, self._held_out.seen))


@dataclass(frozen=True)
class Gate:
    """Says whether a scan is of the kind that a detector was trained on, and whole.

    Attributes:
        limits: values and ranges of the training scans, see ``rules``.
        nearest: healthy feature vectors; None where there were too few to compare with.
        counts: training scans and held-out healthy scans that it was made of.

    Example:
        >>> gate = Gate.fit(row.load() for row in cohort.part("train"))  # doctest: +SKIP
        >>> gate.check(scan).reasons  # doctest: +SKIP
        ('The field of view left-right is 420 mm, training scans had 180 to 256 mm.',)
    """

    limits: dict[str, Any]
    nearest: Nearest | None
    counts: tuple[int, int]

    @classmethod
    def fit(
        cls,
        scans: Iterable[Scan],
        held_out: Iterable[Scan] = (),
        subjects: Iterable[str] | None = None,
    ) -> Gate:
        """Learn from healthy training scans, streamed one by one.

        Args:
            scans: as read.
            held_out: healthy scans of other subjects, which tell how far healthy scans lie.
            subjects: of ``scans``; each scan its own by default.

        Raises:
            CohortError: no usable scan.
        """
        builder = GateBuilder()
        names = itertools.repeat("") if subjects is None else iter(subjects)
        for scan, name in zip(scans, names, strict=False):
            builder.add(scan, name)
        for scan in held_out:
            builder.add(scan, held_out=True)
        return builder.build()

    @classmethod
    def of_cohort(
        cls,
        train: Sequence[CohortRow],
        val: Sequence[CohortRow],
        workers: int = 1,
        track: Callable[[Iterable[Any]], Iterable[Any]] = iter,
        most: int = MOST_SCANS,
        measured: Mapping[str, Profile | None] | None = None,
    ) -> Gate:
        """Learn from the healthy rows of a cohort; what can't be read is passed over.

        Args:
            train: scans that train.
            val: healthy scans of other subjects.
            workers: processes that read and measure; the gate is the same for any number.
            track: passes results on as they are done and shows their number.
            most: scans of each part, evenly taken.
            measured: by id what ``profile_of`` said of scans that were read already.

        Raises:
            CohortError: no training scan can be measured.
        """
        known = measured or {}
        rows = [(row, part is val) for part in (train, val) for row in looked_at(part, most)]
        left = [row for row, _ in rows if row.scan not in known]
        read = iter(track(each(profile_of, left, workers)))
        builder = GateBuilder(most)
        for row, held_out in rows:
            profile = known[row.scan] if row.scan in known else next(read)
            if profile is not None:
                builder.add_profile(profile, row.subject, held_out)
        next(read, None)  # the last one is shown as done
        return builder.build()

    @staticmethod
    def aside(train: Sequence[CohortRow], val: Sequence[CohortRow]) -> Aside:
        """Return what measures the scans of ``of_cohort`` while they are read for something else."""
        rows = [row for part in (train, val) for row in looked_at(part)]
        return Aside(profile_of, frozenset(row.scan for row in rows))

    def check(self, scan: Scan) -> Verdict:
        """Judge a scan as read; every scan gets a verdict, none raises.

        A volume at a gate of pictures is judged slice by slice.
        """
        broken = damage(scan)
        if broken:
            found = measures.header(scan)
            problems = [*rules.kind_problems(found, self.limits), (True, broken)]
            return Verdict.of(problems, found)
        profile = Profile.of(scan)
        volume = scan.dims == 3 and self.limits["dims"] == [2]
        planes = slices.axial_slices(scan) if volume else []
        profiles = [Profile.of(plane) for plane in planes]
        verdict = self._judge_slices(scan, profile, profiles) if profiles else self.judge(profile)
        middle = len(planes) // 2
        plane, seen = (planes[middle], profiles[middle]) if profiles else (scan, profile)
        if self.nearest is not None and self._likeness(seen):
            verdict = replace(verdict, neighbours=self.nearest.most_like(seen.vector))
        if verdict.status == "ok" or (profiles and len(verdict.reasons) == 1):
            return verdict  # of a volume, that it is one isn't told by what it is instead
        return replace(verdict, seems=self._seems(scan, profile, plane, seen))

    def judge(self, profile: Profile) -> Verdict:
        """Judge a scan by its profile."""
        problems: list[Problem] = list(rules.kind_problems(profile.header, self.limits))
        found = {**profile.header, **profile.whole}
        other_axes = profile.header["dims"] not in self.limits["dims"]
        if other_axes or any(severe for severe, _ in problems):
            # Another kind of scan: its other numbers compare with nothing.
            return Verdict.of(problems, found)
        problems += rules.geometry_problems(profile.header, self.limits)
        problems += rules.unit_problems(profile.whole, self.limits)
        problems += rules.range_problems(profile.whole, self.limits)
        problems += rules.value_problems(profile.whole, profile.header["dims"], self.limits)
        likeness = self._likeness(profile)
        problems += self._likeness_problems(likeness, profile)
        return Verdict.of(problems, {**found, "likeness": likeness})

    def _judge_slices(self, scan: Scan, profile: Profile, planes: list[Profile]) -> Verdict:
        """Judge a volume by its header, its unit, what is missing of it, and its slices.

        The range of its values says nothing beside pictures of 8 bits, nor its proportions.
        """
        problems: list[Problem] = [
            *rules.kind_problems(profile.header, self.limits),
            *rules.unit_problems(profile.whole, self.limits),
            *slices.run_problems(measures.canonical(scan)),
        ]
        each: list[list[Problem]] = []
        for plane in planes:
            found = list(rules.value_problems(plane.whole, 2, self.limits))
            if self.limits["extent"][0]:
                found += rules.geometry_problems(plane.header, self.limits)
            found += self._likeness_problems(self._likeness(plane), plane)
            each.append(found)
        more, counts = slices.summed(each)
        found_of = {**profile.header, **profile.whole, "slices": counts}
        return Verdict.of([*problems, *more], found_of)

    def _seems(self, scan: Scan, profile: Profile, plane: Scan, looked_at: Profile) -> str:
        """What a scan that doesn't fit seems to be; ``plane`` is what is compared of it."""
        told = kinds.stated_kind(scan, profile.header, self.limits)
        if told:
            return told
        if profile.whole["hounsfield"] and True not in self.limits["hounsfield"]:
            return "a CT, since its values are Hounsfield units"
        told = (
            kinds.damaged_kind(profile.whole, scan.dims, self.limits)
            or kinds.looks_like(scan, self.limits)
            or kinds.rimmed_kind(looked_at.whole, self.limits)
        )
        likeness = self._likeness(looked_at)
        if told or self.nearest is None or max(likeness.values(), default=0.0) <= 1:
            return told
        way, gain = self.nearest.turn(looked_at.vector)
        if gain > self.nearest.turn_limit:
            return f"such a scan, {way}"
        negative = self._likeness(Profile.of(kinds.inverted(plane)))
        if max(negative.values()) <= 1:
            return "the negative of such a scan"
        if kinds.fills_frame(plane) and not self.nearest.fill_frames:
            return "a picture that fills its frame, such as a photograph or a radiograph"
        return kinds.FARTHEST[max(likeness, key=likeness.__getitem__)]

    def _likeness(self, profile: Profile) -> dict[str, float]:
        """Distance of each view to the nearest healthy scans; 1 is the limit of healthy ones."""
        nearest = self.nearest
        if nearest is None or {n: len(v) for n, v in profile.views.items()} != nearest.views:
            return {}
        away = nearest.distances(profile.vector)
        return {v: round(away[v] / nearest.limits[v], 3) for v in away}

    def _likeness_problems(self, likeness: dict[str, float], profile: Profile) -> list[Problem]:
        if self.nearest is None or not likeness:
            return []
        way, gain = self.nearest.turn(profile.vector)
        is_turned = gain > self.nearest.turn_limit
        problems = [
            (
                # What a turn explains is no other kind of scan.
                times > self.nearest.far[view] and not (is_turned and view == "picture"),
                f"It looks unlike the healthy training scans in {LOOKS[view]}: "
                f"{times:.1f} times as far from the nearest as healthy scans lie at most.",
            )
            for view, times in likeness.items()
            if times > 1
        ]
        mean = math.exp(sum(map(math.log, likeness.values())) / len(likeness))
        if mean > self.nearest.together and not is_turned:
            problems.append(
                (
                    True,
                    "Taken together, what it shows, its values, its texture and its outline are "
                    f"{mean / self.nearest.together:.2f} times as far from the healthy training scans "
                    "as one in 1000 healthy scans lies.",
                )
            )
        if is_turned:
            problems.append(
                (
                    False,
                    f"It seems to be {way}: that way it looks {gain:.1f} times more like the "
                    "training scans. Left and right can't be told from each other.",
                )
            )
        return problems

    def to_dict(self) -> dict[str, Any]:
        """Return JSON values that restore the gate exactly."""
        return {
            "format": FORMAT,
            "limits": self.limits,
            "nearest": self.nearest.to_dict() if self.nearest else None,
            "counts": list(self.counts),
        }

    @classmethod
    def from_dict(cls, state: Mapping[str, Any]) -> Gate:
        """Return the gate that ``to_dict`` gave.

        Raises:
            ArgumentError: another format, a part is missing or damaged.
        """
        try:
            if state["format"] != FORMAT:
                raise ValueError(f"format {state['format']}, this version reads {FORMAT}")
            nearest = state["nearest"]
            train, held_out = state["counts"]
            needed = {*rules.KINDS, *rules.RANGES, *rules.VALUES, "hounsfield"}
            missing = sorted(needed - set(state["limits"]))
            if missing:
                raise KeyError(missing[0])
            rules.check_limits(state["limits"])
            return cls(
                dict(state["limits"]),
                None if nearest is None else Nearest.from_dict(nearest),
                (int(train), int(held_out)),
            )
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            raise ArgumentError(f"This is no stored quality gate: {error!r}.") from error
