"""Errors whose message alone tells a user what happened, to which file, why, and how to mend it.

The command line prints the message and exits with code 2; nothing else in the package catches them
except the loops over a cohort, which report a bad scan and go on.
"""

from __future__ import annotations

import contextlib
import difflib
from collections.abc import Iterable, Iterator

LONGEST = 2000  # letters of a message


class NormscanError(Exception):
    """Base of every error that bad input can cause.

    A message may repeat what a file says of itself: what a terminal can't show is escaped, and the
    middle of a very long one left out; how to mend it stands at the end.
    """

    def __str__(self) -> str:
        text = "\n".join(map(printable, super().__str__().split("\n")))
        half = LONGEST // 2
        return text if len(text) <= LONGEST else f"{text[:half]} ... {text[-half:]}"


class ScanError(NormscanError):
    """A file that can't be read as a scan or mask, or an array that is no image."""


class CohortError(NormscanError):
    """A table or folder that is no usable cohort."""


class ArgumentError(NormscanError):
    """An unknown method, argument or preset, or a value outside its range."""


class OutputError(NormscanError):
    """An output that exists already, or can't be written."""


class WeightsError(NormscanError):
    """Pretrained weights that are not on this machine, or don't fit the network."""


def nearest(name: str, known: Iterable[str]) -> str:
    """Return `` Did you mean 'x'?`` for the closest known name, or an empty string."""
    close = difflib.get_close_matches(name, list(known), n=1, cutoff=0.5)
    return f" Did you mean '{close[0]}'?" if close else ""


def printable(name: str) -> str:
    """Return a file's name as any page can show it: what can't be shown is escaped."""
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in name)


def short_of_memory(error: BaseException) -> bool:
    """Tell whether an error says that there is too little memory, in the words of any library."""
    said = str(error).lower()
    words = (
        "out of memory",
        "allocate memory",
        "not enough memory",
        "could not create a primitive",
        "failed to map segment",  # of a library that is imported
    )
    return isinstance(error, MemoryError) or (
        isinstance(error, RuntimeError | ImportError) and any(w in said for w in words)
    )


@contextlib.contextmanager
def of_scan(name: str) -> Iterator[None]:
    """Raise what goes wrong with one scan as ``ScanError``, so that a loop over many goes on.

    Args:
        name: of the scan.

    Raises:
        NormscanError: of the block, or instead of a file that can't be read or written, a name that
            can't be encoded, too little memory.
    """
    try:
        yield
    except OSError as error:
        what = f"'{printable(str(error.filename))}': " if error.filename else ""
        raise ScanError(f"{name}: {what}{error.strerror or error}.") from error
    except UnicodeError as error:
        raise ScanError(f"{name}: a name can't be encoded ({error}). Rename the file.") from error
    except (MemoryError, RuntimeError, ImportError) as error:
        if not short_of_memory(error):
            raise
        said = str(error).strip().partition("\n")[0][:200]
        raise ScanError(
            f"{name}: there is too little memory for it{f' ({said})' if said else ''}. Make it "
            "smaller, or use a larger machine."
        ) from error
