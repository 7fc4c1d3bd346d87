"""How well candidates tell planted anomalies from healthy images, and what follows from it.

Figures are AUROCs by kind. An anomaly lifts the score of its host by something, and that is what a
candidate is judged by: how often any healthy image, lifted by as much, is above any other. So the
differences between healthy images count fully, and which of them happened to be the host not at all;
few images then say what would else take many. A kind that nobody finds, or everybody, tells candidates
not apart and doesn't count. Nor does one for a candidate that trained on it: there it stands as the
others' mean does.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from normscan.auto.member import quantiles

Floats = npt.NDArray[np.float64]
Kinds = npt.NDArray[np.bool_]

DRAWS = 100  # of the subjects, for a standard error
CLEAR = 2.0  # standard errors that a difference must have
MOST = 5  # members
LEAST = 0.02  # weight of a member, which costs as much as another one of more
PLAIN = 0.95  # AUROC that all candidates have for a kind that everybody finds


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

    def draws(self, seed: int) -> Floats:
        """Return how often each subject is drawn (people, 1 + DRAWS); once each in the first."""
        share = np.full(self.people, 1 / self.people)
        drawn = np.random.default_rng(seed).multinomial(self.people, share, DRAWS).T
        return np.concatenate([np.ones((self.people, 1)), drawn], axis=1)

    def areas(self, healthy: Floats, planted: Floats, draws: Floats) -> Floats:
        """Return the AUROCs (count, B); NaN for a kind without an anomaly.

        Args:
            healthy: scores (n,).
            planted: scores (m,).
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
        own = drawn[self.hosts]
        found = np.full((self.count, draws.shape[1]), np.nan)
        for kind in range(self.count):
            mine = self.kinds == kind
            total = own[mine].sum(0)
            part = (own[mine] * won[mine]).sum(0)
            found[kind] = np.divide(part, total, out=np.full_like(total, np.nan), where=total > 0)
        return found


@dataclass(frozen=True)
class Scores:
    """Scores of one candidate, by the name of the image score, the usual one first.

    Attributes:
        healthy: (n,) each.
        planted: (m,) each.
        skipped: (count,) bool: kinds that don't count for it.
    """

    healthy: Mapping[str, Floats]
    planted: Mapping[str, Floats]
    skipped: Kinds


@dataclass(frozen=True)
class Evidence:
    """What planted anomalies say of candidates.

    Attributes:
        chosen: name of the image score of each candidate.
        areas: (candidates, count) AUROC by kind.
        counted: (count,) bool: kinds that tell candidates apart.
        mean: (candidates,) AUROC over these.
        error: (candidates,) its standard error, by drawing the subjects again.
        behind: (candidates,) standard error of how far it is behind the best.
        weights: (candidates,) sum 1; 0 for those that are dropped.
        together: (count,) AUROC of the members that the other kinds chose, NaN where not counted.
        single: (count,) that of the candidate that is best on the other kinds.
    """

    chosen: list[str]
    areas: Floats
    counted: Kinds
    mean: Floats
    error: Floats
    behind: Floats
    weights: Floats
    together: Floats
    single: Floats


def weigh(trial: Trial, scores: Sequence[Scores], seed: int) -> Evidence:
    """Choose the image score of each candidate and weigh them.

    Args:
        trial: whose images judge.
        scores: of each candidate.
        seed: of the draws.
    """
    draws = trial.draws(seed)
    cubes = [
        np.stack([trial.areas(s.healthy[name], s.planted[name], draws) for name in s.healthy])
        for s in scores
    ]  # (image scores, count, 1 + DRAWS) each
    skipped = np.stack([s.skipped for s in scores])
    usual = np.stack([cube[0] for cube in cubes])
    counted = telling(np.where(skipped[..., None], np.nan, usual))
    at = [choose(cube[:, counted]) for cube in cubes]
    areas = filled(np.stack([c[i] for c, i in zip(cubes, at, strict=True)]), skipped)
    mean, error, behind = figures(areas[:, counted])
    weights = weights_of(mean, behind)
    names = [list(s.healthy)[i] for s, i in zip(scores, at, strict=True)]
    together, single = _left_out(trial, scores, cubes, skipped, counted)
    return Evidence(names, areas[..., 0], counted, mean, error, behind, weights, together, single)


def telling(areas: Floats) -> Kinds:
    """Return which kinds (count,) tell candidates apart: somebody finds them, and not everybody.

    Args:
        areas: (candidates, count, 1 + DRAWS).
    """
    first, error = areas[..., 0], areas[..., 1:].std(axis=2)
    known = np.isfinite(first)
    found = first - CLEAR * error > 0.5
    apart = found.any(0) & ((first <= PLAIN) & known).any(0)
    return np.asarray(apart if apart.any() else known.any(0))


def choose(areas: Floats) -> int:
    """Return the place of the image score to take: the first, unless another is clearly better.

    Clearly: its mean AUROC is higher by more than ``CLEAR`` standard errors of the difference.

    Args:
        areas: (image scores, kinds, 1 + DRAWS).
    """
    gains = np.nanmean(areas, axis=1)
    gains = gains - gains[0]
    clear = gains[:, 0] > CLEAR * gains[:, 1:].std(1)
    return int(np.where(clear, gains[:, 0], 0).argmax())


def figures(areas: Floats) -> tuple[Floats, Floats, Floats]:
    """Return mean AUROC, its error and that of how far it is behind the best, (candidates,) each.

    Args:
        areas: (candidates, kinds, 1 + DRAWS).
    """
    means = np.nanmean(areas, axis=1)
    best = int(means[:, 0].argmax())
    spread = means[:, 1:]
    return means[:, 0], spread.std(1), (spread[best] - spread).std(1)


def weights_of(mean: Floats, behind: Floats) -> Floats:
    """Return weights (n,) from mean AUROCs (n,) and the errors of how far each is behind the best.

    AUROCs are drawn together by as much as their differences are chance (empirical Bayes): of equal
    candidates none gets more. Of what is left above 0.5 the square is the weight, of ``MOST`` members
    at most, each of ``LEAST`` at least. A member that is clearly behind stays: it may find what the
    others don't.
    """
    others = behind > 0
    chance = float((behind[others] ** 2).mean() / 2) if others.any() else 0.0
    spread = float(mean.var(ddof=1)) if len(mean) > 1 else 0.0
    sure = max(0.0, 1 - chance / spread) if spread else 0.0
    drawn = mean.mean() + sure * (mean - mean.mean())
    strength = np.maximum(2 * drawn - 1, 0) ** 2
    strength[np.argsort(-mean, kind="stable")[MOST:]] = 0
    if not strength.sum():  # nobody finds anything
        strength[np.argsort(-mean, kind="stable")[:MOST]] = 1
    strength /= strength.sum()
    strength[strength < LEAST] = 0
    return np.asarray(strength / strength.sum())


def filled(areas: Floats, skipped: Kinds) -> Floats:
    """Fill what doesn't count for a candidate with the mean of those for which it does."""
    known = np.isfinite(areas) & ~skipped[..., None]
    total = np.where(known, areas, 0).sum(0)
    mean = np.divide(total, known.sum(0), out=np.full_like(total, np.nan), where=known.any(0))
    return np.where(known, areas, mean[None])


def _left_out(
    trial: Trial,
    scores: Sequence[Scores],
    cubes: Sequence[Floats],
    skipped: Kinds,
    counted: Kinds,
) -> tuple[Floats, Floats]:
    """Judge each counted kind by members whose scores and weights the other kinds chose."""
    once = np.ones((trial.people, 1))
    together, single = np.full(trial.count, np.nan), np.full(trial.count, np.nan)
    for kind in np.flatnonzero(counted):
        others = counted & (np.arange(trial.count) != kind)
        if not others.any():
            continue
        at = [choose(cube[:, others]) for cube in cubes]
        areas = filled(np.stack([c[i] for c, i in zip(cubes, at, strict=True)]), skipped)
        mean, _, behind = figures(areas[:, others])
        weights, names = weights_of(mean, behind), [list(s.healthy) for s in scores]
        healthy, planted = np.zeros(len(trial.subjects)), np.zeros(len(trial.kinds))
        for weight, one, name, i in zip(weights, scores, names, at, strict=True):
            known = np.sort(one.healthy[name[i]])
            healthy += weight * quantiles(one.healthy[name[i]], known)
            planted += weight * quantiles(one.planted[name[i]], known)
        together[kind] = trial.areas(healthy, planted, once)[kind, 0]
        best = int(mean.argmax())
        single[kind] = cubes[best][at[best], kind, 0]
    return together, single
