"""The same function on many items, in processes of one thread each; the order stays."""

from __future__ import annotations

import os
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
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
