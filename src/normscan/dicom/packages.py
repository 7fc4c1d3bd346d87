"""highdicom, which builds the objects, where it is installed."""

from __future__ import annotations

from importlib.util import find_spec

from normscan.errors import ArgumentError


def check_highdicom() -> None:
    """Raise where DICOM objects can't be written.

    Raises:
        ArgumentError: highdicom isn't installed.
    """
    if find_spec("highdicom") is None:
        raise ArgumentError(
            "results as DICOM need highdicom. Install it: pip install normscan[dicom]; or leave "
            "'dicom' out of the formats."
        )
