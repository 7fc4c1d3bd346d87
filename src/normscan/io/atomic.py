"""Write a file under a temporary name first, so that a killed run never leaves half a file."""

from __future__ import annotations

import contextlib
import errno
import os
import secrets
from collections.abc import Iterator
from pathlib import Path

from normscan.errors import OutputError

_FULL_OR_READ_ONLY = {errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EFBIG, errno.EACCES}


@contextlib.contextmanager
def atomic_path(path: str | os.PathLike[str]) -> Iterator[Path]:
    """Give a temporary path in the same folder, and rename it to ``path`` when the block succeeds.

    The temporary name ends like the final one (``.nii.gz`` stays ``.nii.gz``), because writers
    choose their format by it. Missing folders are made. If the block fails the temporary file is
    removed and what stood at ``path`` before is untouched.

    Args:
        path: the file to write; an existing file is replaced.

    Raises:
        OutputError: the folder can't be written, the disk is full, or the block wrote nothing.
    """
    target = Path(path)
    if target.is_dir():
        raise OutputError(f"{target}: is a folder, so no file can be written there. Name a file.")
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise OutputError(
            f"{target}: can't make its folder ({error.strerror}). Choose another one."
        ) from error
    temporary = target.with_name(f".tmp-{secrets.token_hex(4)}-{target.name}")
    try:
        with writing(target, temporary):
            yield temporary
            if not temporary.exists():
                raise OutputError(f"{target}: nothing was written.")
            os.replace(temporary, target)
    finally:
        with contextlib.suppress(OSError):  # of a disk that went read-only; what failed is said
            temporary.unlink(missing_ok=True)


@contextlib.contextmanager
def writing(target: Path, temporary: Path | None = None) -> Iterator[None]:
    """Name the file, and what to do, where a block that writes it fails.

    Args:
        target: what is written.
        temporary: another name that it is written under.

    Raises:
        OutputError: the disk is full, or nothing may be written there.
    """
    try:
        yield
    except OSError as error:
        named = None if error.filename is None else str(error.filename)
        ours = named is not None and named in (str(temporary), str(target))
        # Without a number it is NumPy's: so many values were to be written, so many were.
        full = error.errno in _FULL_OR_READ_ONLY or (error.errno is None and named is None)
        if ours or full:
            raise OutputError(
                f"{target}: can't be written ({error.strerror or error}). "
                "Check the free space and the rights of the folder."
            ) from error
        raise


def check_folder(folder: Path) -> None:
    """Refuse a folder for results that can't be one, before the work; make nothing yet.

    Raises:
        OutputError: it, or a folder above it, is a file.
    """
    for path in (folder, *folder.parents):
        if path.is_file():
            raise OutputError(f"{path} is a file. Name a folder.")
