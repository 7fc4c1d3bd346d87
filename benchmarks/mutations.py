"""Read 10,000 files that were changed at random: python benchmarks/mutations.py.

Of each kind (pictures, volumes, DICOM, archives, tables, detectors, configurations) good files are made
and changed by a seed: flipped bytes, cuts, doubled parts, numbers at the edge of their kind, swapped
fields, also behind checksums and packing. Each must be read, or refused in one line, within 20 s of
the processor and 2 GiB beyond what Python takes. Batches run in a fork of this process under limits of
the system: what hangs or asks for more is ended, counted, and the batch goes on behind it.

Writes benchmarks/results/mutations.md. ``--only KIND SEED`` reads one file and lets its traceback
through.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import resource
import shutil
import signal
import sys
import tempfile
import time
import traceback
import warnings
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))
SECONDS, MEMORY = 20, 2 * 2**30
PATIENCE = 240  # s of the clock, for what sleeps
OUTCOMES = ("read", "one line", "long", "traceback", "memory", "hang", "crash")


def main() -> None:
    """Read all, or what the options name, and write the page."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--count", type=int, default=10_000)
    parser.add_argument("--first", type=int, default=0, help="seed of the first of each kind")
    parser.add_argument("--kinds", nargs="+", help="of the table; all by default")
    parser.add_argument("--only", nargs=2, metavar=("KIND", "SEED"))
    parser.add_argument(
        "--out", type=Path, default=Path(__file__).parent / "results" / "mutations.md"
    )
    options = parser.parse_args()
    from tests.support import mutations as M

    warnings.simplefilter("ignore")
    os.environ["NORMSCAN_CACHE"] = "off"
    with M.seeds_folder() as home, tempfile.TemporaryDirectory() as work:
        kinds = M.kinds(Path(home))
        if options.only:
            kind = kinds[options.only[0]]
            name, data = M.mutated(kind, int(options.only[1]))
            (Path(work) / name).write_bytes(data)
            print(name, len(data), data[:600])
            print(kind.read(Path(work) / name))
            return
        lines, odd = [], []
        for name in options.kinds or kinds:
            count = round(options.count * kinds[name].share)
            began, found = time.process_time() + _children(), Counter[str]()
            seeds = range(options.first, options.first + count)
            for seed, what, more in batches(kinds[name], seeds, Path(work)):
                found[what] += 1
                if what not in OUTCOMES[:2]:
                    odd.append(f"{name} {seed}: {what} {more}")
                    print(odd[-1], flush=True)
            seconds = time.process_time() + _children() - began
            lines.append([name, str(count), *(str(found[o]) for o in OUTCOMES), f"{seconds:.0f}"])
            print(" | ".join(lines[-1]), flush=True)
    write(options.out, lines, odd)


def write(out: Path, lines: list[list[str]], odd: list[str]) -> None:
    """Write the table and what is odd."""
    head = ["kind", "files", *OUTCOMES, "CPU s"]
    total = ["together", *(str(sum(int(row[i]) for row in lines)) for i in range(1, len(head)))]
    rows = [head, ["---"] * len(head), *lines, total]
    text = "# Files that were changed at random\n\n" + "\n".join(
        f"| {' | '.join(r)} |" for r in rows
    )
    text += "\n\n" + "".join(f"- {line}\n" for line in odd) if odd else "\n"
    out.write_text(f"{text}\nCommand: `{' '.join(['python', *sys.argv])}`\n", encoding="utf-8")


def batches(kind: object, seeds: range, work: Path) -> Iterator[tuple[int, str, str]]:
    """Yield seed, outcome and more of each file; a new process goes on where one was ended."""
    at = seeds.start
    while at < seeds.stop:
        reader, writer = os.pipe()
        child = os.fork()
        if not child:
            os.close(reader)
            with contextlib.suppress(BaseException):
                _batch(kind, range(at, seeds.stop), work, writer)
            os._exit(0)
        os.close(writer)
        with os.fdopen(reader, encoding="utf-8") as told:
            for line in told:
                seed, what, more = line.rstrip("\n").split("\t")
                yield int(seed), what, more
                at = int(seed) + 1
        ended = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
        if at < seeds.stop:
            hung = -ended in (signal.SIGPROF, signal.SIGALRM)
            yield at, "hang" if hung else "crash", f"ended with {ended}"
            at += 1


def _batch(kind: object, seeds: range, work: Path, writer: int) -> None:
    """Read files under limits, and tell of each in a line."""
    from tests.support import mutations as M

    silent = os.open(os.devnull, os.O_WRONLY)
    os.dup2(silent, 1)
    os.dup2(silent, 2)
    now = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (now + MEMORY, now + MEMORY))
    for seed in seeds:
        place = work / str(seed)
        shutil.rmtree(place, ignore_errors=True)  # of one that was ended
        place.mkdir()
        # The system's own handlers end the process, whatever code it is in.
        signal.setitimer(signal.ITIMER_PROF, SECONDS)
        signal.setitimer(signal.ITIMER_REAL, PATIENCE)
        try:
            what, more = M.outcome(kind, place, seed)  # type: ignore[arg-type]
        except BaseException as error:
            where = traceback.extract_tb(error.__traceback__)[-3:]
            told = "; ".join(f"{Path(f.filename).name}:{f.lineno}" for f in where)
            what, more = "traceback", f"{type(error).__name__} {str(error)[:150]!r} at {told}"
        shutil.rmtree(place, ignore_errors=True)
        more = " ".join(more.split())
        os.write(writer, f"{seed}\t{what}\t{more}\n".encode("utf-8", "replace"))


def _children() -> float:
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


if __name__ == "__main__":
    main()
