"""Lesion-level detection: which lesions are found, and how many false alarms come with them."""

from __future__ import annotations

import math
from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, Protocol

import numpy as np
import numpy.typing as npt

from normscan.errors import ArgumentError, nearest
from normscan.metrics.curves import Floats, divide
from normscan.metrics.estimates import Estimate, bootstrap, to_json
from normscan.metrics.maps import Mask, checked_map, checked_mask
from normscan.scores.components import connected

# False positives per scan at which the FROC curve is read: those of the LUNA16 challenge.
FROC_RATES = (1 / 8, 1 / 4, 1 / 2, 1, 2, 4, 8)


@dataclass(frozen=True)
class MatchRule:
    """When a predicted component and a true lesion count as the same.

    Components are 8-connected in 2D and 26-connected in 3D. Predicted components below
    `smallest_predicted` are dropped. Lesions below `smallest_true` are neither to be found nor
    false alarms where they are predicted.

    Attributes:
        overlap: `any`: at least one common voxel; `covered`: more than `minimum` of the lesion is
            predicted; `iou`: intersection over union of the two components of at least `minimum`.
        minimum: fraction in [0, 1] for `covered` and `iou`.
        one_to_one: whether a component can stand for one lesion only: pairs are then taken
            greedily by IoU, the rest are misses and false alarms. Otherwise a component may find
            several lesions, and several components one lesion, none of them a false alarm.
        smallest_predicted: in `unit`.
        smallest_true: in `unit`.
        unit: `voxels`, or `mm3` (mm2 in 2D), which needs the spacing.
    """

    overlap: Literal["any", "covered", "iou"] = "any"
    minimum: float = 0.0
    one_to_one: bool = False
    smallest_predicted: float = 1
    smallest_true: float = 1
    unit: Literal["voxels", "mm3"] = "voxels"

    def __post_init__(self) -> None:
        known = self.overlap in ("any", "covered", "iou") and self.unit in ("voxels", "mm3")
        if not known or not 0 <= self.minimum <= 1 or (self.overlap == "iou" and not self.minimum):
            raise ArgumentError(
                f"A match rule needs overlap any, covered or iou with a minimum in [0, 1] (above 0 "
                f"for iou) and voxels or mm3, not {self!r}."
            )

    def __str__(self) -> str:
        how = {
            "any": "one common voxel",
            "covered": f"more than {self.minimum:g} of the lesion covered",
            "iou": f"IoU of at least {self.minimum:g}",
        }[self.overlap]
        pairs = "one to one, greedily by IoU" if self.one_to_one else "many to one"
        sizes = f"at least {self.smallest_predicted:g} predicted and {self.smallest_true:g} true"
        return f"{how}; {pairs}; components of {sizes} {self.unit}"


RULES: dict[str, MatchRule] = {
    "any_overlap": MatchRule(),
    "iou_0.1": MatchRule("iou", 0.1, one_to_one=True),
    "iou_0.5": MatchRule("iou", 0.5, one_to_one=True),
    # Sizes of Baur et al. 2021; their counting itself is `variants.baur_lesions`.
    "baur_sizes": MatchRule(smallest_predicted=8),
    # Bercea et al. 2025 ask for more than 10 % of the lesion; see `variants.normative_detection`.
    "covered_0.1": MatchRule("covered", 0.1),
}


def match_rule(rule: MatchRule | str) -> MatchRule:
    """Return a rule, or the one of that name in `RULES`."""
    if isinstance(rule, MatchRule):
        return rule
    if rule not in RULES:
        raise ArgumentError(
            f"Unknown match rule '{rule}'.{nearest(rule, RULES)} Known: {', '.join(RULES)}."
        )
    return RULES[rule]


@dataclass(frozen=True)
class Match:
    """Lesions and predicted components of one scan.

    Attributes:
        sizes: size of each lesion (n,) in the unit of the rule.
        peaks: highest score (n,) of a component that finds the lesion; -inf where it is missed.
        hits: highest score of each component that finds a lesion.
        alarms: highest score of each component that finds none.
    """

    sizes: Floats
    peaks: Floats
    hits: Floats
    alarms: Floats


def match_lesions(
    prediction: npt.ArrayLike,
    mask: npt.ArrayLike,
    rule: MatchRule | str = "any_overlap",
    scores: npt.ArrayLike | None = None,
    spacing: Sequence[float] | None = None,
) -> Match:
    """Return which lesions of a scan are found by which components.

    Args:
        prediction: predicted mask (H, W) or (D, H, W).
        mask: lesion mask of the same shape.
        rule: a rule or its name in `RULES`.
        scores: anomaly map of the same shape, for the peaks; the prediction by default.
        spacing: mm for each axis; needed by rules in mm3.

    Raises:
        ArgumentError: shapes that differ, an unknown rule, or a rule in mm3 without spacing.
    """
    rule = match_rule(rule)
    predicted = np.asarray(prediction).astype(bool)
    truth = checked_mask(mask, predicted.shape, "lesion mask")
    values, _ = checked_map(predicted if scores is None else scores, None)
    if values.shape != predicted.shape:
        raise ArgumentError(
            f"The map has shape {values.shape}, the prediction {predicted.shape}; they must agree."
        )
    voxel = _voxel(rule, spacing, predicted.ndim)
    found, size_found = _components(predicted)
    true, size_true = _components(truth)
    peak = np.full(size_found.size, -np.inf)
    np.maximum.at(peak, found[predicted], values[predicted])
    kept = size_found * voxel >= rule.smallest_predicted
    lesions = size_true * voxel >= rule.smallest_true
    kept[0] = lesions[0] = False

    # Every pair of a component and a lesion that touch, with their common voxels.
    both = predicted & truth
    codes, common = np.unique(
        true[both].astype(np.int64) * size_found.size + found[both], return_counts=True
    )
    lesion, component = np.divmod(codes, size_found.size)
    lesion, component, common = (part[kept[component]] for part in (lesion, component, common))
    iou = common / (size_true[lesion] + size_found[component] - common)
    if rule.overlap == "iou":
        good = iou >= rule.minimum
    elif rule.overlap == "covered":
        covered = np.bincount(lesion, common, size_true.size)
        good = (covered > rule.minimum * size_true)[lesion]
    else:
        good = np.ones(lesion.size, bool)
    if rule.one_to_one:
        good = _greedy(lesion, component, iou, good)

    peaks = np.full(size_true.size, -np.inf)
    np.maximum.at(peaks, lesion[good], peak[component[good]])
    matched = np.zeros(size_found.size, bool)
    matched[component[good & lesions[lesion]]] = True
    excused = np.zeros(size_found.size, bool)
    excused[component[~lesions[lesion]]] = True
    return Match(
        sizes=size_true[lesions] * voxel,
        peaks=peaks[lesions],
        hits=peak[kept & matched],
        alarms=peak[kept & ~matched & ~excused],
    )


def _greedy(lesion: Any, component: Any, iou: Floats, good: Mask) -> Mask:
    """Return which pairs are taken, the highest IoU first, each lesion and component once."""
    taken, lesions, components = np.zeros(good.size, bool), set(), set()
    for pair in np.argsort(-iou, kind="stable"):
        if good[pair] and lesion[pair] not in lesions and component[pair] not in components:
            taken[pair] = True
            lesions.add(lesion[pair])
            components.add(component[pair])
    return taken


def _components(mask: Mask) -> tuple[npt.NDArray[Any], Floats]:
    """Return component labels and their sizes in voxels, the background's first."""
    labels = connected(mask)
    return labels, np.bincount(labels.ravel()).astype(np.float64)


def _voxel(rule: MatchRule, spacing: Sequence[float] | None, dims: int) -> float:
    if rule.unit == "voxels":
        return 1.0
    if spacing is None or len(spacing) != dims or min(spacing) <= 0:
        raise ArgumentError(
            f"The match rule counts in mm3; give the spacing of the {dims} axes in mm, not {spacing}."
        )
    return math.prod(spacing)


@dataclass(frozen=True)
class LesionMetrics:
    """Lesion-level results, pooled over all lesions of all scans.

    Attributes:
        sensitivity: fraction of lesions found; NaN without lesions.
        precision: fraction of predicted components that find a lesion; NaN without any.
        f1: harmonic mean of the two, 0 where nothing is found; NaN without lesions.
        false_positives_per_scan: components that find no lesion, over all scans.
        froc: highest sensitivity at or below each rate of false positives per scan, when the
            components are ranked by their peak; not interpolated.
        froc_mean: mean of `froc`.
        strata: for each range of sizes the number of lesions and the sensitivity.
        lesions: number of lesions.
        components: number of predicted components that count.
        scans: number of scans.
        subjects: number of subjects.
        rule: the match rule in words.
    """

    sensitivity: Estimate
    precision: Estimate
    f1: Estimate
    false_positives_per_scan: Estimate
    froc: dict[str, float]
    froc_mean: float
    strata: dict[str, dict[str, float]]
    lesions: int
    components: int
    scans: int
    subjects: int
    rule: str

    def to_dict(self) -> dict[str, Any]:
        """Return plain JSON values, None for NaN."""
        return to_json(self)


class LesionScores:
    """Collects matched lesions scan by scan, then evaluates them.

    Args:
        rule: a rule or its name in `RULES`.
    """

    def __init__(self, rule: MatchRule | str = "any_overlap") -> None:
        self.rule = match_rule(rule)
        self._matches: list[tuple[int, Match]] = []
        self._subjects: dict[Hashable, int] = {}

    def __len__(self) -> int:
        return len(self._matches)

    def join(self, other: LesionScores) -> LesionScores:
        """Return the scans of both together, by the rule of the first."""
        both = LesionScores(self.rule)
        for part in (self, other):
            names = list(part._subjects)
            for subject, match in part._matches:
                number = both._subjects.setdefault(names[subject], len(both._subjects))
                both._matches.append((number, match))
        return both

    def add(
        self,
        map: npt.ArrayLike,
        mask: npt.ArrayLike | None,
        subject: Hashable,
        threshold: float,
        region: npt.ArrayLike | None = None,
        spacing: Sequence[float] | None = None,
    ) -> Match:
        """Add the map of one scan; what `map > threshold` predicts is matched with the mask.

        Args:
            map: anomaly map (H, W) or (D, H, W), higher is more anomalous.
            mask: lesion mask of the same shape; None for a healthy scan.
            subject: whose scan it is; intervals resample subjects.
            threshold: of the map; the FROC curve ranks the components above it by their peak.
            region: pixels that count, same shape; prediction and mask are cut to it.
            spacing: mm for each axis; needed by rules in mm3.

        Returns:
            The lesions and components of this scan.

        Raises:
            ArgumentError: NaN in the map, shapes that differ, or a rule in mm3 without spacing.
        """
        values, inside = checked_map(map, region)
        truth = np.zeros(values.shape, bool)
        if mask is not None:
            truth = checked_mask(mask, values.shape, "lesion mask") & inside
        values = np.where(inside, values, np.float32(-np.inf))
        match = match_lesions(values > np.float32(threshold), truth, self.rule, values, spacing)
        self._matches.append((self._subjects.setdefault(subject, len(self._subjects)), match))
        return match

    def evaluate(
        self,
        strata: Sequence[float] = (),
        *,
        rates: Sequence[float] = FROC_RATES,
        replicates: int = 1000,
        seed: int = 0,
        confidence: float = 0.95,
    ) -> LesionMetrics:
        """Return the lesion-level metrics with bootstrap intervals by subject.

        Args:
            strata: ascending sizes, in the unit of the rule, that cut the lesions into ranges
                [0, s1), [s1, s2), ... .
            rates: false positives per scan at which the FROC curve is read.
            replicates: bootstrap resamples; 0 for no intervals.
            seed: seed of the resampling.
            confidence: coverage of the intervals.

        Raises:
            ArgumentError: nothing was added, or the strata don't ascend.
        """
        if not self._matches:
            raise ArgumentError("No scan was added; there are no lesions to evaluate.")
        if list(strata) != sorted(set(strata)) or (strata and strata[0] <= 0):
            raise ArgumentError(f"The lesion sizes must ascend from above 0, not {list(strata)}.")
        found, lesions, hits, alarms, scans = table = np.zeros((5, len(self._subjects)))
        for subject, match in self._matches:
            counts = (match.peaks > -np.inf).sum(), match.sizes.size
            table[:, subject] += [*counts, match.hits.size, match.alarms.size, 1]

        def metrics(weights: Floats) -> dict[str, Floats]:
            recall = divide(weights @ found, weights @ lesions, np.nan)
            precision = divide(weights @ hits, weights @ (hits + alarms), np.nan)
            right = np.nan_to_num(precision)
            f1 = np.where(np.isnan(recall), np.nan, divide(2 * recall * right, recall + right, 0.0))
            rate = divide(weights @ alarms, weights @ scans, np.nan)
            return {
                "sensitivity": recall,
                "precision": precision,
                "f1": f1,
                "false_positives_per_scan": rate,
            }

        subjects = len(self._subjects)
        point = {name: float(v[0]) for name, v in metrics(np.ones((1, subjects))).items()}
        options: dict[str, Any] = {"replicates": replicates, "seed": seed, "confidence": confidence}
        matches = [match for _, match in self._matches]
        curve = froc(matches, rates)
        return LesionMetrics(
            **bootstrap(metrics, point, subjects, cells=subjects, **options),
            froc=curve,
            froc_mean=float(np.mean(list(curve.values()))) if curve else math.nan,
            strata=_strata(matches, strata),
            lesions=int(lesions.sum()),
            components=int((hits + alarms).sum()),
            scans=len(self._matches),
            subjects=subjects,
            rule=str(self.rule),
        )


class Ranked(Protocol):
    """What an FROC curve needs of a scan."""

    @property
    def peaks(self) -> Floats:
        """Highest score of a hit of each lesion, -inf of one that isn't found."""

    @property
    def alarms(self) -> Floats:
        """Scores of what hits no lesion."""


def froc(matches: Sequence[Ranked], rates: Sequence[float] = FROC_RATES) -> dict[str, float]:
    """Return the highest sensitivity at or below each rate of false positives per scan.

    Args:
        matches: one for each scan.
        rates: false positives per scan.

    Returns:
        Sensitivity by rate, written as `0.125`; NaN without lesions.
    """
    peaks, alarms = (
        np.concatenate([np.empty(0), *(getattr(match, name) for match in matches)])
        for name in ("peaks", "alarms")
    )
    alarms = np.sort(alarms)[::-1]
    values = {}
    for rate in rates:
        allowed = math.floor(rate * len(matches) + 1e-9)
        # One more alarm would be too many: the threshold must stay above its score.
        limit = alarms[allowed] if allowed < alarms.size else -np.inf
        values[f"{rate:g}"] = float(np.mean(peaks > limit)) if peaks.size else math.nan
    return values


def _strata(matches: Sequence[Match], strata: Sequence[float]) -> dict[str, dict[str, float]]:
    if not strata:
        return {}
    sizes = np.concatenate([match.sizes for match in matches])
    found = np.concatenate([match.peaks for match in matches]) > -np.inf
    edges = [0.0, *strata, math.inf]
    cut: Mapping[str, Mask] = {
        f"{low:g} to {high:g}" if math.isfinite(high) else f"{low:g} and more": (sizes >= low)
        & (sizes < high)
        for low, high in zip(edges[:-1], edges[1:], strict=True)
    }
    return {
        name: {
            "lesions": int(some.sum()),
            "sensitivity": float(found[some].mean()) if some.any() else math.nan,
        }
        for name, some in cut.items()
    }
