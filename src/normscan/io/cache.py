"""Where dear results are kept between runs, and how much of them."""

from __future__ import annotations

import hashlib
import math
import os
import shutil
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import IO

from normscan.errors import ScanError
from normscan.io.atomic import atomic_path

DEFAULT_GIB = 20.0


def cache_folder(kind: str) -> Path:
    """Return the folder for one kind of results; nothing is made yet.

    It lies in ``NORMSCAN_CACHE`` if that is set, else in ``$XDG_CACHE_HOME/normscan`` or
    ``~/.cache/normscan``.
    """
    named = os.environ.get("NORMSCAN_CACHE", "")
    if named and named != "off":
        return Path(named) / kind
    base = os.environ.get("XDG_CACHE_HOME") or str(Path.home() / ".cache")
    return Path(base) / "normscan" / kind


@cache
def code_digest() -> str:
    """Return a hash of this package's code: what another state of it kept is not taken over."""
    found = hashlib.sha256()
    for path in sorted(Path(__file__).parents[1].rglob("*.py")):
        found.update(path.read_bytes())
    return found.hexdigest()


def limit_bytes() -> int:
    """Return the most bytes that one kind of results may take, from ``NORMSCAN_CACHE_GIB``."""
    try:
        gib = float(os.environ.get("NORMSCAN_CACHE_GIB", DEFAULT_GIB))
    except ValueError:
        gib = DEFAULT_GIB
    gib = DEFAULT_GIB if math.isnan(gib) else min(max(gib, 0.0), 2.0**30)
    return int(gib * 2**30)


def trim(folder: Path, keep: Path | None = None) -> None:
    """Remove the entries of a folder that were used longest ago, until the rest fits the limit.

    Args:
        folder: its files and folders are the entries; using one sets its time (``os.utime``).
        keep: an entry that stays whatever its size.
    """
    entries = []
    for entry in folder.iterdir():
        if entry.name.startswith(".tmp-"):
            continue
        try:
            files = [entry] if entry.is_file() else list(entry.rglob("*"))
            size = sum(f.stat().st_size for f in files if f.is_file())
            entries.append((entry.stat().st_mtime_ns, size, entry))
        except OSError:  # another process removed it meanwhile
            continue
    total = sum(size for _, size, _ in entries)
    for _, size, entry in sorted(entries, key=lambda e: e[0]):
        if total <= limit_bytes():
            return
        if entry != keep:
            shutil.rmtree(entry, ignore_errors=True) if entry.is_dir() else entry.unlink(
                missing_ok=True
            )
            total -= size


def unpacked(
    path: Path, known: str, suffix: str, needed: int, opened: Callable[[], IO[bytes]]
) -> Path:
    """Unpack a file into the cache, never more of it than its header declares.

    Args:
        path: the packed file.
        known: what changes when its content does.
        suffix: of the unpacked file.
        needed: bytes that it has.
        opened: opens the packed one for reading.

    Raises:
        ScanError: it holds fewer bytes.
    """
    name = f"{os.path.realpath(path)}:{known}"
    digest = hashlib.sha256(name.encode()).hexdigest()[:32]
    target = cache_folder("volumes") / f"{digest}{suffix}"
    if target.exists() and target.stat().st_size == needed:
        os.utime(target)
        return target
    with opened() as packed, atomic_path(target) as temporary:
        left = needed
        with temporary.open("wb") as out:
            while left:
                block = packed.read(min(left, 2**20))
                if not block:
                    raise ScanError(
                        f"{path}: truncated, its header declares {needed} bytes. Copy it again."
                    )
                out.write(block)
                left -= len(block)
        while packed.read(2**20):  # to the end, where the checksum is compared
            left += 1
            if left > 64:
                break
    trim(target.parent, keep=target)
    return target
