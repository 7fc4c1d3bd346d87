r"""Where the time of a prediction goes, as ratios of one run: python benchmarks/pipeline.py.

    OMP_NUM_THREADS=1 python benchmarks/pipeline.py --data ../shared/data --weights FILE.pth \
        --work WORK --name before
    python benchmarks/pipeline.py --table --work WORK

CPU seconds of one process (``time.process_time``), so that a busy machine hardly shows; wall times
stand beside them only where threads are compared. Detectors are trained for a few steps: speed alone.
The first form writes WORK/NAME.json, the second ``benchmarks/results/pipeline.md`` with every NAME
side by side; columns of other names that stand there stay. Sections: ``predict`` (ms a picture, scan
by scan, as a cohort, with threads; share in the network), ``evaluate`` (seconds, and how often each
file is opened, in ``fit`` and in ``evaluate``), ``volume`` (file to map, mask, overlay and finding
by stage), ``metrics`` (exact pixel metrics with intervals over
those without), ``imports`` (seconds) and ``growth`` (scans).
"""

from __future__ import annotations

import argparse
import inspect
import json
import os
import platform
import resource
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

for _name in ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"):
    os.environ.setdefault(_name, "1")

import numpy as np  # noqa: E402
import pandas as pd  # noqa: E402
from PIL import Image  # noqa: E402

from normscan.cohort import Cohort  # noqa: E402
from normscan.detector import Detector  # noqa: E402

RESULTS = Path(__file__).parent / "results" / "pipeline.md"
PICTURES = {"train": 40, "val": 20, "test": 60}
METHODS: dict[str, dict[str, Any]] = {
    "dae": {"steps": 5},
    "rd4ad": {"steps": 2},
    "patchcore": {},
}
VOLUME = "brain_tumor_3d/BraTS-GLI-00001-000"
GROWTH = (100, 1000)


def spent(work: Callable[[], Any]) -> dict[str, float]:
    """CPU and wall seconds of a call."""
    cpu, wall = time.process_time(), time.perf_counter()
    work()
    return {"cpu": time.process_time() - cpu, "wall": time.perf_counter() - wall}


def pictures(folder: Path, counts: dict[str, int], size: int = 240, seed: int = 0) -> Cohort:
    """Write heads of soft tissue as PNG; every second test scan has a lesion and its mask."""
    rng, rows = np.random.default_rng(seed), []
    y, x = np.mgrid[-1 : 1 : size * 1j, -1 : 1 : size * 1j]
    for split, count in counts.items():
        for n in range(count):
            (a, b), name = rng.uniform(0.6, 0.8, 2), f"{split}{n:05d}"
            head = (x / a) ** 2 + (y / b) ** 2
            image = np.where(head < 1, 120 + 60 * (head < 0.5) + rng.normal(0, 6, x.shape), 0)
            sick = split == "test" and n % 2 == 1
            mask = (x - 0.2) ** 2 + (y - rng.uniform(-0.3, 0.3)) ** 2 < 0.02
            image = np.where(mask & sick, 240, image).clip(0, 255).astype(np.uint8)
            Image.fromarray(image).save(folder / f"{name}.png")
            cell = ""
            if sick:
                cell = f"{name}_mask.png"
                Image.fromarray(mask.astype(np.uint8) * 255).save(folder / cell)
            rows.append((f"{name}.png", name, name, int(sick), cell, split))
    table = pd.DataFrame(rows, columns=["path", "scan", "subject", "label", "mask", "split"])
    return Cohort.from_table(table, folder)


@contextmanager
def in_network(detector: Detector) -> Iterator[dict[str, float]]:
    """Add up the CPU seconds that the method's maps take in their thread."""
    method, seconds = detector.method, {"network": 0.0}
    assert method is not None
    each = method.each

    def timed(batch: Any) -> Any:
        begun = time.thread_time()
        try:
            return each(batch)
        finally:
            seconds["network"] += time.thread_time() - begun

    object.__setattr__(method, "each", timed)
    try:
        yield seconds
    finally:
        object.__delattr__(method, "each")


def predict(options: argparse.Namespace) -> dict[str, Any]:
    found: dict[str, Any] = {}
    with tempfile.TemporaryDirectory() as folder:
        cohort = pictures(Path(folder), PICTURES)
        for method, arguments in METHODS.items():
            if method != "dae":
                if not options.weights:
                    continue
                arguments = {**arguments, "weights": options.weights}
            detector = Detector(method, preset="laptop", calibration="split", **arguments)
            detector.fit(cohort)
            found[method] = speeds(detector, cohort, Path(folder))
    return found


def speeds(detector: Detector, cohort: Cohort, folder: Path) -> dict[str, Any]:
    """Medians of three interleaved rounds, in ms a picture."""
    rows = list(cohort.part("test"))
    threaded = "workers" in inspect.signature(detector.predict_cohort).parameters
    ways: dict[str, Callable[[], Any]] = {
        "scan by scan": lambda: [list(detector.predict_cohort([r], force=True)) for r in rows],
        "cohort": lambda: list(detector.predict_cohort(rows, force=True)),
    }
    if threaded:
        ways["cohort"] = lambda: list(detector.predict_cohort(rows, force=True, workers=0))
        for n in (1, 2):
            ways[f"{n} threads"] = lambda n=n: list(  # type: ignore[misc]
                detector.predict_cohort(rows, force=True, workers=n)
            )
    list(detector.predict_cohort(rows[:2], force=True))
    times: dict[str, list[dict[str, float]]] = {name: [] for name in ways}
    for _ in range(3):
        for name, way in ways.items():
            with in_network(detector) as network:
                times[name].append(spent(way) | network)
    out: dict[str, Any] = {
        name: {k: 1000 * float(np.median([r[k] for r in runs])) / len(rows) for k in runs[0]}
        for name, runs in times.items()
    }
    findings = [f for _, f in detector.predict_cohort(rows[:12], details=True, force=True)]
    saved = spent(lambda: [f.save(folder / "out") for f in findings])  # type: ignore[union-attr]
    out["save"] = {"cpu": 1000 * saved["cpu"] / 12}
    return out


@contextmanager
def opens(folder: Path) -> Iterator[Counter[str]]:
    """Count how often each file below a folder is opened."""
    counts: Counter[str] = Counter()
    live = [True]

    def hook(event: str, arguments: tuple[Any, ...]) -> None:
        if live and event == "open" and str(arguments[0]).startswith(str(folder)):
            counts[Path(str(arguments[0])).name] += 1

    sys.addaudithook(hook)
    yield counts
    live.clear()


def evaluate(options: argparse.Namespace) -> dict[str, Any]:
    from normscan.evaluation import evaluate as run

    found: dict[str, Any] = {}
    with tempfile.TemporaryDirectory() as scans, tempfile.TemporaryDirectory() as out:
        cohort = pictures(Path(scans), PICTURES)
        detector = Detector("dae", preset="laptop", steps=5, calibration="split")
        with opens(Path(scans)) as counts:
            found["fit"] = spent(lambda: detector.fit(cohort, Path(out) / "run"))
        found["opened in fit"] = by_kind(counts)
        for name in ("first", "again"):
            with opens(Path(scans)) as counts:
                found[name] = spent(
                    lambda: run(detector, cohort, Path(out) / "evaluation", overwrite=True)
                )
            found[f"opened in evaluate, {name}"] = by_kind(counts)
        rows = list(cohort.part("test"))
        found["predictions"] = spent(lambda: list(detector.predict_cohort(rows, force=True)))
    return found


def by_kind(counts: Counter[str]) -> dict[str, str]:
    """Lowest and highest count of the scans of each split, and of masks."""
    kinds: dict[str, list[int]] = {"train": [], "val": [], "test": [], "mask": []}
    for split, count in PICTURES.items():
        kinds[split] = [counts[f"{split}{n:05d}.png"] for n in range(count)]
    kinds["mask"] = [n for name, n in counts.items() if name.endswith("_mask.png")] or [0]
    return {kind: f"{min(ns)}..{max(ns)}" for kind, ns in kinds.items()}


def volume(options: argparse.Namespace) -> dict[str, Any]:
    """A volume of BraTS; noisy copies of it train, so that it is of the right kind."""
    import nibabel as nib

    path = sorted((Path(options.data) / VOLUME).rglob("*t2f*.nii.gz"))[0]
    image: Any = nib.load(path)
    values, rng, runs = image.get_fdata(dtype=np.float32), np.random.default_rng(0), []
    with tempfile.TemporaryDirectory() as folder:
        copies = [f"{folder}/{n}.nii.gz" for n in range(2)]
        for copy in copies:
            noisy = np.where(values > 0, values + rng.normal(0, 1, values.shape), 0)
            nib.save(nib.Nifti1Image(noisy.astype(np.float32), image.affine), copy)
        detector = Detector("dae", preset="laptop", dims=2, steps=3, calibration="split")
        detector.fit(copies, device="cpu")
        for _ in range(3):
            with in_network(detector) as network:
                runs.append({**to_files(detector, path, Path(folder) / "out"), **network})
    return {k: float(np.median([r.get(k, 0) for r in runs])) for k in runs[0]}


def to_files(detector: Detector, path: Path, out: Path) -> dict[str, float]:
    """CPU seconds from a file to its map, mask, overlay and finding, and those of each stage."""
    stages: dict[str, float] = {}

    def whole() -> None:
        # As `normscan predict` does; before, it brought the restoration back too.
        ((_, finding),) = detector.predict_cohort(rows_of(path), force=True)
        stages.update(getattr(finding, "stages", {}))
        stages["save"] = spent(lambda: finding.save(out))["cpu"]  # type: ignore[union-attr]

    return {"cpu": spent(whole)["cpu"]} | {f"stage {k}": v for k, v in stages.items()}


def rows_of(path: Path) -> Any:
    from normscan.cli.predict import rows_of as named

    return list(named([str(path)]))


def metrics(options: argparse.Namespace) -> dict[str, Any]:
    from metrics_speed import data
    from normscan.metrics import PixelScores
    from normscan.metrics.agreement import surface_distances

    maps, masks = data(100, (256, 256))
    pixels = PixelScores()
    for i, (values, mask) in enumerate(zip(maps, masks, strict=True)):
        pixels.add(values, mask, i)
    seconds: dict[str, list[float]] = {"0 replicates": [], "1000 replicates": []}
    for _ in range(3):
        for name in seconds:
            n = int(name.split()[0])
            seconds[name].append(spent(lambda n=n: pixels.evaluate(0.5, replicates=n))["cpu"])  # type: ignore[misc]
    pair = maps[1] > 0.4, masks[1]
    first = spent(lambda: surface_distances(*pair))["cpu"]
    later = [spent(lambda: surface_distances(*pair))["cpu"] for _ in range(5)]
    return {
        **{name: float(np.median(s)) for name, s in seconds.items()},
        "surfaces, first call": first, "surfaces, later": float(np.median(later)),
    }  # fmt: skip


def imports(options: argparse.Namespace) -> dict[str, Any]:
    """CPU seconds of whole processes."""
    commands = {
        "import torch": "import torch",
        "fit of a tiny cohort": "import runpy, sys; sys.argv = ['x', '--grow', '20', 'fit']; "
        f"runpy.run_path({__file__!r}, run_name='__main__')",
    }
    found = {}
    for name, code in commands.items():
        before = resource.getrusage(resource.RUSAGE_CHILDREN)
        subprocess.run([sys.executable, "-c", code], check=True, stdout=subprocess.DEVNULL)
        after = resource.getrusage(resource.RUSAGE_CHILDREN)
        found[name] = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    return found


def growth(options: argparse.Namespace) -> dict[str, Any]:
    found = {}
    for count in options.scans:
        command = [sys.executable, __file__, "--grow", str(count), "predict"]
        text = subprocess.run(command, check=True, capture_output=True, text=True).stdout
        found[str(count)] = json.loads(text.splitlines()[-1])
    return found


def grow(count: int, what: str) -> None:
    """Fit and predict so many small pictures; print CPU seconds and peak MiB."""
    with tempfile.TemporaryDirectory() as folder:
        counts = {"train": count * 3 // 10, "val": count // 10, "test": count * 6 // 10}
        cohort = pictures(Path(folder), counts, size=64)
        detector = Detector("mean_image", size=32, calibration="split")
        found = {"fit": spent(lambda: detector.fit(cohort))["cpu"]}
        if what == "predict":
            rows = cohort.part("test")
            once = spent(lambda: [None for _ in detector.predict_cohort(rows, force=True)])
            found["predict"] = once["cpu"]
    found["peak MiB"] = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    print(json.dumps(found))


SECTIONS = {f.__name__: f for f in (predict, evaluate, volume, metrics, imports, growth)}


def table(work: Path) -> None:
    """Write every recorded run side by side, behind those that stand on the page."""
    runs = {path.stem: json.loads(path.read_text()) for path in sorted(work.glob("*.json"))}
    written = {name: run for name, run in on_page().items() if name not in runs}
    names = [*written, *sorted(runs, key=lambda name: runs[name]["about"]["when"])]
    runs |= written
    lines = [
        "# The pipeline, before and after", "",
        "Written by `python benchmarks/pipeline.py --table`; the command of each column is "
        "`OMP_NUM_THREADS=1 python benchmarks/pipeline.py --data ../shared/data --weights FILE.pth "
        "--work WORK --name NAME`. CPU is in seconds (ms a picture under `predict`), medians of three "
        "interleaved rounds; wall times depend on other work on the machine, of which there was much. "
        "`opened in ...` are the lowest and highest numbers of times that a file was opened; stages of "
        "a volume are wall seconds of threads that overlap, but for `save`. "
        f"Machine: {runs[names[-1]]['about']['machine']}.", "",
    ]  # fmt: skip
    for section in SECTIONS:
        flat = {name: dict(flatten(runs[name].get(section, {}))) for name in names}
        keys = list(dict.fromkeys(key for name in names for key in flat[name]))
        if not keys:
            continue
        lines += [
            f"## {section}",
            "",
            f"| | {' | '.join(names)} |",
            "|---" * (len(names) + 1) + "|",
        ]
        lines += [
            f"| {key} | {' | '.join(flat[name].get(key, '-') for name in names)} |" for key in keys
        ]
        lines.append("")
    RESULTS.write_text("\n".join(lines))


def on_page() -> dict[str, dict[str, dict[str, str]]]:
    """Read the runs of the page, by name and section."""
    runs: dict[str, dict[str, dict[str, str]]] = {}
    section, names = "", []
    for line in RESULTS.read_text().splitlines() if RESULTS.exists() else ():
        if line.startswith("## "):
            section, names = line[3:], []
        elif line.startswith("| "):
            first, *rest = (cell.strip() for cell in line.strip("|").split(" |"))
            if not names:
                names = rest
                continue
            for name, value in zip(names, rest, strict=True):
                if value != "-":
                    runs.setdefault(name, {}).setdefault(section, {})[first] = value
    return runs


def flatten(values: dict[str, Any], before: str = "") -> Iterator[tuple[str, str]]:
    for key, value in values.items():
        if isinstance(value, dict):
            yield from flatten(value, f"{before}{key}, ")
        else:
            yield before + key, value if isinstance(value, str) else f"{value:.3g}"
    if {"cpu", "network"} <= set(values) and "share in the network" not in values:
        yield f"{before}share in the network", f"{values['network'] / values['cpu']:.0%}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", default="../shared/data")
    parser.add_argument(
        "--weights", help="backbone of patchcore and rd4ad; they are left out without"
    )
    parser.add_argument("--work", type=Path)
    parser.add_argument("--name", default="now")
    parser.add_argument("--sections", nargs="+", default=list(SECTIONS), choices=SECTIONS)
    parser.add_argument("--scans", nargs="+", type=int, default=GROWTH)
    parser.add_argument("--table", action="store_true")
    parser.add_argument("--grow", nargs=2)
    options = parser.parse_args()
    if options.grow:
        return grow(int(options.grow[0]), options.grow[1])
    if options.table:
        return table(options.work)
    path = options.work / f"{options.name}.json"
    found = json.loads(path.read_text()) if path.exists() else {}
    for name in options.sections:
        found[name] = SECTIONS[name](options)
        print(name, json.dumps(found[name], indent=1), flush=True)
        machine = (
            f"{os.cpu_count()} cores, {platform.machine()}, Python {platform.python_version()}"
        )
        found["about"] = {"when": time.strftime("%Y-%m-%d %H:%M"), "machine": machine}
        path.write_text(json.dumps(found, indent=2) + "\n")


if __name__ == "__main__":
    main()
