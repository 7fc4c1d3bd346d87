"""A SIMULATED cohort: brain slices and volumes from the MNI152 tissue maps, some with lesions."""

from __future__ import annotations

from typing import TYPE_CHECKING

from normscan.lazy import lazily

if TYPE_CHECKING:
    from normscan.phantom.cohort import simulate as simulate
    from normscan.phantom.config import KINDS as KINDS
    from normscan.phantom.config import MODALITIES as MODALITIES
    from normscan.phantom.config import PhantomConfig as PhantomConfig
    from normscan.phantom.subject import Grid as Grid
    from normscan.phantom.subject import Phantom as Phantom
    from normscan.phantom.subject import make_subject as make_subject

__all__ = ["KINDS", "MODALITIES", "Grid", "Phantom", "PhantomConfig", "make_subject", "simulate"]

__getattr__ = lazily(
    __name__,
    {
        "Grid": "subject",
        "KINDS": "config",
        "MODALITIES": "config",
        "Phantom": "subject",
        "PhantomConfig": "config",
        "make_subject": "subject",
        "simulate": "cohort",
    },
)
