"""Errors whose message alone tells a user what happened, to which file, why, and how to mend it.

The command line prints the message and exits with code 2; nothing else in the package catches them
except the loops over a cohort, which report a bad scan and go on.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable


class NormscanError(Exception):
    """Base of every error that bad input can cause."""


class ScanError(NormscanError):
    """A file that can't be read as a scan or mask, or an array that is no image."""


class CohortError(NormscanError):
    """A table or folder that is no usable cohort."""


class ArgumentError(NormscanError):
    """An unknown method, argument or preset, or a value outside its range."""


class OutputError(NormscanError):
    """An output that exists already, or can't be written."""


class WeightsError(NormscanError):
    """Pretrained weights that are not on this machine, or don't fit the network."""


def nearest(name: str, known: Iterable[str]) -> str:
    """Return `` Did you mean 'x'?`` for the closest known name, or an empty string."""
    close = difflib.get_close_matches(name, list(known), n=1, cutoff=0.5)
    return f" Did you mean '{close[0]}'?" if close else ""
