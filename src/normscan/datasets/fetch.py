"""Download of the data sets whose licence permits it: resumable, with progress and checksums."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import tarfile
import time
import zipfile
import zlib
from http.client import HTTPException, HTTPResponse
from pathlib import Path
from typing import Any
from urllib.error import HTTPError, URLError
from urllib.request import Request, urlopen

from normscan.datasets.recipe import Recipe, Url, load
from normscan.errors import ArgumentError, OutputError
from normscan.io import atomic_path
from normscan.progress import Progress

CHUNK = 1 << 20
TRIES = 5
TIMEOUT = 60.0


def download(
    id: str, root: str | os.PathLike[str], *, progress: Progress | None = None
) -> list[Path]:
    """Fetch the files of an open data set into a folder, and unpack its archives there.

    An interrupted download goes on where it stopped, if the server can; files that are there whole
    are kept. Each file is compared with the SHA-256 or MD5 that the recipe knows. Where it knows none, the
    hash of the first download is pinned in ``<id>.lock.json`` in the folder, and a later download
    must give the same bytes.

    Args:
        id: of the data set.
        root: the folder; made if it isn't there.
        progress: bar.

    Returns:
        The files fetched, in the order of the recipe.

    Raises:
        ArgumentError: no such data set, or one that can't be fetched directly; the message says
            where to ask.
        OutputError: the server refuses, the connection breaks again and again, wrong size or
            checksum, no room.
    """
    recipe = load(id)
    if not recipe.urls:
        raise ArgumentError(
            f"'{id}' can't be fetched by a program. {recipe.how} Page: {recipe.home or 'none'}. "
            f"Then: normscan datasets prepare {id} --root FOLDER"
        )
    folder = Path(root)
    folder.mkdir(parents=True, exist_ok=True)
    lock = _Lock(folder / f"{id}.lock.json")
    done = []
    for url in recipe.urls:
        target = folder / url.file
        _fetch_checked(recipe, url, target, lock, progress or Progress(False))
        if url.unpack and not lock.entry(url).get("unpacked"):
            _unpack(target, folder)
            lock.write(url, {**lock.entry(url), "unpacked": True})
        done.append(target)
    return done


class _Lock:
    """What was downloaded: address, size and hash of every file."""

    def __init__(self, path: Path) -> None:
        self.path = path
        try:
            self.entries: dict[str, Any] = json.loads(path.read_text("utf-8"))
        except FileNotFoundError:
            self.entries = {}
        except (OSError, ValueError) as error:
            raise OutputError(f"{path}: is no lock file any more. Delete it.") from error

    def entry(self, url: Url) -> dict[str, Any]:
        return self.entries.get(url.file, {})

    def write(self, url: Url, entry: dict[str, Any]) -> None:
        self.entries[url.file] = entry
        with atomic_path(self.path) as temporary:
            temporary.write_text(json.dumps(self.entries, indent=2), "utf-8")


def _fetch_checked(recipe: Recipe, url: Url, target: Path, lock: _Lock, progress: Progress) -> None:
    entry = lock.entry(url)
    if target.is_file() and entry.get("size") == target.stat().st_size:
        return  # it was checked when the lock was written
    partial = target.with_name(target.name + ".part")
    if not target.is_file():
        partial.parent.mkdir(parents=True, exist_ok=True)
        _fetch(recipe, url, partial, progress)
    got = target if target.is_file() else partial
    size, digest = got.stat().st_size, _hash(got)
    other = bool(url.md5) and _hash(got, "md5") != url.md5
    wanted = url.sha256 or entry.get("sha256", "")
    if other or (wanted and digest != wanted) or (url.size and size != url.size):
        partial.unlink(missing_ok=True)
        known = (
            "the recipe" if other or url.sha256 or url.size else f"the pinned hash in {lock.path}"
        )
        raise OutputError(
            f"{got}: {size} bytes with SHA-256 {digest[:16]}... differ from {known}. The file was "
            f"damaged on the way, or replaced at {url.url}. Delete it and try again."
        )
    os.replace(got, target)
    lock.write(url, {"url": url.url, "size": size, "sha256": digest})


def _fetch(recipe: Recipe, url: Url, partial: Path, progress: Progress) -> None:
    """Bring the file to ``partial``, going on where it ends, with a few tries."""
    for attempt in range(1, TRIES + 1):
        try:
            _transfer(url, partial, progress)
            return
        except HTTPError as error:
            if error.code == 416:  # what is there is whole, or not of this file
                partial.unlink(missing_ok=True)
                reason = "the server has no such range"
            elif error.code < 500 and error.code != 429:
                raise OutputError(
                    f"{url.url}: the server says {error.code} {error.reason}. It may have moved: "
                    f"see {recipe.home or 'the page of the data set'}."
                ) from error
            else:
                reason = f"{error.code} {error.reason}"
        except (URLError, HTTPException, ConnectionError, TimeoutError) as error:
            reason = str(getattr(error, "reason", error) or type(error).__name__)
        except OSError as error:
            raise OutputError(f"{partial}: can't be written ({error.strerror}).") from error
        if attempt < TRIES:
            time.sleep(min(2.0**attempt, 30.0) * PAUSE)
    raise OutputError(
        f"{url.url}: stopped after {TRIES} tries ({reason}). What has arrived is kept in {partial}; "
        "run the command again to go on."
    )


PAUSE = 1.0
"""Factor of the pauses between tries."""


def _transfer(url: Url, partial: Path, progress: Progress) -> None:
    start = partial.stat().st_size if partial.exists() else 0
    headers = {"User-Agent": "normscan", "Accept-Encoding": "identity"}
    tag_file = partial.with_name(partial.name + ".etag")
    if start:
        headers["Range"] = f"bytes={start}-"
        if tag_file.exists():  # a file that changed meanwhile is sent whole
            headers["If-Range"] = tag_file.read_text("utf-8")
    if not url.url.startswith(("https://", "http://")):
        raise ArgumentError(f"{url.url}: only http and https are fetched.")
    with urlopen(Request(url.url, headers=headers), timeout=TIMEOUT) as answer:
        start = start if answer.status == 206 else 0
        total = _total(answer, start)
        if tag := answer.headers.get("ETag", ""):
            tag_file.write_text(tag, "utf-8")
        with partial.open("ab" if start else "wb") as file:
            while chunk := answer.read(CHUNK):
                file.write(chunk)
                start += len(chunk)
                progress.update(url.file, start >> 20, total >> 20 if total else None, "MiB")
    if total and start < total:
        raise ConnectionError(f"{start} of {total} bytes arrived")
    tag_file.unlink(missing_ok=True)


def _total(answer: HTTPResponse, start: int) -> int:
    length = answer.headers.get("Content-Length")
    return start + int(length) if length and length.isdecimal() else 0


def _hash(path: Path, kind: str = "sha256") -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, kind).hexdigest()


def _unpack(archive: Path, folder: Path) -> None:
    """Unpack into the folder; members that would land outside are refused."""
    try:
        if zipfile.is_zipfile(archive):
            with zipfile.ZipFile(archive) as file:
                if sum(m.file_size for m in file.infolist()) > shutil.disk_usage(folder).free:
                    raise OutputError(f"{archive}: there is no room in {folder} to unpack it.")
                file.extractall(folder)  # drops leading slashes and ".."
        else:
            with tarfile.open(archive) as tar:
                tar.extractall(folder, filter="data")  # refuses what would land outside
    except (ValueError, EOFError, zlib.error, zipfile.BadZipFile, tarfile.TarError) as error:
        raise OutputError(f"{archive}: can't be unpacked ({error}). Delete it.") from error
    except OSError as error:
        raise OutputError(f"{archive}: can't be unpacked ({error.strerror or error}).") from error
