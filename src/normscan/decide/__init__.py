"""Decisions from healthy scans alone: thresholds with a stated false-positive rate, p-values."""

from __future__ import annotations

from normscan.decide.pixels import PixelThreshold
from normscan.decide.scans import ScanThreshold

__all__ = ["PixelThreshold", "ScanThreshold"]
