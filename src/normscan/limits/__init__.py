"""Detection limits: the smallest and the faintest lesion that a detector finds, by planting lesions."""

from __future__ import annotations

from typing import TYPE_CHECKING

from normscan.lazy import lazily

if TYPE_CHECKING:
    from normscan.limits.curves import Limit as Limit
    from normscan.limits.curves import Surface as Surface
    from normscan.limits.result import Limits as Limits
    from normscan.limits.run import detection_limits as detection_limits
    from normscan.limits.writing import write_limits as write_limits

__all__ = [
    "Limit",
    "Limits",
    "Surface",
    "detection_limits",
    "write_limits",
]

__getattr__ = lazily(
    __name__,
    {
        "Limit": "curves",
        "Limits": "result",
        "Surface": "curves",
        "detection_limits": "run",
        "write_limits": "writing",
    },
)
