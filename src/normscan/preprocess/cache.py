"""Results of preprocessing steps on disk, found by what went into them.

The name of an entry is a hash of the scan's values and geometry and of the steps with their
arguments and versions. Nothing in it names the scan. An entry is a folder of two arrays and a
description with their hashes; it appears whole, by a rename, and a damaged one is made anew.
"""

from __future__ import annotations

import hashlib
import json
import math
import os
import shutil
import tempfile
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from normscan.errors import NormscanError, ScanError
from normscan.io.cache import cache_folder, limit_bytes, trim
from normscan.parallel import undisturbed
from normscan.preprocess.chain import Spec, parse_steps, run_steps
from normscan.preprocess.steps import Working

FORMAT = 1
DESCRIPTION = "entry.json"
IMAGE, FOREGROUND = "image.npy", "foreground.npy"
# What a killed process left half-written is removed after a day.
STALE_SECONDS = 86400.0

# Bytes since the limit was last looked at.
_written = [math.inf]


def enabled() -> bool:
    """Whether results are kept: not with ``NORMSCAN_CACHE=off`` nor with a limit of zero."""
    return os.environ.get("NORMSCAN_CACHE", "").lower() != "off" and limit_bytes() > 0


def digest(working: Working) -> str:
    """Return a hash of a scan as it came in: values, geometry, channel names, foreground."""
    scan, mask = working.scan, working.foreground
    about = [FORMAT, scan.shape, scan.channels, scan.dtype, mask is not None]
    found = hashlib.sha256(json.dumps(about).encode())
    found.update(np.ascontiguousarray(scan.data, "<f4").data)
    found.update(np.ascontiguousarray(scan.affine, "<f8").data)
    if mask is not None:
        found.update(np.packbits(mask).data)
    return found.hexdigest()


def describe(specs: Sequence[Spec]) -> list[list[Any]]:
    """Return name, version and arguments of steps: what their results depend on."""
    return [[step.name, step.version, arguments] for step, arguments in parse_steps(specs)]


def run_cached(specs: Sequence[Spec], working: Working, cache: bool = True) -> Working:
    """Take a scan through steps, from the last step whose result is kept.

    The same bits come out with and without the cache. What is kept is memory-mapped, not loaded.

    Args:
        specs: see ``normscan.preprocess.chain.parse_steps``.
        working: a scan as it was read.
        cache: False works without.

    Raises:
        ArgumentError: see ``parse_steps``.
        ScanError: a step can't work on this scan.
    """
    if not (cache and specs and enabled()):
        return _run(specs, working)
    content, steps = digest(working), describe(specs)
    entries = [
        cache_folder("steps") / _hash([content, steps[:n]]) for n in range(1, len(steps) + 1)
    ]
    done, found = 0, working
    for n in range(len(entries), 0, -1):
        kept = _load(entries[n - 1], working)
        if kept is not None:
            done, found = n, kept
            break
    if done < len(steps):
        found = _run(specs[done:], found)
        _store(entries[-1], found)
    return found


def _run(specs: Sequence[Spec], working: Working) -> Working:
    for spec in specs:
        try:
            working = run_steps([spec], working)
        except RuntimeError as error:  # SimpleITK's only kind
            name = describe([spec])[0][0]
            reason = " ".join(str(error).split())[-300:]
            raise ScanError(f"{working.scan.name}: the step '{name}' failed: {reason}") from error
    return working


def _hash(value: Any) -> str:
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()[:40]


def _file_hash(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _load(entry: Path, origin: Working) -> Working | None:
    """Return what an entry holds, or None where there is none; a damaged one is removed."""
    if not entry.is_dir():
        return None
    try:
        about = json.loads((entry / DESCRIPTION).read_text(encoding="utf-8"))
        if about.pop("check") != _hash(about):
            raise ValueError("the description is damaged")
        for name, found in about["files"].items():
            if _file_hash(entry / name) != found:
                raise ValueError("an array is damaged")
        # Copy on write: a step that changes its input in place doesn't change the entry.
        data = undisturbed(lambda: np.load(entry / IMAGE, mmap_mode="c", allow_pickle=False))
        mask = None
        if FOREGROUND in about["files"]:
            bits = undisturbed(lambda: np.load(entry / FOREGROUND, allow_pickle=False))
            shape = data.shape[1:]
            mask = np.unpackbits(bits, count=int(np.prod(shape))).astype(bool).reshape(shape)
        scan = replace(
            origin.scan,
            data=data,
            affine=np.array(about["affine"]),
            channels=tuple(about["channels"]),
        )
        os.utime(entry)
        return replace(
            origin,
            scan=scan,
            to_world=np.array(about["to_world"]),
            foreground=mask,
            notes=tuple(about["notes"]),
            facts=about["facts"],
        )
    except (NormscanError, OSError, ValueError, KeyError, TypeError, AttributeError, EOFError):
        shutil.rmtree(entry, ignore_errors=True)
        return None


def _store(entry: Path, working: Working) -> None:
    """Keep a result; a cache that can't be written makes things slow, not wrong."""
    try:
        entry.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(prefix=".tmp-", dir=entry.parent) as temporary:
            folder = Path(temporary) / "entry"
            folder.mkdir(mode=0o700)  # it holds pixels of patients
            np.save(folder / IMAGE, np.ascontiguousarray(working.scan.data), allow_pickle=False)
            if working.foreground is not None:
                np.save(folder / FOREGROUND, np.packbits(working.foreground), allow_pickle=False)
            about: dict[str, Any] = {
                "files": {file.name: _file_hash(file) for file in sorted(folder.iterdir())},
                "affine": working.scan.affine.tolist(),
                "channels": list(working.scan.channels),
                "to_world": np.asarray(working.to_world).tolist(),
                "notes": list(working.notes),
                "facts": {name: float(value) for name, value in working.facts.items()},
            }
            text = json.dumps({**about, "check": _hash(about)})
            (folder / DESCRIPTION).write_text(text, encoding="utf-8")
            size = sum(file.stat().st_size for file in folder.iterdir())
            folder.rename(entry)  # fails where another process was faster: its entry is as good
        tidy(entry, size)
    except OSError:
        return


def tidy(entry: Path, size: int) -> None:
    """Keep the folder below its limit; looking at all entries is dear, so not at every one."""
    _written[0] += size
    if _written[0] < limit_bytes() / 50:
        return
    _written[0] = 0
    trim(entry.parent, keep=entry)
    for left in entry.parent.glob(".tmp-*"):
        if time.time() - left.stat().st_mtime > STALE_SECONDS:
            shutil.rmtree(left, ignore_errors=True)
