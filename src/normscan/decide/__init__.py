"""Decisions from healthy scans alone: thresholds with a stated false-positive rate, p-values."""

from __future__ import annotations

from normscan.decide.calibration import Calibration, promise
from normscan.decide.components import ComponentThreshold
from normscan.decide.cross import CrossThreshold
from normscan.decide.drift import DriftTest
from normscan.decide.groups import GroupedThreshold, restored
from normscan.decide.pixels import PixelThreshold
from normscan.decide.scans import ScanThreshold
from normscan.decide.worklist import Worklist

__all__ = [
    "Calibration",
    "ComponentThreshold",
    "CrossThreshold",
    "DriftTest",
    "GroupedThreshold",
    "PixelThreshold",
    "ScanThreshold",
    "Worklist",
    "promise",
    "restored",
]
