"""Progress that a person sees on a terminal and a log file can hold."""

from __future__ import annotations

import sys
import time
from collections.abc import Iterable, Iterator, Sized
from contextvars import ContextVar
from types import TracebackType
from typing import Any, TypeVar

T = TypeVar("T")

# What is shown now, for those far below who work long on one piece of it.
_shown: ContextVar[Progress | None] = ContextVar("shown", default=None)

LINE_SECONDS = 10.0


class Progress:
    """Bars on a terminal; elsewhere a line at most every ten seconds. Writes to stderr.

    Args:
        shown: False for silence.
    """

    def __init__(self, shown: bool = True) -> None:
        self.shown = shown
        self.live = shown and sys.stderr.isatty()
        self._bar: Any = None
        self._task: Any = None
        self._name = ""
        self._last = self._began = 0.0
        self._first = 0
        self._at: tuple[int, int | None] = (0, None)

    def __enter__(self) -> Progress:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        value: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._stop()

    def _stop(self) -> None:
        if self._bar is not None:
            self._bar.stop()
        self._bar, self._name = None, ""
        if _shown.get() is self:
            _shown.set(None)

    def _start(self, name: str, done: int, total: int | None) -> None:
        self._stop()
        self._name, self._last = name, time.monotonic()
        self._began, self._first = self._last, done
        self._at = (done, total)
        _shown.set(self)
        if self.live:
            from rich import progress
            from rich.console import Console

            columns = [progress.TextColumn("{task.description:<22}"), progress.BarColumn()]
            columns += [progress.MofNCompleteColumn(), progress.TimeRemainingColumn()]
            columns.append(progress.TextColumn("{task.fields[text]}"))
            self._bar = progress.Progress(*columns, console=Console(stderr=True))
            self._task = self._bar.add_task(name, total=total, text="")
            self._bar.start()

    def update(self, name: str, done: int, total: int | None, text: str = "") -> None:
        """Show that ``done`` of ``total`` pieces of the work called ``name`` are finished."""
        if not self.shown:
            return
        if name != self._name:
            self._start(name, done, total)
        self._at = (done, total)
        if self._bar is not None:
            self._bar.update(self._task, completed=done, total=total, text=text)
        elif time.monotonic() - self._last > LINE_SECONDS or (total is not None and done == total):
            self._last = time.monotonic()
            left = self._left(done, total)
            line = f"{name}: {done}{f'/{total}' if total else ''}  {text}  {left}"
            print(line.rstrip(), file=sys.stderr)
        if total is not None and done >= total:
            self._stop()

    def _left(self, done: int, total: int | None) -> str:
        """The time that the rest will take, once some of it has been seen."""
        if total is None or done >= total or done <= self._first:
            return ""
        per_piece = (time.monotonic() - self._began) / (done - self._first)
        seconds = per_piece * (total - done)
        for unit, size in (("d", 86400), ("h", 3600), ("min", 60)):
            if seconds > 1.5 * size:
                return f"{seconds / size:.0f} {unit} left"
        return f"{seconds:.0f} s left"

    def track(self, items: Iterable[T], name: str, total: int | None = None) -> Iterator[T]:
        """Yield the items and show how many have passed."""
        if total is None and isinstance(items, Sized):
            total = len(items)
        if total != 0:
            self.update(name, 0, total)
        for i, item in enumerate(items, start=1):
            yield item
            self.update(name, i, total)

    def inside(self, text: str) -> None:
        """Show how far the work on the current piece is."""
        if self._name:
            self.update(self._name, *self._at, text=text)

    def say(self, text: str) -> None:
        """Print a line for the user."""
        if self.shown:
            self._stop()
            print(text, file=sys.stderr)


def steps_of(name: str, count: int) -> Iterator[int]:
    """Yield 0 to ``count`` - 1 and say how far that is beside the progress that is shown, if any."""
    for step in range(count):
        shown = _shown.get()
        if shown is not None:
            shown.inside(f"{name} {step}/{count}")
        yield step


def announce(text: str) -> None:
    """Print a line for the user from far below, beside the progress that is shown, if any."""
    shown = _shown.get()
    if shown is None:
        print(text, file=sys.stderr)
    else:
        shown.say(text)
