"""The same function on many items, in processes of one thread each or in threads; the order stays."""

from __future__ import annotations

import contextlib
import os
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TypeVar

from normscan.errors import ArgumentError, NormscanError

Item = TypeVar("Item")
Result = TypeVar("Result")

THREADS = (
    "OMP_NUM_THREADS",
    "OPENBLAS_NUM_THREADS",
    "MKL_NUM_THREADS",
    "ITK_GLOBAL_DEFAULT_NUMBER_OF_THREADS",
)


# What waits for its turn behind a slower consumer: so many results, of so many bytes together.
MOST_WAITING, WAITING_BYTES = 32, 2**27

AGAIN = 20  # times that a reader is asked again, see `undisturbed`


def cores() -> int:
    """Return the processor cores that this process may use: its affinity and the container's quota."""
    affinity = getattr(os, "sched_getaffinity", None)
    count, allowed = len(affinity(0)) if affinity else os.cpu_count() or 1, quota()
    return count if allowed is None else max(1, min(count, int(allowed)))


def quota(root: str = "/sys/fs/cgroup") -> float | None:
    """Return the cores that the container's CPU quota amounts to, or None without one."""
    files = {"cpu.max": 0, "cpu/cpu.cfs_quota_us": 1}  # version 2 and 1 of control groups
    for name, version in files.items():
        try:
            words = Path(root, name).read_text().split()
            if version:
                words.append(Path(root, "cpu/cpu.cfs_period_us").read_text().strip())
            allowed, period = float(words[0]), float(words[1])
        except (OSError, ValueError, IndexError):
            continue  # not there, or "max"
        return allowed / period if allowed > 0 and period > 0 else None
    return None


def use_threads(count: int | None = None) -> None:
    """Let the arithmetic of torch run in so many threads of this process.

    Args:
        count: by default the cores that the process may use, or fewer where ``OMP_NUM_THREADS`` or
            torch's own default says so: more threads than cores make it many times slower.

    Raises:
        ArgumentError: fewer than one.
    """
    import torch

    if count is not None and count < 1:
        raise ArgumentError(f"threads is {count}; it must be 1 or more.")
    torch.set_num_threads(count or min(torch.get_num_threads(), cores()))


def read_ahead() -> int:
    """Return how many threads read and prepare scans ahead: none where there is one core."""
    return min(2, cores()) if cores() > 1 else 0


def ahead(
    function: Callable[[Item], Result],
    items: Iterable[Item],
    threads: int,
    size: Callable[[Result], int] = lambda result: 0,
) -> Iterator[Result]:
    """Yield ``function(item)`` for every item, in their order, while threads work on the next ones.

    So many results wait as fit in ``WAITING_BYTES`` together, by the largest one seen.

    Args:
        function: called in threads.
        items: taken in the thread of the caller.
        threads: 0 works in the caller's, one item at a time.
        size: bytes of a result.

    Raises:
        ArgumentError: a negative number of threads.
    """
    if threads < 0:
        raise ArgumentError(f"workers is {threads}; it must be 0 or more.")
    if threads == 0:
        yield from map(function, items)
        return
    from concurrent.futures import Future, ThreadPoolExecutor

    pool = ThreadPoolExecutor(threads, "normscan")
    waiting: deque[Future[Result]] = deque()
    most, largest = threads, 1
    try:
        for item in items:
            waiting.append(pool.submit(function, item))
            while len(waiting) > most:
                result = waiting.popleft().result()
                largest = max(largest, size(result))
                most = max(threads, min(MOST_WAITING, WAITING_BYTES // largest))
                yield result
                del result
        while waiting:
            yield waiting.popleft().result()
    finally:
        pool.shutdown(cancel_futures=True)


def each(
    function: Callable[[Item], Result], items: Iterable[Item], workers: int = 1
) -> Iterator[Result]:
    """Yield ``function(item)`` for every item, in their order.

    Few results wait at a time, so memory doesn't grow with the number of items. Where the caller
    stops early, the processes end after the item that they are at.

    Args:
        function: with more than one worker it must be picklable, and so must items and results.
        items: read a little ahead of the results.
        workers: processes; 1 works in this one. A script that asks for more needs the usual guard
            ``if __name__ == "__main__":``, since the processes import it.

    Raises:
        ArgumentError: fewer than one worker.
        NormscanError: a process ended on its own, mostly for want of memory.
    """
    if workers < 1:
        raise ArgumentError(f"workers is {workers}; it must be 1 or more.")
    if workers == 1:
        yield from map(function, items)
        return
    from concurrent.futures import Future, ProcessPoolExecutor
    from concurrent.futures.process import BrokenProcessPool
    from multiprocessing import get_context

    pool = ProcessPoolExecutor(workers, get_context("spawn"), initializer=_begin)
    waiting: deque[Future[Result]] = deque()
    try:
        for item in items:
            with _one_thread():  # a submission may start a process, which inherits this
                waiting.append(pool.submit(function, item))
            if len(waiting) > 2 * workers:
                yield waiting.popleft().result()
        while waiting:
            yield waiting.popleft().result()
    except BrokenProcessPool as error:
        raise NormscanError(
            "a process that prepared scans ended, mostly because memory ran out: take fewer "
            'workers. A script of your own needs `if __name__ == "__main__":` around its work.'
        ) from error
    finally:
        pool.shutdown(cancel_futures=True)


@contextmanager
def _one_thread() -> Iterator[None]:
    before = {name: os.environ.get(name) for name in THREADS}
    os.environ.update(dict.fromkeys(THREADS, "1"))
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                del os.environ[name]
            else:
                os.environ[name] = value


def _begin() -> None:
    """Let a worker die without a word on Ctrl-C, and with its parent if that is killed."""
    import signal
    import threading
    from multiprocessing import parent_process

    parent = parent_process()
    assert parent is not None

    def follow() -> None:
        parent.join()
        os._exit(1)

    signal.signal(signal.SIGINT, signal.SIG_DFL)
    threading.Thread(target=follow, daemon=True).start()


def undisturbed(read: Callable[[], Result]) -> Result:
    """Return what a reader of NumPy files returns, asked again where threads disturb each other.

    CPython counts how deep a literal is nested in a place that all threads share (seen in 3.11): two
    headers parsed at once may end in a ``SystemError``, which says nothing of their files.

    Args:
        read: may be called again.
    """
    for _ in range(AGAIN):
        with contextlib.suppress(SystemError):
            return read()
    return read()
