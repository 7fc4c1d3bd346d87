"""The node: scans in by DICOM, scored in processes that may die, results back into the archive."""

from __future__ import annotations

from typing import TYPE_CHECKING

from normscan.lazy import lazily

if TYPE_CHECKING:
    from normscan.node.config import Config as Config
    from normscan.node.parts import run as run
    from normscan.node.store import Store as Store

__all__ = ["Config", "Store", "run"]

__getattr__ = lazily(__name__, {"Config": "config", "Store": "store", "run": "parts"})
