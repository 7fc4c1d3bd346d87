"""Fitted detectors of several sites become one; no scan leaves its site and nothing is fitted anew."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from normscan.cohort import Division
from normscan.detector.elsewhere import check_new, stored
from normscan.detector.fitting import built
from normscan.detector.signed import check_trusted
from normscan.detector.state import State
from normscan.detector.storage import read_state
from normscan.detector.update import refusal, stale
from normscan.errors import ArgumentError
from normscan.rng import Rng, derive_seed


def merge_runs(runs: Sequence[Path], out: Path, device: str = "cpu") -> State:
    """Merge stored detectors and write the result to a new folder, which is whole or not there.

    Args:
        runs: run folders, which stay as they are.
        out: new folder.
        device: that does it.

    Raises:
        OutputError: ``out`` exists, or there is no detector in a run, or none that is trusted.
        ArgumentError: see ``merged``; fewer than two runs.
    """
    check_new(out)
    if len(runs) < 2:
        raise ArgumentError("name two runs or more to merge.")
    for run in runs:
        check_trusted(run)
    states = [read_state(run, device) for run in runs]
    return stored(merged(states, list(map(str, runs))), None, out)


def merged(states: Sequence[State], names: Sequence[str]) -> State:
    """Return the first state after it has taken in what the others learnt.

    What isn't part of the method stays the first one's: quality gate, thresholds, which the state says
    are stale, and the places that a reduction compares with.

    Args:
        states: fitted; the method of the first takes the others in, in place.
        names: of them, for errors.

    Raises:
        ArgumentError: the method can't be merged, the detectors differ in more than their scans, or a
            scan trained two of them.
    """
    first, *others = states
    method = built(first)
    if not method.merges:
        raise ArgumentError(refusal(first))
    for state, name in zip(others, names[1:], strict=True):
        if difference := _difference(first, state):
            raise ArgumentError(f"{name} can't be merged with {names[0]}: {difference}.")
    _apart(states, names)
    method.merge(
        [built(state).fitted_buffers() for state in others],
        Rng(derive_seed(first.seed, "merge", len(states))),
    )
    method.requires_grad_(False).eval()
    state = first
    for other in others:
        state = _told(state, other)
    return stale(state)


def _difference(a: State, b: State) -> str:
    """Say in what two detectors differ besides the scans that they learnt from, or nothing."""
    for what, one, other in (
        ("method", a.card.id, b.card.id),
        ("arguments", a.arguments, b.arguments),
        ("channels", a.channels, b.channels),
        ("preprocessing", a.preprocess.to_dict(), b.preprocess.to_dict()),
        ("post-processing", a.postprocess, b.postprocess),
        ("reduction", a.reduction, b.reduction),
    ):
        if one != other:
            told = f" ({one}, {other})" if isinstance(one, str) else ""
            return f"another {what}{told}. Fit both with the same settings"
    mine, theirs = built(a).state_dict(), built(b).state_dict()
    fitted = tuple(built(a).fitted)
    for name, value in mine.items():
        if name.startswith(fitted):
            continue
        if name not in theirs or not torch.equal(value, theirs[name]):
            return f"another '{name}', which the scans don't fit. Use the same seed and the same weights"
    return ""


def _apart(states: Sequence[State], names: Sequence[str]) -> None:
    """Refuse a scan that trained two detectors: it would count twice."""
    known: dict[str, str] = {}
    for state, name in zip(states, names, strict=True):
        members = () if state.division is None else state.division.members
        for content in {m.content for m in members if m.split == "train" and m.content}:
            if content in known:
                raise ArgumentError(
                    f"{name} and {known[content]} learnt from the same scan, which would count twice. "
                    "Fit one of them without it: --exclude."
                )
            known[content] = name


def _told(state: State, other: State) -> State:
    """Add up who trained, in the training record and in the division."""
    training: dict[str, Any] = dict(state.training)
    for name in ("cohort_size", "subjects", "samples"):
        numbers, more = dict(training.get(name, {})), other.training.get(name, {})
        training[name] = numbers | {"train": numbers.get("train", 0) + more.get("train", 0)}
    about = {
        "merged_sha256": other.fingerprint,
        "scans": other.training.get("cohort_size", {}).get("train", 0),
        "subjects": other.training.get("subjects", {}).get("train", 0),
        "samples": other.training.get("samples", {}).get("train", 0),
    }
    training["updates"] = [*training.get("updates", []), about]
    division = state.division
    if division is not None and other.division is not None:
        division = Division([*division.members, *other.division.members])
    return state.changed(training=training, division=division)
