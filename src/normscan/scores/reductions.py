"""From a map to an image score."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from normscan.errors import ArgumentError, nearest


def _inside(anomaly: np.ndarray, foreground: np.ndarray) -> np.ndarray:
    return anomaly[foreground] if foreground.any() else anomaly.ravel()


def _top(share: float) -> Callable[[np.ndarray, np.ndarray], float]:
    def reduce(anomaly: np.ndarray, foreground: np.ndarray) -> float:
        values = _inside(anomaly, foreground)
        n = max(1, round(share * values.size))
        return float(np.partition(values, values.size - n)[-n:].mean())

    return reduce


REDUCTIONS: dict[str, Callable[[np.ndarray, np.ndarray], float]] = {
    "mean": lambda anomaly, foreground: float(anomaly.mean()),
    "foreground_mean": lambda anomaly, foreground: float(_inside(anomaly, foreground).mean()),
    "max": lambda anomaly, foreground: float(anomaly.max()),
    "top_1_percent": _top(0.01),
    "top_5_percent": _top(0.05),
    "top_10_percent": _top(0.10),
    "std": lambda anomaly, foreground: float(_inside(anomaly, foreground).std()),
}


def reduce_map(name: str, anomaly: np.ndarray, foreground: np.ndarray) -> float:
    """Reduce a map (*spatial) to a number.

    ``mean`` is over the whole grid, ``max`` its largest value, ``foreground_mean`` and ``std`` are
    over the foreground, ``top_n_percent`` the mean of its largest values.
    """
    return REDUCTIONS[check_reduction(name)](anomaly, foreground)


def check_reduction(name: str) -> str:
    """Return the name, or say which reductions there are.

    Raises:
        ArgumentError: unknown reduction.
    """
    if name not in REDUCTIONS:
        raise ArgumentError(
            f"there is no reduction '{name}'.{nearest(name, REDUCTIONS)} Known: {', '.join(REDUCTIONS)}."
        )
    return name
