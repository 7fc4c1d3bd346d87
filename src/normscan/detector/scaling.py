"""Which scaling of the intensities serves a cohort: planted lesions choose, without any training.

Scaled scan by scan, brightness that all of a scan shares is lost, and with it a part of what makes a
lesion bright; scaled alike for the whole cohort, what scanners add stays. Which is worse hangs on
the cohort. Each scaling is judged by a Gaussian at each place of a small grid, of the smoothed
intensity and of the local deviation, that is fitted to healthy scans of other subjects: what PaDiM
does with the features of a network (Defard et al. 2021).
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from normscan.cohort import Cohort, CohortRow
from normscan.decide.judging import Trials, choose, judge, recorded
from normscan.detector.state import EVIDENCE, State
from normscan.errors import CohortError, NormscanError
from normscan.planting.kinds import dealt, plant
from normscan.preprocess import Preprocess
from normscan.progress import Progress
from normscan.rng import derive_seed
from normscan.scan import Scan
from normscan.scores.places import Places, Sums
from normscan.scores.reductions import reduce_map
from normscan.training.data import healthy_folds

SIZES = {2: 64, 3: 40}  # of the grid
FOLDS = 3
FEWEST = 6  # healthy subjects
MOST = 90  # healthy scans that take part
SCORE = "top_1_percent"


@dataclass(frozen=True)
class Choice:
    """What was chosen.

    Attributes:
        preprocess: with the chosen scaling.
        record: choice, reason and all figures, as JSON values.
    """

    preprocess: Preprocess
    record: dict[str, Any]


def candidates(base: Preprocess, usual: str, rows: Sequence[CohortRow]) -> dict[str, Preprocess]:
    """Return the settings to judge by name, the method's usual first.

    Args:
        base: whose scaling is to be chosen.
        usual: scaling of the method.
        rows: healthy scans.
    """

    def scaled(scaling: Any, *steps: Any, **more: Any) -> Preprocess:
        return replace(base, scaling=scaling, steps=(*base.steps, *steps), **more)

    found = {
        usual: scaled(usual),
        "auto": scaled("auto"),
        "percentile": scaled("percentile"),
        "file": scaled("file", range=None),
        # The landmarks lie on a scale from 0 to 100.
        "landmarks": scaled("file", "histogram_match", range=((0.0, 100.0),)),
    }
    if shows_brain(base, rows):
        found["white_stripe"] = scaled("file", {"white_stripe": {"contrast": "flair"}}, range=None)
    return found


def shows_brain(base: Preprocess, rows: Sequence[CohortRow]) -> bool:
    """Whether the foreground is said to be a brain, as a white stripe needs it."""
    names = {step if isinstance(step, str) else next(iter(step)) for step in base.steps}
    return "brain_extraction" in names or (
        base.preset == "brain-mri" and all(row.foreground for row in rows)
    )


def settle_scaling(asked: State, cohort: Cohort, bar: Progress) -> Choice | None:
    """Return the scaling that planted lesions choose, or None where none was to be chosen.

    Args:
        asked: unfitted.
        cohort: whose healthy scans of train and val are looked at.
        bar: shows progress.
    """
    base, usual = asked.preprocess, asked.usual_scaling
    if base.scaling != EVIDENCE:
        return None
    healthy = [row for part in ("train", "val") for row in cohort.part(part)]
    subjects = {row.subject for row in healthy}
    if len(subjects) < FEWEST:
        few = f"{len(subjects)} healthy subjects are too few to judge by, {FEWEST} are needed"
        return _kept(base, usual, few)
    parts = healthy_folds(cohort, FOLDS, derive_seed(asked.seed, "scaling"))
    rows = [[*part][: MOST // FOLDS] for part in parts]
    order = np.random.default_rng(derive_seed(asked.seed, "scaling order"))
    names = [row.scan for part in rows for row in part]
    lesions = dealt([names[i] for i in order.permutation(len(names))])
    named = candidates(base, usual, healthy)
    judged, reasons = _scored(named, rows, lesions, asked, bar)
    if usual not in judged:
        return _kept(base, usual, f"nothing could be judged ({reasons[usual]})")
    # Only what every scaling could prepare is compared.
    common = set.intersection(*(set(s) for s in judged.values()))
    keys = [key for key in judged[usual] if key in common]
    plain, planted = ([k for k in keys if bool(k.kind) is lesioned] for lesioned in (False, True))
    owners = {key.subject for key in plain}
    planted = [key for key in planted if key.subject in owners]
    if len(owners) < FEWEST or not planted:
        return _kept(base, usual, "too few healthy scans could be prepared")
    trials = Trials.of(
        [k.subject for k in plain], [k.subject for k in planted], [k.kind for k in planted],
        asked.fpr,
    )  # fmt: skip
    results = judge(
        {name: [scores[k] for k in plain] for name, scores in judged.items()},
        {name: [scores[k] for k in planted] for name, scores in judged.items()},
        trials, asked.seed,
    )  # fmt: skip
    best = choose(results)
    record = recorded(
        "scaling", results, best, subjects=len(owners), lesions=len(planted), left_out=reasons
    )
    return Choice(named[best.name], record)


@dataclass(frozen=True)
class Key:
    """A scored scan: ``kind`` is empty for the plain one, ``number`` tells its lesions apart."""

    subject: str
    scan: str
    number: int
    kind: str


_Scores = dict[Key, float]


@dataclass(frozen=True)
class Fit:
    """A scaling that has learnt, and what healthy scans are like under it.

    Attributes:
        preprocess: on the small grid.
        places: of their features.
    """

    preprocess: Preprocess
    places: Places

    @classmethod
    def to(cls, preprocess: Preprocess, rows: Sequence[CohortRow], asked: State) -> Fit:
        """Fit to healthy scans.

        Raises:
            NormscanError: none of them can be prepared.
        """
        learnt = preprocess.learn(rows, cache=asked.cache)
        sums: Sums | None = None
        for row in rows:
            try:
                features, _ = features_of(learnt, row.load(), row, asked)
            except (NormscanError, OSError):
                continue
            sums = Sums(features.shape) if sums is None else sums
            if features.shape == sums.total.shape:
                sums.add(features)
        if sums is None:
            raise CohortError("no healthy scan could be prepared")
        return cls(learnt, sums.places())

    def score(self, scan: Scan, row: CohortRow, asked: State) -> float:
        """Score a scan.

        Raises:
            NormscanError: it can't be prepared.
        """
        features, foreground = features_of(self.preprocess, scan, row, asked)
        anomaly = np.abs(self.places.normalised(features)).mean(axis=0)
        return reduce_map(SCORE, anomaly, foreground)


def features_of(
    preprocess: Preprocess, scan: Scan, row: CohortRow, asked: State
) -> tuple[np.ndarray, np.ndarray]:
    """Return smoothed intensity and local deviation (2, *grid), and the foreground (*grid)."""
    from scipy.ndimage import uniform_filter

    small = replace(preprocess, size=SIZES[scan.dims], colour="grey")
    prepared = small(scan, scan.dims, row.load_foreground(scan), asked.cache)
    image = prepared.image.astype(np.float64)
    size = (1, *[3] * scan.dims)
    mean = uniform_filter(image, size)
    deviation = np.sqrt(np.maximum(uniform_filter(image**2, size) - mean**2, 0))
    return np.concatenate([mean, deviation]), prepared.foreground


def _scored(
    named: dict[str, Preprocess],
    parts: list[list[CohortRow]],
    lesions: dict[str, Any],
    asked: State,
    bar: Progress,
) -> tuple[dict[str, _Scores], dict[str, str]]:
    """Score all healthy scans and their twins with lesions, each by scans of the other folds.

    Returns:
        The scores by scaling, and why a scaling has none.
    """
    found: dict[str, _Scores] = {name: {} for name in named}
    reasons: dict[str, str] = {}
    for part in bar.track(parts, "scaling", len(parts)):
        others = [row for other in parts if other is not part for row in other]
        fits = {}
        for name, preprocess in named.items():
            try:
                fits[name] = Fit.to(preprocess, others, asked)
            except NormscanError as error:
                reasons[name] = str(error)
        for row in part:
            with contextlib.suppress(NormscanError, OSError):
                for number, (kind, scan) in enumerate(_twins(row, lesions, asked.seed)):
                    key = Key(row.subject, row.scan, number, kind)
                    for name, fit in fits.items():
                        with contextlib.suppress(NormscanError):
                            found[name][key] = fit.score(scan, row, asked)
    return {n: s for n, s in found.items() if n not in reasons}, reasons


def _twins(row: CohortRow, lesions: dict[str, Any], seed: int) -> Iterator[tuple[str, Scan]]:
    scan = row.load()
    yield "", scan
    foreground = row.load_foreground(scan)
    for cell, lesion in plant(scan, foreground, lesions.get(row.scan, ()), seed, row.scan):
        yield f"{cell.band} {cell.kind}", lesion.scan


def _kept(base: Preprocess, usual: str, reason: str) -> Choice:
    record = {"chosen": usual, "reason": f"{reason}: the method's usual scaling, {usual}, stays."}
    return Choice(replace(base, scaling=usual), record)  # type: ignore[arg-type]
