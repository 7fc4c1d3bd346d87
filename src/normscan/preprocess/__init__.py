"""From a scan as it was stored to what a method sees, and the way back for the map."""

from __future__ import annotations

from typing import TYPE_CHECKING

from normscan.lazy import lazily

if TYPE_CHECKING:
    from normscan.preprocess.pipeline import Prepared as Prepared
    from normscan.preprocess.pipeline import Preprocess as Preprocess

__all__ = ["Prepared", "Preprocess"]

__getattr__ = lazily(__name__, {"Prepared": "pipeline", "Preprocess": "pipeline"})
