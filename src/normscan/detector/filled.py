"""A detector that does without some of its channels: 0 stands for them, and it is calibrated so."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from normscan.detector.state import State
from normscan.errors import ArgumentError, nearest


def without(state: State, names: Sequence[str]) -> State:
    """Return a state that leaves channels out of every scan, and takes scans that lack them.

    It must be calibrated on healthy scans before it decides: whatever 0 does to the method, p-values
    against healthy scans that were filled in likewise are valid, the map is another matter. The
    quality gate keeps its questions to the header and to what is missing; it can't compare likeness.

    Args:
        state: fitted.
        names: of the channels.

    Raises:
        ArgumentError: a channel that the detector doesn't have, or all of them.
    """
    known = state.channels
    for name in names:
        if name not in known or known.count(name) > 1:
            raise ArgumentError(
                f"the detector has no channel '{name}' of its own.{nearest(name, known)} "
                f"It has: {', '.join(known)}."
            )
    if len(set(names)) >= len(known):
        raise ArgumentError(f"without {', '.join(names)} no channel is left.")
    filled = tuple(name for name in known if name in names)
    gate = state.gate
    if gate is not None:
        counts = [len(known) - len(filled), len(known)]
        gate = replace(
            gate, nearest=None, limits={**gate.limits, "channels": counts, "contrast": [""]}
        )
    return state.changed(filled=filled, gate=gate)


def filled_note(state: State) -> str:
    """Say in a finding what was left out."""
    kept = [name for name in state.channels if name not in state.filled]
    return (
        f"The channel {' and '.join(state.filled)} was filled in with 0, whether the scan has it or "
        f"not: map and p-value are of {', '.join(kept)} alone, as those of the healthy scans that set "
        "the threshold."
    )
