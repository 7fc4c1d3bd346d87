"""From a scan as it was stored to what a method sees, and the way back for the map."""

from normscan.preprocess.pipeline import Prepared, Preprocess

__all__ = ["Prepared", "Preprocess"]
