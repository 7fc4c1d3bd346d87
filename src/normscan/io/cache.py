"""Where dear results are kept between runs, and how much of them."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

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


def limit_bytes() -> int:
    """Return the most bytes that one kind of results may take, from ``NORMSCAN_CACHE_GIB``."""
    try:
        gib = float(os.environ.get("NORMSCAN_CACHE_GIB", DEFAULT_GIB))
    except ValueError:
        gib = DEFAULT_GIB
    return int(max(gib, 0.0) * 2**30)


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
