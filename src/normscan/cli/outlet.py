"""Standard output and error that never end a job: their reader may go, their alphabet be small."""

from __future__ import annotations

import contextlib
import errno
import os
import sys
from collections.abc import Iterator
from typing import Any, TextIO, cast

_NO_READER = (errno.EPIPE, errno.EINVAL)  # EINVAL: a closed pipe on Windows


class Outlet:
    """A stream of text whose failures are kept instead of raised.

    A pipe that was closed, as ``head`` does, or a disk that is full ends the printing: what is
    written later is dropped, and the job goes on. Characters that the stream can't show are
    written as escapes.

    Attributes:
        failure: what ended the printing, other than a reader that went away; None if nothing did.
    """

    def __init__(self, stream: TextIO | None) -> None:
        # Without a stream (``>&-``) Python has None.
        self.stream = stream or open(os.devnull, "w", encoding="utf-8")  # noqa: SIM115
        self.failure: OSError | None = None

    def write(self, text: str) -> int:
        """Write text as the stream can show it."""
        encoding = getattr(self.stream, "encoding", None) or "utf-8"
        shown = text.encode(encoding, "backslashreplace").decode(encoding)
        with self._kept():
            self.stream.write(shown)
        return len(text)

    def flush(self) -> None:
        """Hand on what is buffered."""
        with self._kept():
            self.stream.flush()

    @contextlib.contextmanager
    def _kept(self) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            if error.errno not in _NO_READER:
                self.failure = self.failure or error
            # What is still in the buffer goes nowhere, now and when the process ends.
            with contextlib.suppress(OSError, ValueError):
                os.dup2(os.open(os.devnull, os.O_WRONLY), self.stream.fileno())
        except ValueError:  # the stream was closed
            pass

    def __getattr__(self, name: str) -> Any:
        return getattr(self.stream, name)


@contextlib.contextmanager
def outlets() -> Iterator[Outlet]:
    """Print through outlets inside the block; gives the one of standard output."""
    out, err = Outlet(sys.stdout), Outlet(sys.stderr)
    with (
        contextlib.redirect_stdout(cast(TextIO, out)),
        contextlib.redirect_stderr(cast(TextIO, err)),
    ):
        try:
            yield out
        finally:
            out.flush()
            err.flush()
