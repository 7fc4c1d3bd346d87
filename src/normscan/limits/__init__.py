"""Detection limits: the smallest and the faintest lesion that a detector finds, by planting lesions.

Everything is loaded at the first use of a name, so that ``import normscan.limits`` costs nothing.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from normscan.limits.curves import Limit as Limit
    from normscan.limits.curves import Surface as Surface
    from normscan.limits.planting import Planted as Planted
    from normscan.limits.planting import Site as Site
    from normscan.limits.result import Limits as Limits
    from normscan.limits.run import detection_limits as detection_limits

_HOMES = {
    "detection_limits": "run",
    "Limits": "result",
    "Limit": "curves",
    "Surface": "curves",
    "Planted": "planting",
    "Site": "planting",
}

__all__ = ["Limit", "Limits", "Planted", "Site", "Surface", "detection_limits"]


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'normscan.limits' has no attribute '{name}'")
    from importlib import import_module

    return getattr(import_module(f"normscan.limits.{_HOMES[name]}"), name)
