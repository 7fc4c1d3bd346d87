"""What kind of scans a cohort holds, found out from some of them before training."""

from __future__ import annotations

import contextlib
import warnings
from collections.abc import Sequence
from dataclasses import dataclass, replace

from normscan.cohort import CohortRow
from normscan.errors import ArgumentError, CohortError, NormscanError
from normscan.io import read_scan
from normscan.preprocess import Preprocess

PROBED_SCANS = 50
RGB = ("red", "green", "blue")


@dataclass(frozen=True)
class Survey:
    """What kind of scans a cohort holds.

    Attributes:
        dims: spatial axes.
        colour: ``keep`` or ``grey``.
        channels: that result.
        targets: channels of the targets that stand beside the scans.
        further: name and number of channels of each further image of a case.
    """

    dims: int
    colour: str
    channels: tuple[str, ...]
    targets: tuple[str, ...] = ()
    further: tuple[tuple[str, int], ...] = ()


def unseen(dims: int, preprocess: Preprocess) -> Survey:
    """What is settled without any scan: one channel, as which colours are read unless kept."""
    colour = "keep" if preprocess.colour == "keep" else "grey"
    return Survey(dims, colour, ("grey",))


def survey(rows: Sequence[CohortRow], preprocess: Preprocess, cache: bool = True) -> Survey:
    """Read some training scans, evenly taken, and settle how their channels are treated.

    The first readable scan is taken through the steps too, since they may change the channels.
    Those that learn are left out: they don't.

    Args:
        rows: training scans.
        preprocess: what was asked for.
        cache: keep the results of steps on disk.

    Raises:
        CohortError: none of them can be read or prepared.
        ArgumentError: a step has a value that it can't work with.
    """
    found: list[tuple[int, tuple[str, ...]]] = []
    reasons: list[str] = []
    fixed = replace(preprocess, steps=preprocess.fixed_steps)
    channels: tuple[str, ...] = ()
    for row in rows[:: max(1, len(rows) // PROBED_SCANS)]:
        try:
            scan = row.load()
            if fixed.steps and not channels:
                working = fixed.stepped(scan, row.load_foreground(scan), cache)
                channels = working.scan.channels
            found.append((scan.dims, scan.channels))
        except ArgumentError:
            raise
        except (NormscanError, OSError) as error:
            reasons.append(str(error))
    if not found:
        raise CohortError(f"no training scan can be read: {reasons[0]}")
    dims, first = found[0]
    colour = preprocess.colour
    kinds = {names for _, names in found}
    if colour == "auto":
        # Grey pictures and colour pictures side by side, or one channel under several names.
        mixed = len(kinds) > 1 and (RGB in kinds or all(len(k) == 1 for k in kinds))
        colour = "grey" if mixed else "keep"
        if RGB in kinds and mixed:
            warnings.warn(
                "Grey and colour pictures stand side by side: all are read as grey.", stacklevel=2
            )
    channels = ("grey",) if colour == "grey" else channels or first
    return Survey(dims, colour, channels, _targets(rows), _further(rows, preprocess.colour))


def _further(rows: Sequence[CohortRow], colour: str) -> tuple[tuple[str, int], ...]:
    """Channels of the first readable image of each name; grey where grey was asked for."""
    found: dict[str, int] = {}
    for row in rows:
        for name, path in row.further.items():
            if name not in found:
                with contextlib.suppress(NormscanError, OSError):
                    image = read_scan(path)
                    found[name] = 1 if colour == "grey" and image.is_rgb else len(image.data)
    order = dict.fromkeys(name for row in rows for name in (*row.further, *row.lacking))
    return tuple((name, found[name]) for name in order if name in found)


def _targets(rows: Sequence[CohortRow]) -> tuple[str, ...]:
    """Channels of the first target that can be read; a cohort without any has none."""
    for row in rows:
        if row.target_channels:
            return row.target_channels
        if row.targets:
            with contextlib.suppress(NormscanError, OSError):
                return read_scan(row.targets[0]).channels
    return ()
