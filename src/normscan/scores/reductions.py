"""From a map to an image score.

A reduction is written as its name, a value where it has one, and options: ``top_1_percent``,
``component_mass=0.4``, ``max+inner``, ``mean+place``.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from normscan.errors import ArgumentError, nearest
from normscan.scores.places import Places

# Pixels nearer to the edge of the foreground than this part of its diameter are its rim.
RIM = 0.05
OPTIONS = ("inner", "place")


def _inside(anomaly: np.ndarray, foreground: np.ndarray) -> np.ndarray:
    return anomaly[foreground] if foreground.any() else anomaly.ravel()


def _top(share: float) -> Callable[[np.ndarray, np.ndarray], float]:
    def reduce(anomaly: np.ndarray, foreground: np.ndarray) -> float:
        values = _inside(anomaly, foreground)
        n = max(1, round(share * values.size))
        return float(np.partition(values, values.size - n)[-n:].mean())

    return reduce


def _norm(power: int) -> Callable[[np.ndarray, np.ndarray], float]:
    def reduce(anomaly: np.ndarray, foreground: np.ndarray) -> float:
        values = np.abs(_inside(anomaly, foreground).astype(np.float64))
        highest = values.max()
        # In parts of the highest value no power overflows or vanishes.
        return (
            float(highest * ((values / highest) ** power).mean() ** (1 / power)) if highest else 0.0
        )

    return reduce


REDUCTIONS: dict[str, Callable[[np.ndarray, np.ndarray], float]] = {
    "mean": lambda anomaly, foreground: float(anomaly.mean()),
    "foreground_mean": lambda anomaly, foreground: float(_inside(anomaly, foreground).mean()),
    "max": lambda anomaly, foreground: float(anomaly.max()),
    "top_0.1_percent": _top(0.001),
    "top_1_percent": _top(0.01),
    "top_5_percent": _top(0.05),
    "top_10_percent": _top(0.10),
    "p_norm_2": _norm(2),
    "p_norm_4": _norm(4),
    "p_norm_8": _norm(8),
    "std": lambda anomaly, foreground: float(_inside(anomaly, foreground).std()),
}


def excess_mass(anomaly: np.ndarray, foreground: np.ndarray, level: float) -> float:
    """Sum of what lies above a level in the foreground, in pixels of the map's unit."""
    values = _inside(anomaly, foreground).astype(np.float64)
    return float(np.maximum(values - level, 0).sum())


def component_mass(anomaly: np.ndarray, foreground: np.ndarray, level: float) -> float:
    """Largest sum of what lies above a level in one connected component of the foreground.

    Neighbours touch at a face, an edge or a corner. Where nothing lies above, it is the highest
    value less the level, which is not above 0: healthy scans keep an order.
    """
    from scipy import ndimage

    inside = foreground if foreground.any() else np.ones_like(foreground)
    excess = np.where(inside, anomaly.astype(np.float64) - level, -np.inf)
    if not (excess > 0).any():
        return float(excess.max())
    labels, _ = ndimage.label(excess > 0, np.ones((3,) * anomaly.ndim))
    return float(np.bincount(labels[labels > 0], excess[labels > 0]).max())


# Those above a level of healthy maps, which is their value.
LEVELLED: dict[str, Callable[[np.ndarray, np.ndarray, float], float]] = {
    "excess_mass": excess_mass,
    "component_mass": component_mass,
}


def inner(foreground: np.ndarray) -> np.ndarray:
    """Return the foreground (*spatial) without its rim; the border of the image is no edge.

    The rim is what lies nearer to the edge than a twentieth of the diameter of a disc, or ball, of
    the foreground's extent. Where nothing would be left, the foreground stays as it is.
    """
    from scipy.ndimage import distance_transform_edt

    if foreground.all() or not foreground.any():
        return foreground
    dims, extent = foreground.ndim, float(foreground.sum())
    across = (4 * extent / np.pi) ** 0.5 if dims == 2 else (6 * extent / np.pi) ** (1 / 3)
    kept = distance_transform_edt(foreground) > max(1.0, RIM * across)
    return np.asarray(kept) if kept.any() else foreground


@dataclass(frozen=True)
class Reduction:
    """A parsed reduction.

    Attributes:
        name: one of ``REDUCTIONS`` or ``LEVELLED``.
        level: of the latter; None where it is still to be learnt.
        inner: leave out the rim of the foreground.
        place: of the map in healthy deviations from the healthy mean at each place.
    """

    name: str
    level: float | None = None
    inner: bool = False
    place: bool = False

    @classmethod
    def parse(cls, text: str) -> Reduction:
        """Return what a text says.

        Raises:
            ArgumentError: no such reduction or option, or a value that is no number.
        """
        first, *options = text.split("+")
        name, given, value = first.partition("=")
        known = [*REDUCTIONS, *LEVELLED]
        if name not in known:
            raise ArgumentError(
                f"there is no reduction '{name}'.{nearest(name, known)} Known: {', '.join(known)}."
            )
        for option in options:
            if option not in OPTIONS:
                raise ArgumentError(
                    f"reduction '{text}': there is no option '{option}'. "
                    f"Known: {', '.join(OPTIONS)}, as in max+inner."
                )
        if given and name not in LEVELLED:
            raise ArgumentError(f"reduction '{text}': {name} takes no value.")
        try:
            level = float(value) if given else None
        except ValueError:
            raise ArgumentError(f"reduction '{text}': '{value}' is no number.") from None
        return cls(name, level, "inner" in options, "place" in options)

    @property
    def learns(self) -> bool:
        """Whether it needs something from healthy maps that nobody gave."""
        return self.place or (self.name in LEVELLED and self.level is None)

    def __str__(self) -> str:
        level = "" if self.level is None else f"={self.level!r}"
        options = "".join(f"+{name}" for name in OPTIONS if getattr(self, name))
        return f"{self.name}{level}{options}"

    def __call__(
        self, anomaly: np.ndarray, foreground: np.ndarray, places: Places | None = None
    ) -> float:
        """Reduce a map (*spatial); with ``inner`` or ``place`` only the foreground counts.

        Raises:
            ArgumentError: it needs a level or places, and has none.
            ScanError: the map isn't on the grid of the places.
        """
        if self.place:
            if places is None:
                raise ArgumentError(f"reduction '{self}' needs places learnt from healthy scans.")
            anomaly = places.normalised(anomaly)
        if self.inner:
            foreground = inner(foreground)
        if (self.inner or self.place) and self.name in ("mean", "max") and foreground.any():
            anomaly = anomaly[foreground]  # else these two are over the whole grid
        if self.name in LEVELLED:
            if self.level is None:
                raise ArgumentError(
                    f"reduction '{self}' needs a level of the map, such as {self.name}=0.4; a "
                    "detector learns it from healthy scans when it is fitted."
                )
            return LEVELLED[self.name](anomaly, foreground, self.level)
        return REDUCTIONS[self.name](anomaly, foreground)


def reduce_map(
    name: str, anomaly: np.ndarray, foreground: np.ndarray, places: Places | None = None
) -> float:
    """Reduce a map (*spatial) to a number.

    ``mean`` is over the whole grid, ``max`` its largest value, ``foreground_mean`` and ``std`` are
    over the foreground, ``top_n_percent`` the mean of its largest values, ``p_norm_n`` its
    generalised mean of power n. ``excess_mass`` sums what lies above a level of healthy maps in the
    foreground, ``component_mass`` the same in that connected component where the sum is largest. With
    ``+inner`` the rim of the foreground is left out; with ``+place`` the map is taken in deviations
    from the healthy mean at each place. ``evidence`` lets planted lesions choose.
    """
    return Reduction.parse(name)(anomaly, foreground, places)


def check_reduction(name: str) -> str:
    """Return the name as it is written everywhere, or say which reductions there are.

    Raises:
        ArgumentError: unknown reduction.
    """
    return str(Reduction.parse(name))
