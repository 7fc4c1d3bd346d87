"""Who made a detector: a signature over the digests of its files, and the refusal of others.

A folder's digests stand in ``SHA256SUMS``, as ``sha256sum -c`` reads them, and that file is signed in
minisign's format. An exported file is signed itself.
"""

from __future__ import annotations

import hashlib
import os
import re
from collections.abc import Sequence
from pathlib import Path

from normscan.errors import ArgumentError, OutputError
from normscan.io.atomic import atomic_path
from normscan.io.minisign import ENDING, PublicKey, sign, verify
from normscan.training.folder import DETECTOR, DIVISION, WEIGHTS

SETTING = "NORMSCAN_TRUSTED"
SUMS = "SHA256SUMS"
SIGNATURE = (SUMS, SUMS + ENDING)
PLACES = "places.safetensors"  # healthy mean and deviation at each place, where a score needs them
_READ = (DETECTOR, WEIGHTS, PLACES, DIVISION)  # by whoever loads a detector
_FILES = (*_READ, "card.md")
_MAY_LACK = (DIVISION,)  # names scans, so it may stay at home
_LINE = re.compile(r"([0-9a-f]{64}) [ *]([\w.-]+)")


def sign_detector(place: Path, key: Path, comment: str = "") -> Path:
    """Sign a detector; return the file of the signature.

    Args:
        place: run folder, or an exported file.
        key: secret key in minisign's format, without a password.
        comment: a line that is signed with it, such as who released it for what.

    Raises:
        OutputError: no detector there.
        ArgumentError: no usable key, a comment of several lines.
    """
    if "\n" in comment or not comment.isprintable():
        raise ArgumentError("the comment of a signature is one line of printable letters.")
    if not place.is_dir():
        if not place.is_file():
            raise OutputError(f"{place}: there is no such file or folder. Name a detector.")
        return sign(place, key, comment or f"file:{place.name}")
    if not (place / DETECTOR).is_file() or not (place / WEIGHTS).is_file():
        raise OutputError(f"{place}: holds no detector. Name a run folder that is finished.")
    lines = [f"{_sha256(place / name)}  {name}" for name in _FILES if (place / name).is_file()]
    with atomic_path(place / SUMS) as temporary:
        temporary.write_text("\n".join(lines) + "\n", encoding="utf-8")
    return sign(place / SUMS, key, comment or f"file:{SUMS}")


def verify_detector(place: Path, keys: Sequence[PublicKey]) -> str:
    """Return the comment of a detector's signature, made by any of the keys.

    Every file that loading reads must be signed, and be what was signed.

    Raises:
        OutputError: it isn't signed, or by another key, or was changed since.
    """
    if not place.is_dir():
        return verify(place, list(keys))
    sums = place / SUMS
    if not sums.is_file():
        raise OutputError(f"{place}: isn't signed ({SUMS} is missing). Sign it: normscan sign.")
    comment = verify(sums, list(keys))
    check_files(place)
    return comment


def check_files(place: Path) -> None:
    """See whether the files of a folder are those that ``SHA256SUMS`` names, whoever signed it.

    Raises:
        OutputError: one that loading reads was changed, is missing or isn't named.
    """
    sums = place / SUMS
    found = [_LINE.fullmatch(line) for line in sums.read_text(encoding="utf-8").splitlines()]
    signed = {hit[2]: hit[1] for hit in found if hit}
    for name in dict.fromkeys([*signed, *_READ]):
        path = place / name
        if name not in signed and path.exists():
            raise OutputError(f"{path}: isn't among the files that were signed. Remove it.")
        if name in signed and not path.is_file() and name not in _MAY_LACK:
            raise OutputError(f"{path}: was signed and is missing. Take the whole folder.")
        if name in signed and path.is_file() and _sha256(path) != signed[name]:
            raise OutputError(f"{path}: isn't what was signed. Take the files of who signed them.")
    if not {DETECTOR, WEIGHTS} <= set(signed):
        raise OutputError(f"{sums}: doesn't name the files of a detector. Sign it again.")


def trusted_keys(paths: Sequence[str | os.PathLike[str]] | None = None) -> list[PublicKey]:
    """Return the public keys whose detectors are loaded; none where all are.

    Args:
        paths: ``.pub`` files or folders of them; None for those that ``NORMSCAN_TRUSTED`` names, parted
            as in ``PATH``.

    Raises:
        ArgumentError: a file that is none, or a folder without any.
    """
    if paths is None:
        paths = [part for part in os.environ.get(SETTING, "").split(os.pathsep) if part]
    keys = []
    for place in map(Path, paths):
        files = sorted(place.glob("*.pub")) if place.is_dir() else [place]
        if not files:
            raise ArgumentError(f"{place}: holds no .pub file of a key that is trusted.")
        keys += [PublicKey.read(path) for path in files]
    return keys


def check_trusted(place: Path, paths: Sequence[str | os.PathLike[str]] | None = None) -> None:
    """Refuse a detector that nobody trusted has signed, where that is asked for.

    Args:
        place: run folder, or an exported file.
        paths: as in ``trusted_keys``.

    Raises:
        OutputError: it isn't signed by one of the keys.
        ArgumentError: a key can't be read, or cryptography isn't installed.
    """
    if (keys := trusted_keys(paths)) and place.exists():
        verify_detector(place, keys)


def _sha256(path: Path) -> str:
    with path.open("rb") as file:  # not a hash that is remembered: the file may just have changed
        return hashlib.file_digest(file, "sha256").hexdigest()
