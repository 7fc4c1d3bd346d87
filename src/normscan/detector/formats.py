"""The formats in which a finding is written."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from normscan.errors import ArgumentError, nearest

if TYPE_CHECKING:
    from normscan.dicom import Options

DICOM = ("dicom", "dicom-uint16", "dicom-labelmap", "dicom-pdf")
FORMATS = ("nifti", "pdf", "view", *DICOM)


def checked_formats(formats: Sequence[str]) -> tuple[str, ...]:
    """Return formats that can be written here.

    Raises:
        ArgumentError: none, an unknown one, the map in two kinds, or DICOM without highdicom.
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
    if {"dicom", "dicom-uint16"} <= set(formats):
        raise ArgumentError("a map is stored in float32 (dicom) or 16 bits (dicom-uint16): choose.")
    if dicom_options(formats):
        from normscan.dicom import check_highdicom

        check_highdicom()
    return formats


def dicom_options(formats: Sequence[str]) -> Options | None:
    """Return how DICOM is to be written; None where no DICOM is asked for."""
    if not set(formats) & set(DICOM):
        return None
    from normscan.dicom import Options

    return Options(
        map="uint16" if "dicom-uint16" in formats else "float32",
        segments="labelmap" if "dicom-labelmap" in formats else "binary",
        page="dicom-pdf" in formats,
    )
