"""Arrays of prepared scans on disk, found by all that they depend on.

What a fit prepared serves the baselines beside it, other methods with the same preprocessing, and
repeats. An entry is one archive, whose checksums are compared when it is read.
"""

from __future__ import annotations

import hashlib
import json
import os
import zipfile
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from normscan.errors import NormscanError
from normscan.io import atomic_path
from normscan.io.cache import cache_folder, code_digest
from normscan.parallel import undisturbed
from normscan.preprocess.cache import tidy

Arrays = dict[str, np.ndarray]


def kept_arrays(about: Sequence[Any], make: Callable[[], Mapping[str, np.ndarray]]) -> Arrays:
    """Return arrays as an earlier call kept them, or make and keep them.

    Args:
        about: plain values that they depend on, beside this package's code.
        make: makes them; where it raises, nothing is kept.
    """
    told = json.dumps([code_digest(), *about], sort_keys=True)
    name = hashlib.sha256(told.encode()).hexdigest()[:40]
    entry = cache_folder("prepared") / f"{name}.npz"

    def read() -> Arrays:
        with np.load(entry, allow_pickle=False) as stored:
            return {key: stored[key] for key in stored.files}

    try:
        found = undisturbed(read)
        os.utime(entry)
        return found
    except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile):
        pass  # none there, or a damaged one, which is made anew
    arrays = dict(make())
    try:
        with atomic_path(entry) as temporary:
            temporary.touch(0o600)  # it holds pixels of patients
            with temporary.open("wb") as file:
                np.savez(file, **arrays)  # type: ignore[arg-type]
        tidy(entry, entry.stat().st_size)
    except (OSError, NormscanError):
        pass  # a cache that can't be written makes things slow, not wrong
    return arrays
