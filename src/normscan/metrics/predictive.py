"""What a yes or no means for the patient: predictive values at a stated prevalence."""

from __future__ import annotations

import dataclasses
import math
from typing import Any

import numpy as np
import numpy.typing as npt

from normscan.errors import ArgumentError
from normscan.metrics.curves import Floats
from normscan.metrics.estimates import check_bootstrap, number_subjects, to_json
from normscan.metrics.images import Subjects
from normscan.metrics.statistics import Interval, bca

NAMES = ("sensitivity", "specificity", "ppv", "npv", "lr_positive", "lr_negative", "flagged")

ALIKE = "all scans alike: the bound of as many subjects with one scan each"


@dataclasses.dataclass(frozen=True)
class DecisionMetrics:
    """A yes-or-no decision, and what it would mean at a prevalence.

    Attributes:
        sensitivity: part of the anomalous scans that is flagged; free of the prevalence.
        specificity: part of the healthy scans that isn't flagged; free of the prevalence.
        ppv: probability that a flagged scan is anomalous, at `prevalence`.
        npv: probability that a scan that isn't flagged is healthy, at `prevalence`.
        lr_positive: factor by which a flag multiplies the odds of an anomaly.
        lr_negative: factor by which no flag multiplies them.
        flagged: part of all scans that is flagged at `prevalence`: the workload.
        prevalence: the one that ppv, npv and flagged assume, taken as known.
        counts: true positives, false positives, false negatives, true negatives, as observed.
        subjects: number of subjects.
    """

    sensitivity: Interval
    specificity: Interval
    ppv: Interval
    npv: Interval
    lr_positive: Interval
    lr_negative: Interval
    flagged: Interval
    prevalence: float
    counts: tuple[int, int, int, int]
    subjects: int

    @property
    def false_alarms(self) -> Interval:
        """Part of the healthy scans that is flagged."""
        kept = self.specificity
        low, high = 1 - kept.high, 1 - kept.low
        return dataclasses.replace(kept, value=1 - kept.value, low=low, high=high)

    def to_dict(self) -> dict[str, Any]:
        """Return plain JSON values, None for NaN."""
        return to_json(self)


def proportion(
    successes: int, trials: int, method: str = "wilson", confidence: float = 0.95
) -> Interval:
    """Return a proportion of independent trials with its interval.

    Args:
        successes: number of successes.
        trials: number of trials, one a subject; 0 gives NaN.
        method: `wilson`, close to the stated coverage, or `exact` (Clopper-Pearson), never below.
        confidence: coverage, in (0, 1).

    Raises:
        ArgumentError: more successes than trials, or another method.
    """
    from scipy.stats import binomtest

    check_bootstrap(0, confidence)
    if method not in ("wilson", "exact") or not 0 <= successes <= trials:
        raise ArgumentError(
            f"A proportion needs 'wilson' or 'exact' and 0 <= successes <= trials, not '{method}', "
            f"{successes} and {trials}."
        )
    if not trials:
        return Interval(math.nan, math.nan, math.nan, 0, 0, "none", "no trials")
    found = binomtest(int(successes), int(trials)).proportion_ci(confidence, method)
    low, high = float(found.low), float(found.high)
    return Interval(successes / trials, low, high, int(trials), 0, method)


def decision_metrics(
    decisions: npt.ArrayLike,
    labels: npt.ArrayLike,
    subjects: Subjects = None,
    *,
    prevalence: float | None = None,
    method: str = "wilson",
    replicates: int = 1000,
    seed: int = 0,
    confidence: float = 0.95,
) -> DecisionMetrics:
    """Return sensitivity, specificity, likelihood ratios, and PPV and NPV at a prevalence.

    Test sets hold far more lesions than a clinic's worklist, so their own share of true alarms says
    little. PPV and NPV follow from sensitivity, specificity and the stated prevalence by Bayes'
    rule. With one scan a subject the intervals are closed forms: Wilson's or the exact one of a
    proportion; on the logit scale for PPV and NPV, with the adjusted counts where a cell is empty
    (Mercaldo et al., Statistics in Medicine 26, 2007); on the log scale for likelihood ratios
    (Simel et al., Journal of Clinical Epidemiology 44, 1991). With several scans a subject all of
    them come from the BCa bootstrap over subjects. Where no scan of a class is flagged, or every one,
    resampling knows nothing: sensitivity and specificity then have the exact bound for the subjects,
    of whom none (or each) had such a scan, which is wider than that of the scans.

    Args:
        decisions: True or 1 where a scan was flagged (n,).
        labels: 0 or 1 for each scan (n,).
        subjects: subject of each scan; None where every scan is a subject of its own.
        prevalence: share of anomalous scans where the detector is to be used, in (0, 1), without
            error; None for that of these scans.
        method: `wilson` or `exact`, for sensitivity and specificity.
        replicates: bootstrap resamples, for several scans a subject.
        seed: seed of the resampling.
        confidence: coverage of the intervals, in (0, 1).

    Raises:
        ArgumentError: shapes that differ, values other than 0 and 1, or a prevalence outside (0, 1).
    """
    check_bootstrap(replicates, confidence)
    flagged, truth = np.asarray(decisions), np.asarray(labels)
    if flagged.ndim != 1 or flagged.shape != truth.shape or not flagged.size:
        raise ArgumentError(
            f"Decision metrics need one decision and one label a scan, not arrays of shapes "
            f"{flagged.shape} and {truth.shape}."
        )
    if not (np.isin(flagged, (0, 1)).all() and np.isin(truth, (0, 1)).all()):
        raise ArgumentError("Decisions and labels must be 0 or 1.")
    flagged, truth = flagged.astype(bool), truth.astype(bool)
    share = float(truth.mean()) if prevalence is None else float(prevalence)
    if prevalence is not None and not 0 < share < 1:
        raise ArgumentError(f"The prevalence must be between 0 and 1, not {prevalence}.")
    subject, count = number_subjects(subjects, truth.size)
    cells = (flagged & truth, flagged & ~truth, ~flagged & truth, ~flagged & ~truth)
    table = np.stack([np.bincount(subject[cell], minlength=count) for cell in cells], axis=1)
    tp, fp, fn, tn = (int(v) for v in table.sum(axis=0))

    def statistics(weights: Floats) -> dict[str, Floats]:
        return _from_counts((weights @ table).T, share)

    point = {name: float(v[0]) for name, v in statistics(np.ones((1, count))).items()}
    intervals: dict[str, Any]
    if count < truth.size:
        intervals = bca(
            statistics, point, count, replicates=replicates, seed=seed, confidence=confidence
        )
        for name, places in (("sensitivity", (0, 2)), ("specificity", (3, 1))):
            if point[name] in (0.0, 1.0):  # in every resample, too
                n = int((table[:, places].sum(axis=1) > 0).sum())
                bound = proportion(round(point[name]) * n, n, "exact", confidence)
                intervals[name] = dataclasses.replace(bound, reason=ALIKE)
    else:
        intervals = _closed_forms(point, (tp, fp, fn, tn), share, method, confidence)
    return DecisionMetrics(**intervals, prevalence=share, counts=(tp, fp, fn, tn), subjects=count)


def shift_prevalence(
    probability: npt.ArrayLike, prevalence: float, target: float
) -> npt.NDArray[np.float64]:
    """Return calibrated probabilities of an anomaly as they are at another prevalence.

    Only the odds before the scan change; what the scan itself says (its likelihood ratio) stays
    (Saerens et al., Neural Computation 14, 2002).

    Args:
        probability: probabilities in [0, 1] that are calibrated at `prevalence`.
        prevalence: share of anomalous scans in (0, 1) that they were calibrated at.
        target: share in (0, 1) where they are to be used.

    Raises:
        ArgumentError: a prevalence outside (0, 1).
    """
    if not (0 < prevalence < 1 and 0 < target < 1):
        raise ArgumentError(f"A prevalence is between 0 and 1, not {prevalence} and {target}.")
    p = np.asarray(probability, np.float64)
    anomalous = p * (target / prevalence)
    return anomalous / (anomalous + (1 - p) * ((1 - target) / (1 - prevalence)))


def _from_counts(counts: Floats, prevalence: float) -> dict[str, Floats]:
    """Return every metric (r,) from weighted counts (4, r); NaN or infinite where it is so."""
    tp, fp, fn, tn = counts
    with np.errstate(divide="ignore", invalid="ignore"):
        se, sp = tp / (tp + fn), tn / (tn + fp)
        hit, alarm = prevalence * se, (1 - prevalence) * (1 - sp)
        miss, clear = prevalence * (1 - se), (1 - prevalence) * sp
        values = (
            se,
            sp,
            hit / (hit + alarm),
            clear / (clear + miss),
            se / (1 - sp),
            (1 - se) / sp,
            hit + alarm,
        )
    return dict(zip(NAMES, values, strict=True))


def _closed_forms(
    point: dict[str, float],
    counts: tuple[int, int, int, int],
    prevalence: float,
    method: str,
    confidence: float,
) -> dict[str, Interval]:
    """Return the intervals for independent scans; anomalous and healthy ones are two samples."""
    from scipy.special import expit, logit, ndtri

    tp, fp, fn, tn = (float(c) for c in counts)
    n = int(sum(counts))
    z = float(ndtri((1 + confidence) / 2))
    both = {
        "sensitivity": proportion(counts[0], counts[0] + counts[2], method, confidence),
        "specificity": proportion(counts[3], counts[3] + counts[1], method, confidence),
    }
    if not (tp + fn) or not (fp + tn):
        why = "only one class"
        none = {
            name: Interval(point[name], math.nan, math.nan, n, 0, "none", why) for name in NAMES[2:]
        }
        return both | none
    centre, reason = dict(point), ""
    if min(counts) == 0:
        # z^2/2 more scans in each cell keep the logits finite; the values themselves stay.
        tp, fp, fn, tn = (c + z**2 / 2 for c in (tp, fp, fn, tn))
        reason = "a cell is empty: interval from adjusted counts"
        more = _from_counts(np.array([[tp], [fp], [fn], [tn]]), prevalence)
        centre = {name: float(v[0]) for name, v in more.items()}
    # Variances of log se, log(1 - sp), log(1 - se), log sp; of the two samples they add.
    flag = math.sqrt(fn / (tp * (tp + fn)) + tn / (fp * (fp + tn)))
    clear = math.sqrt(tp / (fn * (tp + fn)) + fp / (tn * (fp + tn)))
    se, sp = tp / (tp + fn), tn / (fp + tn)
    work = math.sqrt(
        (prevalence**2 * se * (1 - se)) / (tp + fn)
        + ((1 - prevalence) ** 2 * sp * (1 - sp)) / (fp + tn)
    )
    half = z * np.array([-1.0, 1.0])
    ends = {
        "ppv": expit(logit(centre["ppv"]) + half * flag),
        "npv": expit(logit(centre["npv"]) + half * clear),
        "lr_positive": centre["lr_positive"] * np.exp(half * flag),
        "lr_negative": centre["lr_negative"] * np.exp(half * clear),
        "flagged": np.clip(centre["flagged"] + half * work, 0, 1),
    }
    if reason:  # the adjusted counts have another centre: an interval holds its value
        ends = {
            name: (np.fmin(low, point[name]), np.fmax(high, point[name]))
            for name, (low, high) in ends.items()
        }
    methods = {"ppv": "logit", "npv": "logit", "flagged": "wald"}
    return both | {
        name: Interval(point[name], float(low), float(high), n, 0, methods.get(name, "log"), reason)
        for name, (low, high) in ends.items()
    }
