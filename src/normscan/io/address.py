"""Where in a file or folder a scan lies: ``volume.nii.gz#slice=80``, ``study#series=3``."""

from __future__ import annotations

import os
from pathlib import Path

from normscan.errors import ScanError, nearest

KEYS = ("series", "repetition", "frame", "slice", "axis", "stack")


def split_address(path: str | os.PathLike[str]) -> tuple[Path, dict[str, str]]:
    """Part a path from what stands behind its last ``#``.

    ``series`` names a DICOM series of a folder or archive by its number or by its instance UID,
    ``repetition`` one of several volumes of it (1 is the first), ``frame`` a frame of a multi-frame
    picture (0 is the first), ``slice`` a slice of a volume along ``axis`` (2 unless told).
    ``stack=1`` says that an array of (H, W, 3) or (H, W, 4) is a volume, no colour picture. Several
    are joined by ``&``. A file whose name really holds a ``#`` is that file.

    Returns:
        The path of the file or folder, and the selectors, an empty dict without ``#``.

    Raises:
        ScanError: an unknown or empty selector.
    """
    text = os.fspath(path)
    if "#" not in text or os.path.exists(text):
        return Path(text), {}
    base, _, fragment = text.rpartition("#")
    chosen: dict[str, str] = {}
    for part in fragment.split("&"):
        key, _, value = part.partition("=")
        if key not in KEYS or not value:
            raise ScanError(
                f"{text}: '{part}' behind the # selects nothing.{nearest(key, KEYS)} "
                "Write for example #series=3, #frame=0 or #slice=80."
            )
        chosen[key] = value
    return Path(base), chosen


def whole_number(path: Path, chosen: dict[str, str], key: str, otherwise: int | None = None) -> int:
    """Return a selector as a number from 0 up.

    Raises:
        ScanError: it is missing (and there is no other value) or no such number.
    """
    text = chosen.get(key, "" if otherwise is None else str(otherwise))
    if not (text.isascii() and text.isdigit() and len(text) < 10):
        raise ScanError(f"{path}: #{key}={text} is no number. Count from 0.")
    return int(text)
