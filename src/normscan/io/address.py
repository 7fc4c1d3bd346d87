"""Where in a file or folder a scan lies: ``volume.nii.gz#slice=80``, ``study#series=3``."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

from normscan.errors import ScanError, nearest

COLLECTIONS = ("train_images", "val_images", "test_images")
KEYS = ("series", "repetition", "frame", "volume", "slice", "axis", "stack", *COLLECTIONS)


def split_address(path: str | os.PathLike[str]) -> tuple[Path, dict[str, str]]:
    """Part a path from what stands behind its last ``#``.

    ``series`` names a DICOM series of a folder or archive by its number or by its instance UID,
    ``repetition`` one of several volumes of it (1 is the first), ``frame`` a frame of a multi-frame
    picture (0 is the first), ``volume`` one of a series of volumes in one file (0 is the first),
    ``slice`` a slice of a volume along ``axis`` (2 unless told).
    ``train_images``, ``val_images`` and ``test_images`` name an image of an archive (.npz) of many.
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


def one_volume(path: Path, chosen: dict[str, str], count: int, shape: Sequence[int]) -> int:
    """Return which volume of a series is wanted, from 0.

    Args:
        path: the file.
        chosen: the selectors of its address.
        count: how many volumes it holds.
        shape: of one of them.

    Raises:
        ScanError: there are several and none was chosen, or no such volume.
    """
    if "volume" not in chosen:
        if count == 1:
            return 0
        raise ScanError(
            f"{path}: holds a series of {count} volumes of shape {tuple(shape)}, not one. Choose one "
            f"by #volume=0 to #volume={count - 1}, or give one file per channel."
        )
    index = whole_number(path, chosen, "volume")
    if index >= count:
        raise ScanError(f"{path}: there is no volume {index}; it has {count}, counted from 0.")
    return index
