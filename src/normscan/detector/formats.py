"""The formats in which a finding is written."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from normscan.errors import ArgumentError, nearest

if TYPE_CHECKING:
    from normscan.dicom.parametric_map import Stored

STORED: dict[str, Stored] = {"dicom": "float32", "dicom-uint16": "uint16"}
FORMATS = ("nifti", "view", *STORED)


def checked_formats(formats: Sequence[str]) -> tuple[str, ...]:
    """Return formats that can be written here.

    Raises:
        ArgumentError: none, an unknown one, two kinds of DICOM, or DICOM without highdicom.
    """
    formats = tuple([formats] if isinstance(formats, str) else formats)
    for name in formats:
        if name not in FORMATS:
            raise ArgumentError(
                f"'{name}' is no format of findings; {', '.join(FORMATS)} are."
                f"{nearest(name, FORMATS)}"
            )
    if not formats:
        raise ArgumentError(f"name a format of findings: {', '.join(FORMATS)}.")
    if set(STORED) <= set(formats):
        raise ArgumentError("a map is stored in float32 (dicom) or 16 bits (dicom-uint16): choose.")
    if dicom_stored(formats):
        from normscan.dicom import check_highdicom

        check_highdicom()
    return formats


def dicom_stored(formats: Sequence[str]) -> Stored | None:
    """Return how DICOM is to hold the map; None where no DICOM is asked for."""
    return next((STORED[name] for name in formats if name in STORED), None)
