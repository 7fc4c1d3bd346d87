"""How much memory one scan may take: what is free here, or what the user sets."""

from __future__ import annotations

import math
import os
from pathlib import Path

from normscan.errors import ScanError

SETTING = "NORMSCAN_MEMORY_GIB"
SHARE = 0.75  # of what is free: other scans are read ahead, and others work here, too
_GIB = 2**30


def memory_limit() -> int:
    """Return the most bytes that reading one scan may take.

    ``NORMSCAN_MEMORY_GIB`` sets it; by default it is three quarters of what is free, by the
    machine, by the container's limit and by that of the process, where the system tells.
    """
    try:
        given = float(os.environ.get(SETTING, ""))
    except ValueError:
        given = math.nan
    if given > 0:
        return int(min(given, 2.0**20) * _GIB)
    found = [n for n in (_machine(), _container(), _process()) if n is not None]
    return int(SHARE * min(found)) if found else 2**40


def check_memory(path: Path, needed: int) -> None:
    """Refuse a scan that takes more memory than there is, before any of it is taken.

    Args:
        path: the file, to name it.
        needed: bytes, at the most at once.

    Raises:
        ScanError: more than ``memory_limit``.
    """
    if needed > 2**24 and needed > (limit := memory_limit()):
        raise ScanError(
            f"{path}: takes {needed / _GIB:.1f} GiB of memory to read, the limit is "
            f"{limit / _GIB:.1f} GiB. Cut it into tiles, take a larger machine, or set {SETTING}."
        )


def _machine() -> int | None:
    try:
        lines = Path("/proc/meminfo").read_text().splitlines()
        return next(1024 * int(n.split()[1]) for n in lines if n.startswith("MemAvailable:"))
    except (OSError, ValueError, IndexError, StopIteration):
        return None


def _container(root: str = "/sys/fs/cgroup") -> int | None:
    try:
        most, now = (int(Path(root, f"memory.{n}").read_text()) for n in ("max", "current"))
        told = dict(n.split() for n in Path(root, "memory.stat").read_text().splitlines())
        return max(0, most - now + int(told.get("inactive_file", 0)))  # that can be given up
    except (OSError, ValueError):
        return None  # not there, or "max"


def _process() -> int | None:
    try:
        import resource

        most = resource.getrlimit(resource.RLIMIT_AS)[0]
        if most == resource.RLIM_INFINITY:
            return None
        pages = int(Path("/proc/self/statm").read_text().split()[0])
        return max(0, most - pages * resource.getpagesize())
    except (ImportError, OSError, ValueError):
        return None
