"""One writer a folder, by a lock that ends with its process however that ends."""

from __future__ import annotations

import contextlib
import errno
import os
from collections.abc import Iterator
from pathlib import Path

from normscan.errors import OutputError
from normscan.io.atomic import check_folder

_HELD = (errno.EWOULDBLOCK, errno.EACCES)


@contextlib.contextmanager
def one_writer(folder: Path | None) -> Iterator[None]:
    """Hold a folder for the writing of results inside the block; it is made where it is missing.

    The lock is the system's (``flock``) on the folder itself: nothing is left behind for a later
    run to stumble over, whatever ends the process. Where the system has none (Windows, some network
    drives) nothing is held. A folder that was made, and in which nothing was written, is removed.

    Args:
        folder: None holds nothing.

    Raises:
        OutputError: another process writes there, or the folder can't be made.
    """
    if folder is None:
        yield
        return
    check_folder(folder)
    made = [p for p in (folder, *folder.parents) if not p.exists()]
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise OutputError(
            f"{folder}: can't be made ({error.strerror}). Choose another folder."
        ) from error
    try:
        with _locked(folder):
            yield
    finally:
        for path in made:
            with contextlib.suppress(OSError):  # something was written there
                path.rmdir()


@contextlib.contextmanager
def _locked(folder: Path) -> Iterator[None]:
    try:
        import fcntl

        place = os.open(folder, os.O_RDONLY)
    except (ImportError, OSError):
        yield
        return
    try:
        try:
            fcntl.flock(place, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            if error.errno in _HELD:
                raise OutputError(
                    f"{folder}: another process writes there. Wait for it, or choose another folder."
                ) from None
        yield
    finally:
        os.close(place)
