"""How well candidates tell planted anomalies from healthy images, and what weights follow from it.

Figures are AUROCs by kind. An anomaly lifts the score of its host by something, and that is what a
candidate is judged by: how often any healthy image, lifted by as much, is above any other. So the
differences between healthy images count fully, and which of them happened to be the host not at all;
few images then say what would else take many. An anomaly that every candidate lifts above all healthy
images tells them not apart and doesn't count. A kind that a candidate trained on doesn't count for it:
there it stands as the others' mean does.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

Floats = npt.NDArray[np.float64]

DRAWS = 100  # of the subjects, for a standard error
MOST = 5  # members
LEAST = 2
CLOSE = 0.1  # a member that is further behind the best, beyond doubt, is dropped
PRIOR = 20.0  # subjects that equal weights count for


@dataclass(frozen=True)
class Trial:
    """Whose the images are that judge.

    Attributes:
        subjects: (n,) number of the subject of each healthy image, from 0 without gaps.
        hosts: (m,) healthy image that each planted one was made of.
        kinds: (m,) kind of each planted one.
        count: of kinds.
    """

    subjects: npt.NDArray[np.int_]
    hosts: npt.NDArray[np.int_]
    kinds: npt.NDArray[np.int_]
    count: int

    @property
    def people(self) -> int:
        """Number of subjects."""
        return int(self.subjects.max(initial=-1)) + 1

    def areas(self, healthy: Floats, planted: Floats, counted: Floats, draws: Floats) -> Floats:
        """Return the AUROCs (count, B); NaN for a kind without an anomaly.

        Args:
            healthy: scores (n,).
            planted: scores (m,).
            counted: (m,) 1 for the anomalies that count.
            draws: (people, B) how often each subject is drawn.
        """
        n = len(healthy)
        apart = (self.subjects[:, None] != self.subjects[None]).ravel()
        drawn = draws[self.subjects]
        weight = (drawn[:, None] * drawn[None]).reshape(n * n, -1)[apart]
        gap = (healthy[None] - healthy[:, None]).ravel()[apart]
        lift = planted - healthy[self.hosts]
        wins = (lift[:, None] > gap) + 0.5 * (lift[:, None] == gap)
        won = wins @ weight / np.maximum(weight.sum(0), 1e-12)
        own = drawn[self.hosts] * counted[:, None]
        found = np.full((self.count, draws.shape[1]), np.nan)
        for kind in range(self.count):
            mine = self.kinds == kind
            total = own[mine].sum(0)
            part = (own[mine] * won[mine]).sum(0)
            found[kind] = np.divide(part, total, out=np.full_like(total, np.nan), where=total > 0)
        return found


@dataclass(frozen=True)
class Scores:
    """Scores of one candidate.

    Attributes:
        healthy: (n,).
        planted: (m,).
        skipped: (count,) bool: kinds that don't count for it.
    """

    healthy: Floats
    planted: Floats
    skipped: npt.NDArray[np.bool_]


@dataclass(frozen=True)
class Weighed:
    """What the evidence says of candidates.

    Attributes:
        areas: (candidates, count) AUROC by kind.
        mean: (candidates,) of them.
        error: (candidates,) standard error of how far each is behind the best, by drawing the
            subjects again.
        weights: (candidates,) sum 1; 0 for those that are dropped.
    """

    areas: Floats
    mean: Floats
    error: Floats
    weights: Floats


def weigh(trial: Trial, scores: Sequence[Scores], seed: int) -> Weighed:
    """Weigh candidates by what they find.

    Those that are beyond doubt more than ``CLOSE`` behind the best are dropped, and of the rest all
    but the best ``MOST``. Weights grow with 2 AUROC - 1 and are shrunk to equal ones, the more the
    fewer subjects judge.
    """
    once = np.ones((trial.people, 1))
    people = np.random.default_rng(seed)
    share = np.full(trial.people, 1 / trial.people)
    drawn = people.multinomial(trial.people, share, DRAWS).T.astype(float)
    counted = _told(trial, scores)
    areas = _filled(np.stack([_seen(trial, s, counted, once) for s in scores]))[..., 0]
    spread = np.nanmean(_filled(np.stack([_seen(trial, s, counted, drawn) for s in scores])), 1)
    mean = np.nanmean(areas, axis=1)
    best = int(mean.argmax())
    error = np.nanstd(spread[best] - spread, axis=1)
    return Weighed(areas, mean, error, weights_of(mean, error, trial.people))


def weights_of(mean: Floats, error: Floats, people: int) -> Floats:
    """Return weights (n,) from mean AUROCs (n,) and the errors of how far each is behind the best."""
    order = np.argsort(-mean, kind="stable")
    behind = mean.max() - mean
    kept = [i for i in order if behind[i] - 2 * error[i] <= CLOSE and mean[i] > 0.5]
    if len(kept) < LEAST:
        kept = list(order[:LEAST])
    kept = kept[:MOST]
    strength = np.zeros(len(mean))
    strength[kept] = np.maximum(2 * mean[kept] - 1, 0)
    equal = np.zeros(len(mean))
    equal[kept] = 1 / len(kept)
    if not strength.sum():
        return equal
    trust = people / (people + PRIOR)
    return np.asarray(trust * strength / strength.sum() + (1 - trust) * equal)


def left_out(trial: Trial, scores: Sequence[Scores], weighed: Weighed) -> tuple[Floats, Floats]:
    """Judge each kind by members that the other kinds chose.

    Returns:
        For each kind the AUROC (count,) of the members together, and of the single one that is best
        on the other kinds.
    """
    once, every = np.ones((trial.people, 1)), np.ones(len(trial.kinds))
    fused, single = np.full(trial.count, np.nan), np.full(trial.count, np.nan)
    for kind in range(trial.count):
        others = np.arange(trial.count) != kind
        if not np.isfinite(weighed.areas[:, others]).any():
            continue
        mean = np.nanmean(weighed.areas[:, others], axis=1)
        weights = weights_of(mean, weighed.error, trial.people)
        healthy = weights @ np.stack([s.healthy for s in scores])
        planted = weights @ np.stack([s.planted for s in scores])
        fused[kind] = trial.areas(healthy, planted, every, once)[kind, 0]
        best = scores[int(mean.argmax())]
        single[kind] = trial.areas(best.healthy, best.planted, every, once)[kind, 0]
    return fused, single


def choose(
    trial: Trial, healthy: Mapping[str, Floats], planted: Mapping[str, Floats], seed: int
) -> int:
    """Return the place of the image score to take: the first, unless another is clearly better.

    Clearly: its mean AUROC is higher by more than two standard errors of the difference.
    """
    people = np.random.default_rng(seed)
    share = np.full(trial.people, 1 / trial.people)
    drawn = people.multinomial(trial.people, share, DRAWS).T.astype(float)
    draws = np.concatenate([np.ones((trial.people, 1)), drawn], axis=1)
    every = np.ones(len(trial.kinds))
    found = [np.nanmean(trial.areas(healthy[k], planted[k], every, draws), 0) for k in healthy]
    gains = [float(f[0] - found[0][0]) for f in found]
    clear = [g for g, f in zip(gains, found, strict=True) if g > 2 * np.nanstd(f - found[0])]
    return gains.index(max(clear)) if clear and max(clear) > 0 else 0


def _told(trial: Trial, scores: Sequence[Scores]) -> Floats:
    """Return 1 (m,) for anomalies that not every candidate finds; all of them where few are left."""
    plain = np.all([s.planted > s.healthy.max() for s in scores], axis=0)
    counted = np.asarray(~plain, np.float64)
    return counted if counted.sum() >= 0.25 * len(plain) else np.ones(len(plain))


def _seen(trial: Trial, scores: Scores, counted: Floats, draws: Floats) -> Floats:
    areas = trial.areas(scores.healthy, scores.planted, counted, draws)
    areas[scores.skipped] = np.nan
    return areas


def _filled(areas: Floats) -> Floats:
    """Fill what doesn't count with the mean of the candidates for which it does."""
    known = np.isfinite(areas)
    total = np.where(known, areas, 0).sum(0)
    mean = np.divide(total, known.sum(0), out=np.full_like(total, np.nan), where=known.any(0))
    return np.where(known, areas, mean[None])
