"""A search for the arguments of a method by evidence from healthy scans alone; needs Optuna.

Everything is loaded at the first use of a name: Optuna is an extra, ``normscan[tune]``.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from normscan.lazy import lazily

if TYPE_CHECKING:
    from normscan.tune.search import Asked as Asked
    from normscan.tune.search import Engine as Engine
    from normscan.tune.search import Tuned as Tuned
    from normscan.tune.search import tune as tune

__all__ = ["Asked", "Engine", "Tuned", "tune"]

__getattr__ = lazily(__name__, dict.fromkeys(__all__, "search"))
