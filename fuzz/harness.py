"""What the fuzz targets share: seeds on disk, one input as files, findings told apart and kept."""

from __future__ import annotations

import hashlib
import os
import random
import shutil
import sys
import tempfile
import traceback
from collections.abc import Callable, Iterable
from pathlib import Path

import atheris

from normscan.errors import NormscanError

SECRET = "SECRET"
"""Stands in every name and number of a patient in the seeds; no message may repeat it."""

LIMITS = ("-timeout=10", "-rss_limit_mb=2048", "-len_control=0")
Read = Callable[[Path, bytes], None]
Mutate = Callable[[bytes, int, int], bytes]


class Findings:
    """Wrong exceptions, one input kept for each place in the code where they came from.

    Args:
        folder: where the inputs go, with the traceback beside each.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.known: set[str] = set()

    def keep(self, data: bytes, error: BaseException) -> None:
        """Write an input that did what it mustn't, unless its like is known."""
        where = [f"{f.name}:{f.lineno}" for f in traceback.extract_tb(error.__traceback__)]
        key = hashlib.sha256(f"{type(error)}{where[-1:]}".encode()).hexdigest()[:12]
        if key in self.known:
            return
        self.known.add(key)
        self.folder.mkdir(parents=True, exist_ok=True)
        (self.folder / key).write_bytes(data)
        told = "".join(traceback.format_exception(error))
        (self.folder / f"{key}.txt").write_text(told)
        print(f"FINDING {key}: {told}", file=sys.stderr, flush=True)


def check(read: Read, place: Path, data: bytes) -> None:
    """Read one input: a scan or a NormscanError that names the place and no patient."""
    try:
        read(place, data)
    except NormscanError as error:
        message = str(error)
        if place.name not in message:
            raise AssertionError(f"the message doesn't name the file: {message}") from error
        if SECRET in message.upper():
            raise AssertionError(f"the message names the patient: {message}") from error


def structured(change: Callable[[bytes, random.Random], bytes]) -> Mutate:
    """Return what changes the content of an input, half of the time; the rest is libFuzzer's.

    Args:
        change: of the content behind the first byte.
    """

    def mutate(data: bytes, largest: int, seed: int) -> bytes:
        rng = random.Random(seed)
        if len(data) > 1 and rng.random() < 0.5:
            try:
                made = data[:1] + change(data[1:], rng)
                return made if len(made) <= largest else data
            except Exception:  # an earlier change left nothing of that structure
                pass
        return atheris.Mutate(data, largest)

    return mutate


def fuzz(
    name: str,
    reads: tuple[Read, ...],
    seeds: Iterable[tuple[int, bytes]],
    mutate: Mutate | None = None,
    largest: int = 8192,
) -> None:
    """Run libFuzzer on ``reads``; the first byte of an input says by which of them it is read.

    The corpus lies in ``fuzz/corpus/<name>``, findings in ``fuzz/findings/<name>``. Options behind
    the script's name are libFuzzer's. The process ends itself and counts its findings.

    Args:
        name: of the target.
        reads: functions of a path that is free to use and of the bytes; they write and read it.
        seeds: which of the functions, and the bytes.
        mutate: of an input, the most bytes and a seed; libFuzzer's own by default.
        largest: bytes of an input.
    """
    here = Path(__file__).parent
    corpus = here / "corpus" / name
    corpus.mkdir(parents=True, exist_ok=True)
    for which, content in seeds:
        data = bytes([which]) + content
        (corpus / f"seed-{hashlib.sha256(data).hexdigest()[:12]}").write_bytes(data)
    findings = Findings(here / "findings" / name)
    memory = Path("/dev/shm")
    home = (memory if memory.is_dir() else Path(tempfile.gettempdir())) / f"normscan-fuzz-{name}"
    shutil.rmtree(home, ignore_errors=True)  # libFuzzer ends the process, so it stays behind
    home.mkdir()
    os.environ["NORMSCAN_CACHE"] = str(home / "cache")
    count = 0

    def one(data: bytes) -> None:
        nonlocal count
        if not data:
            return
        count += 1
        # A name of its own for each: what is remembered of files goes by name, size and time.
        place = home / f"in{count}"
        try:
            check(reads[data[0] % len(reads)], place, data[1:])
        except Exception as error:
            findings.keep(data, error)
        finally:
            for made in home.glob(f"{place.name}*"):
                shutil.rmtree(made) if made.is_dir() else made.unlink()

    single = len(sys.argv) > 1 and Path(sys.argv[-1]).is_file()
    places = [] if single else [str(corpus)]
    artifacts = f"-artifact_prefix={here / 'findings' / name}-"
    findings.folder.parent.mkdir(exist_ok=True)
    more = {} if mutate is None else {"custom_mutator": mutate}
    atheris.Setup(
        [sys.argv[0], *LIMITS, f"-max_len={largest}", artifacts, *sys.argv[1:], *places],
        one,
        **more,
    )
    atheris.Fuzz()
