"""A series that was not scored, as the writer of results takes it: its report says why."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from normscan.dicom.results import Results
from normscan.series import Series
from normscan.version import __version__

if TYPE_CHECKING:
    from pydicom.dataset import Dataset


def refusal(headers: Sequence[Dataset], reason: str) -> Results:
    """Return what is reported of a series that was refused.

    Nothing needs to be readable in it but its headers, so it has no place and no map.

    Args:
        headers: cleaned, one an object of the series.
        reason: a sentence, at most 1024 characters of it are kept.
    """
    count = len(headers)
    series = Series(
        uid=str(headers[0].get("SeriesInstanceUID", "")),
        modality=str(headers[0].get("Modality", "")),
        positions=np.zeros((count, 3)),
        orientations=np.tile([1.0, 0, 0, 0, 1, 0], (count, 1)),
        spacings=np.ones((count, 2)),
        uids=tuple(str(header.get("SOPInstanceUID", "")) for header in headers),
        frames=(0,) * count,
        size=(1, 1),
        shape=(1, 1),
        affine=np.eye(4),
        steps=np.zeros(count - 1),
        placed=False,
        read_headers=lambda: tuple(headers),
    )
    return Results(
        series, np.eye(4), None, None, float("nan"), version=__version__, quality="refuse",
        refused=reason,
    )  # fmt: skip
