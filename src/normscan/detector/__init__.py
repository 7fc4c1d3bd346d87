"""The detector: preprocessing, method, post-processing and threshold; fitted, saved, loaded as one."""

from __future__ import annotations

from typing import TYPE_CHECKING

from normscan.lazy import lazily

if TYPE_CHECKING:
    from normscan.detector.detector import Detector as Detector
    from normscan.detector.detector import create as create
    from normscan.detector.detector import load as load
    from normscan.detector.finding import Finding as Finding

__all__ = ["Detector", "Finding", "create", "load"]

__getattr__ = lazily(
    __name__,
    {"Detector": "detector", "Finding": "finding", "create": "detector", "load": "detector"},
)
