"""A SIMULATED cohort: brain slices and volumes from the MNI152 tissue maps, some with lesions.

Everything is loaded at the first use of a name, so that ``import normscan.phantom`` costs nothing.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from normscan.phantom.cohort import simulate as simulate
    from normscan.phantom.config import KINDS as KINDS
    from normscan.phantom.config import MODALITIES as MODALITIES
    from normscan.phantom.config import PhantomConfig as PhantomConfig
    from normscan.phantom.subject import Grid as Grid
    from normscan.phantom.subject import Phantom as Phantom
    from normscan.phantom.subject import make_subject as make_subject

_HOMES = {
    "simulate": "cohort",
    "PhantomConfig": "config",
    "KINDS": "config",
    "MODALITIES": "config",
    "make_subject": "subject",
    "Phantom": "subject",
    "Grid": "subject",
}

__all__ = ["KINDS", "MODALITIES", "Grid", "Phantom", "PhantomConfig", "make_subject", "simulate"]


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'normscan.phantom' has no attribute '{name}'")
    from importlib import import_module

    return getattr(import_module(f"normscan.phantom.{_HOMES[name]}"), name)
