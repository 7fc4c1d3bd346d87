"""From planted lesions to detection probabilities, and from these to the smallest that is found."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from normscan.errors import ArgumentError
from normscan.metrics.estimates import resamples
from normscan.metrics.predictive import proportion

if TYPE_CHECKING:
    import pandas as pd

Floats = npt.NDArray[np.float64]

LEVELS = {"scan": "flagged", "lesion": "found"}
PROBABILITIES = (0.5, 0.9)
CONFIDENCE = 0.95
_RIDGE = 0.01  # keeps the slopes finite where every lesion above a size is found


@dataclass(frozen=True)
class Curve:
    """Detection probability as floor + (1 - floor) * logistic(a + b x + c y + d x y).

    Attributes:
        intercept: a.
        by_size: b, of x = ln(diameter in mm).
        by_contrast: c, of y = ln(contrast without its sign).
        both: d; the probability falls with neither size nor contrast within the tested ones.
        floor: the rate at which healthy twins are flagged.
    """

    intercept: float
    by_size: float
    by_contrast: float
    both: float = 0.0
    floor: float = 0.0

    def odds(self, x: npt.ArrayLike, y: npt.ArrayLike) -> Floats:
        """Return the log odds above the floor at ln(diameter) and ln(contrast), broadcast."""
        x, y = np.asarray(x, float), np.asarray(y, float)
        return self.intercept + self.by_size * x + self.by_contrast * y + self.both * x * y

    def probability(self, size: npt.ArrayLike, contrast: npt.ArrayLike) -> Floats:
        """Return the probability at diameters in mm and contrasts, broadcast."""
        from scipy.special import expit

        inside = self.odds(np.log(np.asarray(size)), np.log(np.abs(np.asarray(contrast))))
        return np.asarray(self.floor + (1 - self.floor) * expit(inside))

    def size_at(self, contrast: float, probability: float) -> float:
        """Return the diameter in mm at which a probability is reached; inf for nowhere."""
        y = math.log(abs(contrast))
        return self._solve(self.by_size + self.both * y, self.by_contrast * y, probability)

    def contrast_at(self, size: float, probability: float) -> float:
        """Return the contrast, without sign, at which a probability is reached; inf for nowhere."""
        x = math.log(size)
        return self._solve(self.by_contrast + self.both * x, self.by_size * x, probability)

    def _solve(self, slope: float, known: float, probability: float) -> float:
        share = (probability - self.floor) / (1 - self.floor) if self.floor < 1 else 0.0
        if share <= 0:
            return 0.0
        missing = math.log(share / (1 - share)) - self.intercept - known
        if slope < 1e-9:
            return 0.0 if missing <= 0 else math.inf
        return math.exp(min(missing / slope, 700.0))


def fit_curve(
    sizes: Floats,
    contrasts: Floats,
    found: Floats,
    planted: Floats,
    floor: float,
    start: Curve | None = None,
) -> Curve:
    """Fit a curve that never falls, by penalised maximum likelihood.

    Args:
        sizes: diameters in mm (cells,), two different ones or more.
        contrasts: without sign (cells,).
        found: lesions found (cells,), may be weighted.
        planted: lesions planted (cells,).
        floor: rate of healthy twins flagged, taken as known.
        start: where to begin.
    """
    from scipy.optimize import minimize
    from scipy.special import expit

    floor = min(floor, 0.999)
    x, y = np.log(sizes), np.log(contrasts)
    left, low = float(x.min()), float(y.min())
    width, height = float(np.ptp(x)), float(np.ptp(y)) or 1.0
    u, v = (x - left) / width, (y - low) / height
    design = np.column_stack([np.ones_like(u), u, v, u * v])
    # Bilinear on the unit square: it never falls if it doesn't along the four sides. With a single
    # contrast nothing is known of another.
    free = (None, None) if np.ptp(y) > 0 else (0.0, 0.0)
    bounds = [(None, None), (0, None), (0, free[1]), free]
    sides = np.array([[0.0, 1, 0, 1], [0, 0, 1, 1]])
    rules = {"type": "ineq", "fun": lambda b: sides @ b, "jac": lambda b: sides}
    # The intercept is held most weakly: cells that are all found, or none, pull it to infinity.
    ridge = _RIDGE * np.array([0.1, 1.0, 1.0, 1.0])

    def loss(b: Floats) -> tuple[float, Floats]:
        inside = expit(design @ b)
        p = np.clip(floor + (1 - floor) * inside, 1e-12, 1 - 1e-12)
        value = -np.sum(found * np.log(p) + (planted - found) * np.log1p(-p))
        slope = (found / p - (planted - found) / (1 - p)) * (1 - floor) * inside * (1 - inside)
        return float(value + 0.5 * np.sum(ridge * b * b)), ridge * b - design.T @ slope

    if start is None:
        first = np.array([-3.0, 3.0, 3.0 if free[1] is None else 0.0, 0.0])
    else:
        corners = start.odds([left, left + width, left], [low, low, low + height])
        a, b, c = corners[0], corners[1] - corners[0], corners[2] - corners[0]
        last = float(start.odds(left + width, low + height)) - a - b - c
        first = np.array([a, b, *((c, last) if free[1] is None else (0.0, 0.0))])
    options = {"maxiter": 300, "ftol": 1e-9}
    a, b, c, d = minimize(
        loss, first, jac=True, method="SLSQP", bounds=bounds, constraints=rules, options=options
    ).x
    b, c, d = b / width, c / height, d / (width * height)
    return Curve(
        intercept=float(a - b * left - c * low + d * left * low),
        by_size=float(b - d * low),
        by_contrast=float(c - d * left),
        both=float(d),
        floor=floor,
    )


@dataclass(frozen=True)
class Limit:
    """A diameter, or a contrast, at which a detection probability is reached.

    Attributes:
        value: of the fit; inf where it isn't reached within the tested range, the smallest tested
            one where it is reached there already.
        low: lower end of the bootstrap interval over subjects, cut as the value; NaN without one.
        high: upper end.
        least: smallest tested diameter or contrast.
        most: largest tested one.

    As text, ``≤ 4`` is reached at the smallest tested value already, ``never`` not at the largest.
    """

    value: float
    low: float
    high: float
    least: float
    most: float

    @property
    def reached(self) -> bool:
        """Whether the probability is reached within the tested range."""
        return math.isfinite(self.value)

    def __str__(self) -> str:
        if math.isnan(self.low) or (not self.reached and self.low > self.most):
            return self._end(self.value)
        return f"{self._end(self.value)} ({self._end(self.low)} to {self._end(self.high)})"

    def _end(self, value: float) -> str:
        if value > self.most:
            return "never"
        return f"{'≤ ' if value <= self.least else ''}{value:.2g}"

    def to_dict(self) -> dict[str, Any]:
        """Return JSON values; None for never, and for no interval."""
        values = {"value": self.value, "low": self.low, "high": self.high}
        plain = {k: v if math.isfinite(v) else None for k, v in values.items()}
        return {**plain, "reached": self.reached, "text": str(self)}


@dataclass(frozen=True)
class Surface:
    """The fitted probabilities of one level and one sign of the contrast.

    Attributes:
        level: ``scan`` or ``lesion``.
        sign: 1 for brighter lesions, -1 for darker ones.
        curve: fitted to all subjects.
        replicates: fitted to resampled subjects; none with one subject.
        sizes: tested diameters in mm, ascending.
        contrasts: tested contrasts without sign, ascending.
    """

    level: str
    sign: int
    curve: Curve
    sizes: tuple[float, ...]
    contrasts: tuple[float, ...]
    replicates: list[Curve] = field(default_factory=list, repr=False)

    def smallest(self, contrast: float, probability: float) -> Limit:
        """Return the smallest diameter in mm of a contrast that is found with a probability."""
        values = [c.size_at(contrast, probability) for c in (self.curve, *self.replicates)]
        return _limit(values, self.sizes)

    def faintest(self, size: float, probability: float) -> Limit:
        """Return the faintest contrast, without sign, of a diameter in mm that is found."""
        values = [c.contrast_at(size, probability) for c in (self.curve, *self.replicates)]
        return _limit(values, self.contrasts)


def _limit(values: Sequence[float], tested: tuple[float, ...]) -> Limit:
    least, most = tested[0], tested[-1]
    cut = [math.inf if v > most else max(v, least) for v in values]
    low = high = math.nan
    if len(cut) > 1:
        tail = (1 - CONFIDENCE) / 2
        # An order statistic: infinities can't be averaged.
        low, high = np.quantile(cut[1:], [tail, 1 - tail], method="nearest")
    return Limit(cut[0], float(low), float(high), least, most)


def cells(rows: pd.DataFrame, level: str) -> pd.DataFrame:
    """Count what was found in each cell of the grid.

    Args:
        rows: planted lesions and healthy twins, as in ``limits.csv``.
        level: ``scan`` or ``lesion``.

    Returns:
        One row per contrast and size: planted, found, probability, low, high (Wilson), twins (share
        of the healthy twins for which the same holds), reached (mean contrast in robust standard
        deviations).
    """
    import pandas as pd

    made = []
    lesions, floor = rows[rows["size"] > 0], healthy_rate(rows, level)
    for _, part in lesions.groupby(["contrast", "size"]):
        contrast, size = part["contrast"].iloc[0], part["size"].iloc[0]
        hits = int(part[LEVELS[level]].astype(bool).sum())
        share = proportion(hits, len(part), confidence=CONFIDENCE)
        at_twin = floor if level == "scan" else float(part["twin_hit"].astype(bool).mean())
        made.append(
            {
                "level": level, "contrast": float(contrast), "size": float(size),
                "planted": len(part), "found": hits, "probability": share.value,
                "low": share.low, "high": share.high, "twins": at_twin,
                "reached": float(part["reached"].mean()),
            }
        )  # fmt: skip
    return pd.DataFrame(made)


def healthy_rate(rows: pd.DataFrame, level: str = "scan") -> float:
    """Return the share of healthy twins that are flagged, each scan once; 0 for lesions.

    A lesion counts as found only where its twin has nothing, so nothing is found in a twin.
    """
    if level == "lesion":
        return 0.0
    twins = rows[rows["size"] == 0].drop_duplicates("scan")
    return float(twins["flagged"].astype(bool).mean())


def surfaces(rows: pd.DataFrame, level: str, replicates: int = 200, seed: int = 0) -> list[Surface]:
    """Fit the probabilities of each sign of the contrast, with replicates over subjects.

    Args:
        rows: planted lesions and healthy twins, as in ``limits.csv``.
        level: ``scan`` or ``lesion``.
        replicates: number of resamples of the subjects.
        seed: of the resampling.

    Raises:
        ArgumentError: fewer than two sizes.
    """
    lesions = rows[rows["size"] > 0]
    if lesions["size"].nunique() < 2:
        raise ArgumentError("a detection limit needs lesions of two sizes or more.")
    subjects = sorted(set(rows["subject"]))
    twins = rows[rows["size"] == 0].drop_duplicates("scan")
    healthy = _counts(twins.assign(flagged=twins["flagged"].astype(bool)), "flagged", subjects, [0])
    fitted = []
    for sign in (1, -1):
        part = lesions[np.sign(lesions["contrast"]) == sign]
        if part.empty:
            continue
        keys = part["contrast"].abs().astype(str) + "x" + part["size"].astype(str)
        part = part.assign(cell=keys)
        first = part.drop_duplicates("cell")
        names = list(first["cell"])
        sizes, contrasts = first["size"].to_numpy(float), first["contrast"].abs().to_numpy(float)
        found, planted = _counts(part, LEVELS[level], subjects, names, "cell")
        ones = np.ones(len(subjects))

        def fit(weights: Floats, start: Curve | None, cell: Any = (found, planted)) -> Curve:
            hits, all_of = (weights @ c for c in healthy)
            floor = float(hits[0] / all_of[0]) if level == "scan" and all_of[0] else 0.0
            return fit_curve(sizes, contrasts, weights @ cell[0], weights @ cell[1], floor, start)  # noqa: B023

        curve = fit(ones, None)
        drawn = []
        if len(subjects) > 1 and replicates:
            for chunk in resamples(len(subjects), replicates, seed, 64):
                drawn += [fit(weights, curve) for weights in chunk]
        fitted.append(Surface(level, sign, curve, _ascending(sizes), _ascending(contrasts), drawn))
    return fitted


def _counts(
    rows: pd.DataFrame, column: str, subjects: list[str], cells: list[Any], key: str = "size"
) -> tuple[Floats, Floats]:
    """Return found and all lesions by subject and cell, (subjects, cells) each."""
    row = {name: i for i, name in enumerate(subjects)}
    place = {name: i for i, name in enumerate(cells)}
    found, total = np.zeros((2, len(subjects), len(cells)))
    for subject, cell, hit in zip(rows["subject"], rows[key], rows[column], strict=True):
        found[row[subject], place[cell]] += bool(hit)
        total[row[subject], place[cell]] += 1
    return found, total


def _ascending(values: Floats) -> tuple[float, ...]:
    return tuple(float(v) for v in np.unique(values))
