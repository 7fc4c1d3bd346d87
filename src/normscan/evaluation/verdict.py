"""Is the detector better than the baselines on these scans? By how much, and how sure is that?"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from normscan.evaluation.scoring import Scores

# A difference with a larger p-value is none that can be claimed.
LEVEL = 0.05
DRAWS = 2000  # of the subjects, for the interval of the pixel AP


def verdicts(own: Scores, baselines: Mapping[str, Scores]) -> list[dict[str, Any]]:
    """Compare image AUROC and pixel AP with each baseline's on the scans that both scored.

    Image AUROC: interval and p-value are DeLong's, paired and by subject; where DeLong's variance is
    zero, a permutation test gives the p-value, and there is no interval. Pixel AP: the mean over the
    subjects of that within their lesioned scans, with a bootstrap interval and a permutation test.
    Over the baselines the p-values of each are corrected after Holm.

    Returns:
        For each baseline and metric ``baseline``, ``metric``, ``value`` and ``other`` (of the two),
        ``difference`` with ``low`` and ``high``, ``p_value`` (corrected), ``n`` (subjects), ``test``
        and ``verdict``: better, worse, unclear or undefined.
    """
    images = [_compared(own, name, scores) for name, scores in baselines.items()]
    pixels = [_mapped(own, name, scores) for name, scores in baselines.items()]
    return _judged(images) + _judged([entry for entry in pixels if entry["n"]])


def _judged(found: list[dict[str, Any]]) -> list[dict[str, Any]]:
    from normscan.metrics.comparisons import holm

    for entry, p in zip(found, holm([e["p_value"] for e in found]), strict=True):
        entry["p_value"] = float(p)
        entry["verdict"] = "undefined"
        if p == p:
            sure = "better" if entry["difference"] > 0 else "worse"
            entry["verdict"] = sure if p <= LEVEL else "unclear"
    return found


def _compared(own: Scores, name: str, other: Scores) -> dict[str, Any]:
    from normscan.metrics import image_metrics
    from normscan.metrics.comparisons import compare_scores, delong_test

    theirs = {row["scan"]: row["score"] for row in other.rows}
    rows = [r for r in own.rows if r["label"] is not None and r["scan"] in theirs]
    entry: dict[str, Any] = {"baseline": name, "metric": "image_auroc", "p_value": float("nan")}
    labels = [r["label"] for r in rows]
    entry |= dict.fromkeys(("value", "other", "difference", "low", "high"), float("nan"))
    entry |= {"n": len({r["subject"] for r in rows}), "test": ""}
    if len(set(labels)) < 2:
        return entry
    subjects = [r["subject"] for r in rows]
    pair = [r["score"] for r in rows], [theirs[r["scan"]] for r in rows]
    tested = delong_test(*pair, labels, subjects)
    p_value, test = tested.p_value, tested.test
    if p_value != p_value:
        swapped = compare_scores(*pair, labels, subjects, permutations=999)
        p_value, test = swapped.p_value, swapped.test
    values = [image_metrics(s, labels, subjects, replicates=0).auroc.value for s in pair]
    return entry | {
        "value": values[0], "other": values[1], "difference": tested.difference, "low": tested.low,
        "high": tested.high, "p_value": p_value, "test": test,
    }  # fmt: skip


def _mapped(own: Scores, name: str, other: Scores) -> dict[str, Any]:
    from normscan.metrics.comparisons import permutation_test

    mine, theirs = own.pixels.subject_ap(), other.pixels.subject_ap()
    pairs = np.array([(mine[s], theirs[s]) for s in mine if s in theirs]).reshape(-1, 2)
    n = len(pairs)
    entry: dict[str, Any] = {"baseline": name, "metric": "pixel_ap", "n": n}
    if not n:
        return entry
    gap = pairs[:, 0] - pairs[:, 1]
    tested = permutation_test(lambda swap: float(np.where(swap, -gap, gap).mean()), n)
    draws = np.random.default_rng(0).multinomial(n, np.full(n, 1 / n), DRAWS) @ gap / n
    low, high = np.quantile(draws, [0.025, 0.975]) if n > 1 else (float("nan"), float("nan"))
    return entry | {
        "value": float(pairs[:, 0].mean()), "other": float(pairs[:, 1].mean()),
        "difference": tested.difference, "low": float(low), "high": float(high),
        "p_value": tested.p_value, "test": tested.test,
    }  # fmt: skip
