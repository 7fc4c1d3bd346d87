"""How far a scan lies from the nearest healthy ones, and how far healthy scans lie themselves."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from normscan.quality.features import UNIT, turned

NEIGHBOURS = 3
# Chance that a healthy scan of the same kind is beyond the limit, and beyond the far limit.
RATE, FAR_RATE = 0.01, 1e-4
# Chance that it is beyond the limit of any view, where subjects are too few to count it out.
ANY_RATE = 0.03
# The far limit is at least so many times the limit, with more for each of a few subjects: what sets
# one subject apart (a scanner, a protocol) is shared by all its scans and seen once only.
LEAST_FAR, FAR_OF_FEW = 1.5, 25.0
# Chance that a healthy scan is beyond the limit of all views together, and the least such limit: a
# lesion moves one view or two, another kind of scan all of them.
TOGETHER_RATE, LEAST_TOGETHER = 1e-3, 0.8
# Fewer subjects say nothing of one scan in a thousand: there is no limit of all views together.
FEWEST_TOGETHER = 30
# Prior of the spread of log distances, with the weight of so many subjects.
PRIOR_SPREAD, PRIOR_WEIGHT = 0.25, 2
# Distances are in robust standard deviations; below this one they mean nothing.
SMALLEST = 0.1
# A lesion changes few features much, another kind of scan most of them.
MOST_DEVIATIONS = 10.0
SMALLEST_SCALE = 0.05
# Scans whose turned thumbnails are compared to set the limit of that.
TURNED_SCANS = 60
SMALLEST_TURN = 1.1


def upper_limit(values: np.ndarray, subjects: int, rate: float = RATE) -> float:
    """Return a value that a new positive value of the same kind exceeds with a small probability.

    The upper prediction limit of log-normal values. The spread is that above the median (the upper
    tail may be the longer one), pulled towards a prior one, so that a single subject gives a limit
    too, a wide one.

    Args:
        values: (n,) positive.
        subjects: number of subjects they are of: scans of one resemble each other.
        rate: wanted probability.
    """
    from scipy.stats import norm, t

    logs = np.log(values)
    middle = float(np.median(logs))
    spread = float(logs.std())
    for quantile in (0.95, 0.99):
        above = float(np.quantile(logs, quantile)) - middle
        spread = max(spread, above / float(norm.ppf(quantile)))
    degrees = PRIOR_WEIGHT + subjects - 1
    variance = (PRIOR_WEIGHT * PRIOR_SPREAD**2 + (subjects - 1) * spread**2) / degrees
    reach = float(t.ppf(1 - rate, degrees)) * math.sqrt(variance * (1 + 1 / subjects))
    return math.exp(middle + reach)


def common_factor(times: np.ndarray, subjects: int) -> float:
    """Return the factor on the limits of all views with which few healthy scans exceed any of them.

    With enough subjects the conformal quantile of the largest ratio, else its prediction limit.

    Args:
        times: (n,) largest ratio of distance to limit over the views.
        subjects: number of subjects.
    """
    if subjects + 1 >= 1 / RATE:
        return float(np.sort(times)[-math.floor(RATE * (len(times) + 1))])
    return max(1.0, upper_limit(times, subjects, ANY_RATE))


@dataclass(frozen=True)
class Nearest:
    """Healthy feature vectors with the limits of their distances.

    Attributes:
        views: number of features of each view, in the order of the columns.
        vectors: (n, features) whole hundredths.
        scale: (features,) robust standard deviation.
        limits: largest distance of a healthy scan, for each view.
        far: how many times the limit a scan of another kind lies away, for each view.
        turn_limit: how many times nearer than upright a healthy scan may seem when turned.
        dims: 2 or 3.
        together: geometric mean over the views of distance to limit beyond which a scan is of another
            kind, though no view says so alone; infinite for a gate that was stored without.
        names: of the healthy scans, in the order of the vectors; empty where nobody told them.
    """

    views: dict[str, int]
    vectors: np.ndarray
    scale: np.ndarray
    limits: dict[str, float]
    far: dict[str, float]
    turn_limit: float
    dims: int
    together: float = math.inf
    names: tuple[str, ...] = ()

    @classmethod
    def fit(
        cls,
        views: dict[str, int],
        vectors: np.ndarray,
        subjects: Sequence[str],
        held_out: np.ndarray,
        dims: int,
        scans: Sequence[str] = (),
    ) -> Nearest | None:
        """Set the limits from distances to the scans of other subjects.

        Args:
            views: number of features of each view.
            vectors: (n, features) whole hundredths, of training scans.
            subjects: (n,) of each training scan.
            held_out: (m, features) of healthy scans of yet other subjects; may be empty.
            dims: 2 or 3.
            scans: (n,) names of the training scans, or none.

        Returns:
            None with a single subject and nothing held out: there is no distance to go by.
        """
        middle = np.median(vectors, axis=0)
        robust = 1.4826 * np.median(np.abs(vectors - middle), axis=0) / UNIT
        scale = np.maximum.reduce([robust, 0.5 * vectors.std(axis=0) / UNIT])
        blank = cls(views, vectors, np.maximum(scale, SMALLEST_SCALE), {}, {}, math.inf, dims)
        names = np.asarray(subjects)
        compared = [(v, names != s) for v, s in zip(vectors, subjects, strict=True)]
        compared = [(v, others) for v, others in compared if others.any()]
        count = len(set(subjects)) if compared else 0
        compared += [(v, np.ones(len(names), bool)) for v in held_out]
        if not compared:
            return None
        count += len(held_out)
        found = [blank.distances(v, others) for v, others in compared]
        table = np.array([[f[view] for view in views] for f in found])
        limits = np.array([upper_limit(column, count) for column in table.T])
        far = np.array([upper_limit(column, count, FAR_RATE) for column in table.T]) / limits
        far = np.maximum(far, LEAST_FAR + FAR_OF_FEW / count)
        limits *= common_factor((table / limits).max(axis=1), count)
        together = math.inf
        if count >= FEWEST_TOGETHER:
            means = np.exp(np.log(table / limits).mean(axis=1))
            together = max(LEAST_TOGETHER, upper_limit(means, count, TOGETHER_RATE))
        some = compared[:: -(-len(compared) // TURNED_SCANS)]
        turns = np.array([blank.turn(v, others)[1] for v, others in some])
        return cls(
            views,
            vectors,
            blank.scale,
            {v: float(f"{limit:.4g}") for v, limit in zip(views, limits, strict=True)},
            {v: float(f"{f:.4g}") for v, f in zip(views, far, strict=True)},
            float(f"{max(SMALLEST_TURN, upper_limit(turns, min(count, len(turns)))):.4g}"),
            dims,
            float(f"{together:.4g}"),
            tuple(scans) if all(scans) else (),
        )

    @property
    def fill_frames(self) -> bool:
        """Whether most of the healthy scans touch their borders, as their outlines say."""
        touched = self.vectors[:, self._columns("outline")][:, -2 * self.dims :] / UNIT
        return bool(np.median(touched.mean(axis=1)) >= 0.5)

    def _columns(self, view: str) -> slice:
        names = list(self.views)
        start = sum(self.views[n] for n in names[: names.index(view)])
        return slice(start, start + self.views[view])

    def _distance(self, view: str, values: np.ndarray, among: np.ndarray | None) -> float:
        nearest = np.sort(self._away(view, values, among))[:NEIGHBOURS]
        return float(nearest.mean()) + SMALLEST

    def _away(self, view: str, values: np.ndarray, among: np.ndarray | None) -> np.ndarray:
        """Mean distance over the features of a view to each of the healthy scans."""
        columns = self._columns(view)
        others = self.vectors[:, columns] if among is None else self.vectors[among, columns]
        away = np.abs(others - values) / (UNIT * self.scale[columns])
        return np.asarray(np.minimum(away, MOST_DEVIATIONS).mean(axis=1))

    def most_like(self, vector: np.ndarray, count: int = NEIGHBOURS) -> tuple[dict[str, Any], ...]:
        """Return the healthy scans that look most alike, the nearest first.

        Each with its name ``scan``, ``times`` (geometric mean over the views of distance to limit:
        1 is as far as healthy scans lie at most) and the same ``by_view``. None where the healthy
        scans have no names.

        Args:
            vector: (features,) whole hundredths.
            count: how many.
        """
        if not self.names:
            return ()
        table = np.stack([
            (self._away(view, vector[self._columns(view)], None) + SMALLEST) / self.limits[view]
            for view in self.views
        ])  # fmt: skip
        means = np.exp(np.log(table).mean(axis=0))
        return tuple(
            {
                "scan": self.names[i],
                "times": float(f"{means[i]:.4g}"),
                "by_view": {
                    v: float(f"{t:.4g}") for v, t in zip(self.views, table[:, i], strict=True)
                },
            }
            for i in np.argsort(means, kind="stable")[:count]
        )

    def distances(self, vector: np.ndarray, among: np.ndarray | None = None) -> dict[str, float]:
        """Return the mean distance to the three nearest healthy scans, for each view.

        Args:
            vector: (features,) whole hundredths.
            among: (n,) bool, the healthy scans that count; all by default.
        """
        return {v: self._distance(v, vector[self._columns(v)], among) for v in self.views}

    def turn(self, vector: np.ndarray, among: np.ndarray | None = None) -> tuple[str, float]:
        """Return the nearest other way up, and how many times nearer than upright it is."""
        ways = turned(vector[self._columns("picture")], self.dims)
        best = {
            name: min(self._distance("picture", p, among) for p in pictures)
            for name, pictures in ways.items()
        }
        upright = best.pop("as it is")
        name = min(best, key=best.__getitem__)
        return name, upright / best[name]

    def to_dict(self) -> dict[str, Any]:
        """Return JSON values; a feature vector is one string of whole numbers."""
        return {
            "views": self.views,
            "vectors": [" ".join(map(str, v)) for v in self.vectors.tolist()],
            "scale": " ".join(f"{s:.17g}" for s in self.scale.tolist()),
            "limits": self.limits,
            "far": self.far,
            "turn_limit": self.turn_limit,
            "dims": self.dims,
            "together": self.together if math.isfinite(self.together) else None,
            "names": list(self.names),
        }

    @classmethod
    def from_dict(cls, state: Mapping[str, Any]) -> Nearest:
        """Return what ``to_dict`` gave.

        Raises:
            ValueError: parts that don't fit each other.
            KeyError: a part is missing.
            TypeError: a part of another type.
        """
        views = {str(k): int(v) for k, v in state["views"].items()}
        try:
            rows = [np.array(row.split(), dtype=np.int32) for row in state["vectors"]]
        except OverflowError as error:
            raise ValueError(f"a vector of the nearest scans: {error}") from error
        found = cls(
            views,
            np.stack(rows),
            np.array(state["scale"].split(), dtype=np.float64),
            {v: float(state["limits"][v]) for v in views},
            {v: float(state["far"][v]) for v in views},
            float(state["turn_limit"]),
            int(state["dims"]),
            float("inf" if state.get("together") is None else state["together"]),
            tuple(map(str, state.get("names", ()))),
        )
        width = sum(views.values())
        if found.names and len(found.names) != len(found.vectors):
            raise ValueError("there are not as many names as feature vectors")
        if found.vectors.shape[1] != width or found.scale.shape != (width,):
            raise ValueError("the feature vectors don't have the stored length")
        if not (np.isfinite(found.scale).all() and (found.scale > 0).all()):
            raise ValueError("the scales of the features are not positive")
        return found
