"""What kind of scans a cohort holds, found out from some of them before training."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from normscan.cohort import CohortRow
from normscan.errors import CohortError, NormscanError

PROBED_SCANS = 50
RGB = ("red", "green", "blue")


@dataclass(frozen=True)
class Survey:
    """Attributes: spatial axes of the scans, ``keep`` or ``grey``, and the channels that result."""

    dims: int
    colour: str
    channels: tuple[str, ...]


def survey(rows: Sequence[CohortRow], colour: str) -> Survey:
    """Read some training scans, evenly taken, and settle how their channels are treated.

    Args:
        rows: training scans.
        colour: ``auto``, ``grey`` or ``keep``, see ``Preprocess``.

    Raises:
        CohortError: none of them can be read.
    """
    found: list[tuple[int, tuple[str, ...]]] = []
    reasons: list[str] = []
    for row in rows[:: max(1, len(rows) // PROBED_SCANS)]:
        try:
            scan = row.load()
            found.append((scan.dims, scan.channels))
        except (NormscanError, OSError) as error:
            reasons.append(str(error))
    if not found:
        raise CohortError(f"no training scan can be read: {reasons[0]}")
    dims, channels = found[0]
    kinds = {names for _, names in found}
    if colour == "auto":
        # Grey pictures and colour pictures side by side, or one channel under several names.
        mixed = len(kinds) > 1 and (RGB in kinds or all(len(k) == 1 for k in kinds))
        colour = "grey" if mixed else "keep"
    return Survey(dims, colour, ("grey",) if colour == "grey" else channels)
