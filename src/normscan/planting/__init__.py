"""Lesions planted into healthy scans: what a choice or a limit is measured by, without any patient."""

from __future__ import annotations

from typing import TYPE_CHECKING

from normscan.lazy import lazily

if TYPE_CHECKING:
    from normscan.planting.kinds import plant as plant
    from normscan.planting.sites import Planted as Planted
    from normscan.planting.sites import Site as Site

__all__ = ["Planted", "Site", "plant"]

__getattr__ = lazily(__name__, {"Planted": "sites", "Site": "sites", "plant": "kinds"})
