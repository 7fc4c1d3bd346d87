"""Kill runs at every change of their folder, go on, and compare: python benchmarks/kills.py --work DIR.

A process is ended by SIGKILL just before it opens a file for writing, renames, removes or makes one
within its folder, event by event; the same command (``fit`` with ``--resume``) then goes on. What it
ends with must be what the run that nobody killed ended with: the same bits of weights and figures, and
the same files. One method of each kind of training, and the commands that write folders; of a
benchmark the command and, as ``worker``, the process of its first cell; of a node what scores.

Writes benchmarks/results/kills.md. Without ``--most`` every event is tried, which takes an hour or
more; a killed process is a fork, so that Python isn't started anew for each.
"""

from __future__ import annotations

import argparse
import atexit
import contextlib
import io
import json
import os
import shutil
import signal
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

TINY: dict[str, Any] = {"preset": "tiny", "size": 32, "fpr": 0.2, "gate": False}
SPLIT, CROSS = {"calibration": "split"}, {"calibration": "cross", "folds": 2}
FITS: dict[str, tuple[str, dict[str, Any]]] = {
    "single phase": ("dae", {**SPLIT, "steps": 3}),
    "staged": ("f_anogan", SPLIT),
    "adversarial": ("caae", SPLIT),
    "closed form": ("mean_image", {**SPLIT, "gate": True}),
    "memory bank": ("patchcore", SPLIT),
    "one-class": ("deep_svdd", SPLIT),
    "ensemble": ("ae_dense", {**SPLIT, "steps": 3, "wrappers": ["ensemble=2"]}),
    "cross-conformal": ("ae_dense", {**CROSS, "steps": 3, "reduction": "evidence"}),
    "auto": ("auto", CROSS),
}
COMMANDS = ("evaluate", "predict", "limits", "preprocess", "benchmark", "worker", "node")
WORKER = """
import os, sys
if "normscan.benchmark.cell" in sys.orig_argv and not os.path.exists(DIED):
    sys.path.insert(0, HERE)
    from kills import counted
    counted(FOLDER, EVENT, DIED)
"""
"""What Python reads at the start of a cell's process: it is killed once, or counts its changes."""
TIMES = (
    "seconds",
    "stages",
    "date",
    "took",
    "memory_mib",
    "memory",
)  # keys whose values no two runs share


def main() -> None:
    """Try all, or what the options name, and write the page."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--work", type=Path, required=True)
    parser.add_argument(
        "--kinds", nargs="+", default=[*FITS, *COMMANDS], choices=[*FITS, *COMMANDS]
    )
    parser.add_argument("--most", type=int, help="events of each kind, evenly taken")
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "results" / "kills.md")
    options = parser.parse_args()
    os.environ["NORMSCAN_CACHE"] = "off"
    options.work.mkdir(parents=True, exist_ok=True)
    table = write_cohort(options.work / "cohort")
    began, rows = time.monotonic(), []
    for kind in options.kinds:
        rows.append(tried(kind, table, options.work / "runs", options.most))
        print(" | ".join(rows[-1]), flush=True)
    head = ["kind", "what", "events", "killed", "the same after", "not the same"]
    lines = [head, ["---"] * len(head), *rows]
    shown = f" --most {options.most}" if options.most else ""
    text = "# Runs that are killed\n\n" + "\n".join(f"| {' | '.join(r)} |" for r in lines)
    text += f"\n\nCommand: `python benchmarks/kills.py --work DIR{shown}`, "
    options.out.write_text(f"{text}{(time.monotonic() - began) / 60:.0f} minutes.\n")


def write_cohort(folder: Path) -> Path:
    """Write pictures of noisy discs, some with a bright spot; return their table."""
    import numpy as np

    folder.mkdir(parents=True, exist_ok=True)
    rng = np.random.default_rng(0)
    lines, (y, x) = ["scan,subject,path,label,mask,split"], np.mgrid[-1:1:32j, -1:1:32j]
    for split, label, count in (("train", 0, 6), ("val", 0, 5), ("test", 0, 3), ("test", 1, 3)):
        for i in range(count):
            name, mask = f"{split}{label}{i}", ""
            image = 0.5 * (x**2 + y**2 < rng.uniform(0.4, 0.7)) + rng.normal(0, 0.02, x.shape)
            if label:
                spot = (x - 0.2) ** 2 + (y + 0.1) ** 2 < 0.03
                image, mask = np.where(spot, 1, image), f"{name}_mask.npy"
                np.save(folder / mask, spot.astype(np.uint8))
            np.save(folder / f"{name}.npy", image.astype(np.float32))
            lines.append(f"{name},{name},{name}.npy,{label},{mask},{split}")
    (folder / "cohort.csv").write_text("\n".join(lines) + "\n")
    return folder / "cohort.csv"


def tried(kind: str, table: Path, work: Path, most: int | None) -> list[str]:
    """Kill one kind of run at its events; return its row of the table."""
    shutil.rmtree(work, ignore_errors=True)
    work.mkdir(parents=True)
    run, what = prepared(kind, table, work)
    straight, count = work / "straight", work / "count"
    inner = kind == "worker"
    ended = forked(lambda: run(straight, False), straight, None, count, count if inner else None)
    if ended != 0:
        return [kind, what, "", "", "", f"the run itself ended with {ended}"]
    events = int(count.read_text())
    step = 1 if most is None else max(1, events // most)
    killed = same = 0
    odd: list[str] = []
    for event in range(0, events, step):
        out = work / f"killed{event}"
        died = work / f"died{event}"
        ended = forked(lambda o=out: run(o, False), out, event, None, died if inner else None)
        if ended != -signal.SIGKILL and not died.exists():
            continue
        killed += 1
        ended = forked(lambda o=out: run(o, o.exists()), out, None, None)
        wrong = f"ended with {ended}" if ended else difference(straight, out)
        same += not wrong
        odd += [f"{event}: {wrong}"] if wrong else []
        shutil.rmtree(out, ignore_errors=True)
    return [kind, what, str(events), str(killed), str(same), "; ".join(odd[:3])]


def prepared(kind: str, table: Path, work: Path) -> tuple[Callable[[Path, bool], Any], str]:
    """Return what to run in a folder (and whether to go on there), and its name."""
    import normscan as ns
    from normscan.cli.main import main as command
    from normscan.training.loop import Trainer

    defaults = list(Trainer.__init__.__defaults__ or ())
    Trainer.__init__.__defaults__ = (*defaults[:-1], 0.0)  # a checkpoint after every step
    cohort = ns.Cohort.read(table)
    if kind in FITS:
        method, options = FITS[kind]
        asked = ns.create(method, **{**TINY, **options})
        return lambda out, again: asked.fit(cohort, out, resume=again), method
    if kind == "node":
        return scoring(work), kind
    run = work / "run"
    if forked(
        lambda: ns.create("mean_image", **{**TINY, **SPLIT}).fit(cohort, run), run, None, None
    ):
        raise SystemExit("the detector for the commands could not be fitted.")
    scans = ["--cohort", str(table)]
    cells = ["local", "--data", f"toy={table}", "--methods", "ae_dense", "--seeds", "1"]
    arguments = {
        "evaluate": lambda out: ["evaluate", run, *scans, "--baselines", "false"],
        "predict": lambda out: ["predict", run, *scans, *(["--overwrite"] if out.exists() else [])],
        "limits": lambda out: ["limits", run, *scans, "--count", "1", "--replicates", "0"],
        "preprocess": lambda out: ["preprocess", table, "--steps", "[percentile]"],
        "benchmark": lambda out: ["benchmark", *cells, "--preset", "tiny", "--workers", "2"],
    }["benchmark" if kind == "worker" else kind]

    def begin(out: Path, again: bool) -> int:
        more = ["--retry"] if again and kind == "worker" else []
        return command([*map(str, arguments(out)), *more, "--out", str(out)])

    return begin, kind


def scoring(work: Path) -> Callable[[Path, bool], Any]:
    """Return what lets a series arrive at a node and be scored, once more after a death."""
    sys.path.insert(0, str(Path(__file__).parents[1]))
    import pydicom
    from tests.support import node as N

    from normscan.node.config import Config
    from normscan.node.receive import recover, take
    from normscan.node.score import Scorer
    from normscan.node.store import Store

    files, made = N.series(work / "sent", "patient"), N.make_detector(work / "heads")

    def begin(out: Path, again: bool) -> int:
        config = Config.read(N.write_config(work / "node", made))
        store = Store(config.model_copy(update={"folder": out}))
        store.queue.release()  # as a node does that starts
        store.clear_making()
        store.clear_incoming(0)
        recover(store)
        for path in files:
            part, data = store.incoming / path.name, pydicom.dcmread(path)
            part.write_bytes(path.read_bytes())
            take(store, part, "CALLER", data.SeriesInstanceUID, data.SOPInstanceUID)
        store.queue.db.execute("update jobs set due = 0 where stage = 'score'")
        while (job := store.queue.claim("score", "score-1-a")) is not None:
            Scorer(store).take(job)
        (job,) = store.queue.jobs()
        return 0 if (job.state, job.instances) == ("done", len(files)) else 3

    return begin


def forked(
    run: Callable[[], Any],
    folder: Path,
    event: int | None,
    count: Path | None,
    inner: Path | None = None,
) -> int:
    """Run in a process of its own; return its exit code, that of a signal negative.

    Args:
        run: what to do.
        folder: whose changes count.
        event: the process is killed before this one.
        count: file for the number of changes.
        inner: the process of the first cell is counted, or killed, instead; it writes this file.
    """
    child = os.fork()
    if child:
        return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    code = 1
    with contextlib.suppress(BaseException):
        if inner is not None:
            begin_workers(folder, event, inner)
            event = count = None
        silent = os.open(os.devnull, os.O_WRONLY)
        os.dup2(silent, 1)
        os.dup2(silent, 2)
        seen = counted(folder, event)
        code = found if isinstance(found := run(), int) else 0
        if count is not None:
            count.write_text(str(seen[0]))
    os._exit(code)


def begin_workers(folder: Path, event: int | None, note: Path) -> None:
    """Let the next process of a cell count its changes, or die before one of them."""
    place = note.with_name(f"{note.name}.site")
    place.mkdir(exist_ok=True)
    values = {"HERE": str(Path(__file__).parent), "FOLDER": str(folder), "DIED": str(note)}
    lines = [f"{name} = {value!r}" for name, value in {**values, "EVENT": event}.items()]
    (place / "sitecustomize.py").write_text("\n".join(lines) + WORKER)
    os.environ["PYTHONPATH"] = f"{place}{os.pathsep}{os.environ.get('PYTHONPATH', '')}"


def counted(folder: Path | str, event: int | None, note: str = "") -> list[int]:
    """Count the changes within a folder from now on, and die before one of them.

    Args:
        folder: whose changes count.
        event: before which to die.
        note: file for the number of changes, written at the end or before death.
    """
    seen, place = [0], str(folder)
    if note and event is None:
        atexit.register(lambda: Path(note).write_text(str(seen[0])))

    def hook(name: str, arguments: tuple[Any, ...]) -> None:
        if name == "open":
            mode, flags = arguments[1:3]
            writes = (
                flags & (os.O_WRONLY | os.O_RDWR | os.O_CREAT)
                if not mode
                else set(mode) & set("wax+")
            )
            paths = arguments[:1] if writes else ()
        elif name in ("os.rename", "os.remove", "os.mkdir", "os.rmdir", "os.chmod"):
            paths = arguments[:2]
        else:
            return
        if any(str(p).startswith(place) for p in paths if isinstance(p, str | os.PathLike)):
            if seen[0] == event:
                if note:
                    os.close(os.open(note, os.O_CREAT | os.O_WRONLY))
                os.kill(os.getpid(), signal.SIGKILL)
            seen[0] += 1

    sys.addaudithook(hook)
    return seen


def difference(straight: Path, other: Path) -> str:
    """Return the first thing that two folders don't have alike, or an empty string."""
    files = [
        {
            p.relative_to(f)
            for p in f.rglob("*")
            if p.is_file() and not p.name.startswith((".tmp-", "queue.sqlite"))
        }
        for f in (straight, other)
    ]
    if files[0] != files[1]:
        return f"files {', '.join(sorted(map(str, files[0] ^ files[1])))[:80]}"
    for name in sorted(files[0]):
        pair = [(folder / name).read_bytes() for folder in (straight, other)]
        if name.suffix in (".safetensors", ".npy", ".gz") and "checkpoint" not in name.name:
            alike = pair[0] == pair[1]
        elif name.suffix == ".dcm":
            alike = pixels_of(pair[0]) == pixels_of(pair[1])
        elif name.name in ("detector.json", "results.json", "limits.json") or (
            name.name.endswith("_finding.json")
        ):
            alike = timeless(json.loads(pair[0])) == timeless(json.loads(pair[1]))
        else:
            continue
        if not alike:
            return str(name)
    return ""


def pixels_of(content: bytes) -> tuple[str, bytes]:
    """Which object of DICOM it is, and its pixels; when it was made differs."""
    import pydicom

    data = pydicom.dcmread(io.BytesIO(content))
    return str(data.SOPInstanceUID), bytes(data.get("PixelData", data.get("FloatPixelData", b"")))


def timeless(value: Any) -> Any:
    """Return a value without what tells how long or when."""
    if isinstance(value, dict):
        return {
            k: timeless(v)
            for k, v in value.items()
            if k not in (*TIMES, "command", "out", "created")
        }
    return [timeless(v) for v in value] if isinstance(value, list) else value


if __name__ == "__main__":
    main()
