"""The section on a detector that configured itself: what it saw, planned, judged and chose."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from normscan.report.summary import percent

POOR = 0.6  # AUROC of planted anomalies, at or below which a kind is hardly seen
PLAIN = 0.9  # above which one that nobody was judged by is found by all


def planned_section(config: Mapping[str, Any] | None) -> dict[str, Any] | None:
    """Return what the template shows of plan and evidence, or None for a detector without them.

    Args:
        config: ``config`` of an evaluation's results, with ``training``.
    """
    training = (config or {}).get("training") or {}
    plan, evidence = training.get("plan"), training.get("evidence")
    if not plan or not evidence:
        return None
    folds = evidence.get("folds", [evidence])
    kinds = _kinds(folds)
    return {
        "fingerprint": _facts(plan["fingerprint"]),
        "reasons": plan["reasons"],
        "passed_over": plan["passed_over"],
        "folds": len(folds),
        "judges": _range([fold["judged_by"]["subjects"] for fold in folds]),
        "planted": sum(fold["judged_by"]["planted"] for fold in folds),
        "members": _members(folds),
        "kinds": kinds,
        "unseen": [kind["name"] for kind in kinds if not kind["seen"]],
    }


def _facts(found: Mapping[str, Any]) -> dict[str, str]:
    """Return the fingerprint in words."""
    size = " x ".join(f"{n:g}" for n in found["size"])
    spacing = " x ".join(f"{n:g}" for n in found["spacing"])
    facts = {
        "healthy subjects": f"{found['subjects']}, with {found['scans']} scans",
        "modality": found["modality"],
        "size": f"{size}{f', {spacing} mm' if found['measured'] else ', no spacing given'}",
        "channels": ", ".join(found["channels"]),
        "foreground": f"{percent(found['foreground'])} of the working grid",
        "near copies": f"{found['copies']} pairs of different subjects" if found["copies"] else "",
        "alignment": f"the mean of the others explains {percent(found['explained'])} of a scan",
    }
    return {name: fact for name, fact in facts.items() if fact}


def _members(folds: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Return a row for each candidate, over the folds, the heaviest first."""
    rows = []
    for name in dict.fromkeys(m["name"] for fold in folds for m in fold["members"]):
        mine = [m for fold in folds for m in fold["members"] if m["name"] == name]
        areas = [m["auroc"] for m in mine if m["auroc"] is not None]
        errors = [m["error"] for m in mine if m["auroc"] is not None]
        mean = float(np.mean(areas)) if areas else None
        half = 2 * float(np.mean(errors)) if areas else 0.0
        rows.append({
            "name": name,
            "weight": float(np.mean([m["weight"] for m in mine])),
            "weights": _range([percent(m["weight"]) for m in mine]),
            "area": None if mean is None else {
                "value": mean, "low": max(0.0, mean - half), "high": min(1.0, mean + half)
            },
            "scores": ", ".join(dict.fromkeys(m["score"] for m in mine)),
            "why": mine[0]["why"] if len(mine) == 1 else _whys(mine),
        })  # fmt: skip
    return sorted(rows, key=lambda row: -row["weight"])


def _whys(mine: Sequence[Mapping[str, Any]]) -> str:
    """Say in how many folds a candidate takes part, and why not in the others."""
    parts = sum(m["weight"] > 0 for m in mine)
    dropped = dict.fromkeys(m["why"].partition(":")[2].strip() for m in mine if not m["weight"])
    told = f"takes part in {parts} of {len(mine)} folds"
    return f"{told}; else {'; '.join(dropped)}" if dropped else told


def _kinds(folds: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Return a row for each kind of planted anomaly."""
    rows = []
    for name in folds[0]["kind_left_out"]:
        left = [fold["kind_left_out"][name] for fold in folds]
        together = [v["together"] for v in left if v["together"] is not None]
        single = [v["best_single"] for v in left if v["best_single"] is not None]
        # A kind that tells candidates not apart has no such figure: nobody finds it, or everybody.
        alone = [m["by_kind"][name] for fold in folds for m in fold["members"]]
        best = max((area for area in alone if area is not None), default=0.0)
        value = float(np.mean(together)) if together else None
        rows.append({
            "name": name.replace("_", " "),
            "together": value,
            "word": "everybody" if best > PLAIN else "nobody",
            "single": float(np.mean(single)) if single else None,
            "seen": (best > PLAIN) if value is None else value > POOR,
        })  # fmt: skip
    return rows


def _range(values: Sequence[Any]) -> str:
    """Write the values of several folds: one where they agree, else the first and the last."""
    some = sorted(set(values), key=lambda v: float(str(v).rstrip("%")))
    return str(some[0]) if len(some) == 1 else f"{some[0]} to {some[-1]}"
