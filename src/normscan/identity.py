"""Who a patient is stays with the user: pseudonyms under a secret, names kept out of what travels.

A hash alone hides nothing: all numbers of seven digits are tried in minutes. So pseudonyms are
keyed (HMAC-SHA-256) with a secret that lies outside all results, one for each user. Whoever is to
give the same pseudonyms, on another machine say, takes the same file.
"""

from __future__ import annotations

import contextlib
import functools
import hmac
import json
import os
import secrets
import warnings
from collections.abc import Callable, Iterator, Mapping
from contextvars import ContextVar
from pathlib import Path
from typing import Any

SETTING = "NORMSCAN_SECRET"
_HERE = "NORMSCAN_SECRET_OF_THIS_RUN"  # for the processes that this one starts
_BYTES = 32
_kept: ContextVar[bool] = ContextVar("keep_names", default=False)


def secret_path() -> Path:
    """Return where the secret lies.

    ``NORMSCAN_SECRET`` names the file, else it is ``normscan/secret`` in the user's folder of settings
    (``$XDG_CONFIG_HOME``, ``~/.config``).
    """
    if named := os.environ.get(SETTING, ""):
        return Path(named)
    base = os.environ.get("XDG_CONFIG_HOME") or Path("~/.config").expanduser()
    return Path(base) / "normscan" / "secret"


def pseudonym(text: str, digits: int = 8) -> str:
    """Return so many hexadecimal digits that stand for a text, the same each time for this user."""
    code = hmac.digest(_secret(str(secret_path())), text.encode("utf-8", "surrogatepass"), "sha256")
    return code.hex()[:digits]


@functools.cache
def _secret(name: str) -> bytes:
    path = Path(name)
    with contextlib.suppress(OSError):
        path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        # Written under another name first: of two processes that begin at once one is the first.
        draft = path.with_name(f"{path.name}.{secrets.token_hex(4)}")
        if not path.exists():
            try:
                with os.fdopen(
                    os.open(draft, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "wb"
                ) as f:
                    f.write(secrets.token_bytes(_BYTES))
                with contextlib.suppress(FileExistsError):
                    os.link(draft, path)
            finally:
                draft.unlink(missing_ok=True)
    with contextlib.suppress(OSError):
        if len(found := path.read_bytes()) >= 16:
            return found
    if _HERE not in os.environ:
        os.environ[_HERE] = secrets.token_hex(_BYTES)
        warnings.warn(
            f"{path}: the secret for pseudonyms can't be kept there, so those of this run are like no "
            f"others. Name a file with {SETTING}.",
            stacklevel=3,
        )
    return bytes.fromhex(os.environ[_HERE])


@contextlib.contextmanager
def keeping_names(kept: bool = True) -> Iterator[None]:
    """Leave names of scans, files and folders in what travels, inside the block."""
    token = _kept.set(kept)
    try:
        yield
    finally:
        _kept.reset(token)


def names_are_kept() -> bool:
    """Whether names stay in what travels."""
    return _kept.get()


def without_folders(text: str) -> str:
    """Return an argument of a command with the last part alone of each path in it.

    An argument in JSON stays JSON: the paths among its values are shortened.
    """
    if names_are_kept() or not ("/" in text or os.sep in text):
        return text
    if text.startswith(("{", "[")):
        with contextlib.suppress(ValueError):
            return json.dumps(each_text(json.loads(text), without_folders))
    parts = []
    for part in text.split(","):
        name, equals, value = part.rpartition("=")
        parts.append(name + equals + (Path(value).name if "://" not in value else value))
    return ",".join(parts)


def about_files(reason: str, called: Mapping[Path, str]) -> str:
    """Return why a scan was left out without the folders and the names of its files.

    Args:
        reason: as it is said to the user.
        called: what stands for each file, see ``CohortRow.called``.
    """
    if names_are_kept():
        return reason
    for path, name in called.items():
        reason = reason.replace(str(path), name)
        reason = reason.replace(f"{path.parent}{os.sep}", "").replace(path.name, name)
    return reason


def unnamed(record: Any, names: Mapping[str, str]) -> Any:
    """Return plain values with other names for scans, where a whole value is a name.

    A name inside of a sentence stays: who writes sentences about scans replaces it there.

    Args:
        record: dictionaries, lists, texts.
        names: old to new.
    """
    return each_text(record, lambda text: names.get(text, text))


def each_text(record: Any, change: Callable[[str], str]) -> Any:
    """Return plain values with each text among them changed; keys stay."""
    if isinstance(record, dict):
        return {key: each_text(value, change) for key, value in record.items()}
    if isinstance(record, list | tuple):
        return [each_text(value, change) for value in record]
    return change(record) if isinstance(record, str) else record
