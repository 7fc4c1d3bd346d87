"""Training on scans of which some are not healthy."""

from __future__ import annotations

from normscan.methods.base import Method
from normscan.methods.impure_training import ImpureTraining
from normscan.wrappers.kinds import Build, wrapper


@wrapper("impure", 1.5)
def impure(build: Build, value: float) -> Method:
    """Leave out subjects whose error is so many quartile ranges above the third quartile."""
    return ImpureTraining(build(), value)
