"""Commands under conditions that go wrong, and what they say: python benchmarks/faults.py --work DIR.

Disk full at 20 sizes, read-only folders (as nobody, since root ignores rights), no home, a working
directory that is gone, a clock that goes backwards, little memory, closed outputs, the C locale, odd
names. Each is a command of its own; a traceback, a hang or an exit code by a signal is a fault. Writes
benchmarks/results/faults.md.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import shutil
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from kills import write_cohort

HERE = Path(__file__).parent
SECONDS = 300  # for a command, on a busy machine
SIZES = (0, 100, 300, 700, 1500, 3000, 5000, 8000, 12000, 17000, 23000, 30000, 40000, 55000, 75000,
         100_000, 140_000, 200_000, 400_000, 1_000_000)  # fmt: skip
MEMORIES = (20, 50, 100, 200, 400, 800, 1600)  # MiB, from the start of Python on
NAMES = ("a b", "x" * 240, "tab\there", "line\nbreak", "\x1b[31mred", "=1+1", "a=b", "*", "?", "a,b", "%41",
         "<script>", "ümlaut", "'quoted'", '"q"', "a#slice=3", "-rf", os.fsdecode(b"\xff\xfe"),
         ".hidden", "con")  # fmt: skip
CLOCK = """
import time, itertools
real, step = time.time, itertools.count()
time.time = lambda: 2e9 - 3600 * next(step)
from normscan.cli.main import main
import sys
sys.exit(main(sys.argv[1:]))
"""
FIT = ["--preset", "tiny", "--size", "32", "--steps", "3", "--calibration", "split", "--fpr", "0.2"]
Row = tuple[str, str, str]


class Place:
    """A cohort, a detector and a folder to write to."""

    def __init__(self, work: Path) -> None:
        self.work = work
        self.table = write_cohort(work / "cohort")
        self.run, self.out = work / "run", work / "out"
        if not self.run.exists():
            command(["fit", "ae_dense", "--cohort", self.table, "--out", self.run, *FIT])

    def fresh(self) -> Path:
        """Return the folder to write to, empty."""
        shutil.rmtree(self.out, ignore_errors=True)
        return self.out

    def fit(self) -> list[Any]:
        return ["fit", "ae_dense", "--cohort", self.table, "--out", self.fresh(), *FIT]

    def predict(self) -> list[Any]:
        return ["predict", self.run, "--cohort", self.table, "--out", self.fresh()]

    def evaluate(self) -> list[Any]:
        scored = ["evaluate", self.run, "--cohort", self.table, "--baselines", "false"]
        return [*scored, "--out", self.fresh()]


def command(
    arguments: list[Any], *, prefix: tuple[str, ...] = (), before: Callable[[], None] | None = None,
    code: str = "", **more: Any,
) -> str:  # fmt: skip
    """Run a command; return how it ended, in a few words."""
    run = ["-c", code] if code else ["-m", "normscan.cli.main"]
    if not code:
        run = ["-c", "import sys; from normscan.cli.main import main; sys.exit(main(sys.argv[1:]))"]
    more.setdefault("stdout", subprocess.PIPE)
    more.setdefault("stderr", subprocess.PIPE)
    process = subprocess.Popen(
        [*prefix, sys.executable, *run, *map(str, arguments)],
        preexec_fn=before, start_new_session=True, **more,
    )  # fmt: skip
    try:
        _, err = process.communicate(timeout=SECONDS)
    except subprocess.TimeoutExpired:
        os.killpg(process.pid, signal.SIGKILL)
        process.communicate()
        return "HANG"
    said = (err or b"").decode("utf-8", "replace")
    if "Traceback" in said:
        return f"TRACEBACK {said.strip().splitlines()[-1][:150]}"
    if process.returncode not in (0, 1, 2):
        return f"SIGNAL {process.returncode} {said.strip()[-150:]!r}"
    last = said.strip().splitlines()[-1][:160] if said.strip() else ""
    return f"exit {process.returncode}" + (f": {last}" if process.returncode else "")


def limited(kind: int, size: int) -> Callable[[], None]:
    """Return what sets a limit of the system for a command."""

    def before() -> None:
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(kind, (size, size))

    return before


def full(place: Place) -> Iterator[Row]:
    """No file may grow beyond a size."""
    for size in SIZES:
        for name in ("fit", "evaluate"):
            asked = getattr(place, name)()
            yield (
                f"disk full at {size} bytes",
                name,
                command(asked, before=limited(resource.RLIMIT_FSIZE, size)),
            )


def memory(place: Place) -> Iterator[Row]:
    """So much address space, before anything is imported."""
    for mib in MEMORIES:
        yield (
            f"{mib} MiB of address space",
            "predict",
            command(place.predict(), before=limited(resource.RLIMIT_AS, mib * 2**20)),
        )
    for mib in MEMORIES:
        code = (
            "import resource, sys, torch, normscan.detector.storage, normscan.training.loop\n"
            "now = int(open('/proc/self/statm').read().split()[0]) * 4096\n"
            f"resource.setrlimit(resource.RLIMIT_AS, (now + {mib} * 2**20,) * 2)\n"
            "from normscan.cli.main import main\nsys.exit(main(sys.argv[1:]))"
        )
        yield f"{mib} MiB beyond the imports", "fit", command(place.fit(), code=code)


def rights(place: Place) -> Iterator[Row]:
    """As nobody: nothing of it may be written."""
    nobody = ("setpriv", "--reuid", "65534", "--regid", "65534", "--clear-groups")
    if shutil.which("setpriv") is None or os.getuid():
        yield "read-only folder", "", "not tried: needs root and setpriv"
        return
    for path in (place.work, *place.work.rglob("*")):
        path.chmod(0o755 if path.is_dir() else 0o644)
    elsewhere = {**os.environ, "HOME": "/nonexistent", "TMPDIR": "/tmp"}
    for name in ("fit", "predict", "evaluate"):
        asked = getattr(place, name)()
        yield "read-only parent folder", name, command(asked, prefix=nobody, env=elsewhere)
        place.out.mkdir(exist_ok=True)
        yield "read-only folder", name, command(asked, prefix=nobody, env=elsewhere)
    place.out.chmod(0o777)
    yield (
        "read-only cohort and detector",
        "predict",
        command(
            ["predict", place.run, "--cohort", place.table, "--out", place.out],
            prefix=nobody,
            env=elsewhere,
        ),
    )
    place.table.chmod(0o000)
    yield "cohort that can't be read", "predict", command(
        ["predict", place.run, "--cohort", place.table, "--out", place.out / "b"],
        prefix=nobody, env=elsewhere,
    )  # fmt: skip
    place.table.chmod(0o644)


def surroundings(place: Place) -> Iterator[Row]:
    """No home, no place for temporary files, a directory that is gone, clocks, locales, outputs."""
    bare = {"PATH": os.environ["PATH"], "PYTHONPATH": os.environ.get("PYTHONPATH", "")}
    yield "no HOME and nothing else in the environment", "fit", command(place.fit(), env=bare)
    lost = {**os.environ, "HOME": "/nonexistent", "XDG_CACHE_HOME": "/dev/null/x"}
    yield "HOME that isn't there", "predict", command(place.predict(), env=lost)
    yield (
        "TMPDIR that isn't there",
        "fit",
        command(place.fit(), env={**os.environ, "TMPDIR": "/nonexistent"}),
    )
    gone = place.work / "gone"
    for name in ("fit", "evaluate"):
        gone.mkdir(exist_ok=True)
        asked = getattr(place, name)()
        yield (
            "working directory removed",
            name,
            command(
                asked, prefix=("sh", "-c", f'cd "{gone}" && rmdir "{gone}" && exec "$@"', "sh")
            ),
        )
    yield (
        "relative paths, working directory removed",
        "predict",
        command(
            ["predict", "run", "a.npy", "--out", "out"],
            prefix=(
                "sh",
                "-c",
                f'mkdir "{gone}"; cd "{gone}" && rmdir "{gone}" && exec "$@"',
                "sh",
            ),
        ),
    )
    for name in ("fit", "evaluate"):
        yield "clock an hour back at each look", name, command(getattr(place, name)(), code=CLOCK)
    if shutil.which("faketime"):
        yield (
            "clock in 1971",
            "fit",
            command(place.fit(), prefix=("faketime", "1971-01-01 00:00:00")),
        )
    for locale in (
        {"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"},
        {"LC_ALL": "xx_YY"},
    ):
        yield (
            f"locale {locale['LC_ALL']}",
            "evaluate",
            command(place.evaluate(), env={**os.environ, **locale}),
        )
    for name, shut in (("output", ">&-"), ("error", "2>&-"), ("output and error", ">&- 2>&-")):
        yield (
            f"standard {name} closed",
            "predict",
            command(place.predict(), prefix=("sh", "-c", f'exec "$@" {shut}', "sh")),
        )
    with Path("/dev/full").open("wb") as nowhere:
        yield "standard output full", "predict", command(place.predict(), stdout=nowhere)


def names(place: Place) -> Iterator[Row]:
    """A folder of pictures of odd names."""
    import numpy as np

    folder = place.work / "names"
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir()
    source = place.work / "cohort" / "test00.npy"
    for name in NAMES:
        shutil.copy(source, folder / f"{name}.npy")
    assert np.load(source).ndim == 2
    yield (
        f"{len(NAMES)} odd names in a folder",
        "predict",
        command(["predict", place.run, folder, "--out", place.fresh()]),
    )
    for name in NAMES[:3] + NAMES[-4:]:
        path = folder / f"{name}.npy"
        asked = ["predict", place.run, f"./{path.name}", "--out", place.fresh()]
        yield f"{path.name!r} alone", "predict", command(asked, cwd=folder)


KINDS: dict[str, Callable[[Place], Iterator[Row]]] = {
    "full": full, "memory": memory, "rights": rights, "surroundings": surroundings, "names": names,
}  # fmt: skip


def main() -> None:
    """Try all, or what the options name, and write the page."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--work", type=Path, required=True)
    parser.add_argument("--kinds", nargs="+", default=list(KINDS), choices=list(KINDS))
    parser.add_argument("--out", type=Path, default=HERE / "results" / "faults.md")
    options = parser.parse_args()
    os.environ["NORMSCAN_CACHE"] = "off"
    os.environ["NORMSCAN_SECRET"] = str(options.work.resolve() / "secret")
    options.work.mkdir(parents=True, exist_ok=True)
    place, began = Place(options.work.resolve()), time.monotonic()
    rows = []
    for kind in options.kinds:
        for row in KINDS[kind](place):
            rows.append(row)
            print(json.dumps(row), flush=True)
    lines = [("fault", "command", "outcome"), ("---",) * 3, *rows]
    told = (
        " | ".join(str(c).replace(str(place.work), "").replace("|", "\\|") for c in r)
        for r in lines
    )
    ends = Counter(row[2].split()[0] + " " + row[2].split()[1][:1] for row in rows if row[2])
    text = "# Faults\n\n" + "\n".join(f"| {line} |" for line in told)
    text += (
        f"\n\n{len(rows)} commands: {dict(ends)}. Command: `{' '.join(['python', *sys.argv])}`, "
    )
    options.out.write_text(
        f"{text}{(time.monotonic() - began) / 60:.0f} minutes.\n", encoding="utf-8"
    )


if __name__ == "__main__":
    main()
