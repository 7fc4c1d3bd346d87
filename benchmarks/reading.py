"""Reading and preparing slices of 16-bit volumes: python benchmarks/reading.py.

Writes benchmarks/results/reading.json and .md: slices a second read from compressed volumes and
through the memory-mapped cache, prepared on 1 and 2 workers, and the peak memory of a process that
opens a cohort of 100, 1,000 and 10,000 slices and reads every one. The volumes are made in a
temporary folder: smooth anatomy-like fields with noise, 192 x 192 x 160, int16.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

SHAPE = (192, 192, 160)
DISTINCT = 4
COUNTS = (100, 1000, 10000)
RESULTS = Path(__file__).parent / "results"


def make(folder: Path, volumes: int) -> None:
    """Write volumes; beyond the distinct ones they are hard links, which the cache can't tell."""
    import nibabel as nib
    import numpy as np
    from scipy.ndimage import zoom

    rng = np.random.default_rng(0)
    for n in range(volumes):
        path = folder / f"volume{n:03d}.nii.gz"
        if n >= DISTINCT:
            os.link(folder / f"volume{n % DISTINCT:03d}.nii.gz", path)
            continue
        field = zoom(rng.random((6, 6, 5)), [s / c for s, c in zip(SHAPE, (6, 6, 5), strict=True)])
        values = (2000 * field + rng.normal(0, 30, SHAPE)).clip(0).astype(np.int16)
        nib.Nifti1Image(values, np.eye(4)).to_filename(path)


def table(folder: Path, slices: int) -> Path:
    """Write a cohort of that many slices, spread over all volumes of the folder."""
    import pandas as pd

    paths = sorted(p.name for p in folder.glob("*.nii.gz"))
    each = -(-slices // len(paths))
    first = (SHAPE[2] - each) // 2
    rows = [
        {"path": f"{p}#slice={first + k}", "subject": p, "label": 0}
        for p in paths
        for k in range(each)
    ][:slices]
    path = folder / f"slices{slices}.csv"
    pd.DataFrame(rows).to_csv(path, index=False)
    return path


def memory() -> dict[str, float]:
    """Private (anonymous) memory and the peak of all resident memory of this process, in MiB."""
    import resource

    status = Path("/proc/self/status").read_text()
    private = next(line for line in status.splitlines() if line.startswith("RssAnon"))
    return {
        "private_mib": int(private.split()[1]) / 1024,
        "peak_mib": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024,
    }


def walk(path: str) -> dict[str, float]:
    """Open a cohort and read every slice of it."""
    import normscan as ns

    ns.Scan.from_array  # noqa: B018  loads numpy before the first figure
    cohort = ns.Cohort.read(path)
    opened = memory()
    begun, n = time.perf_counter(), 0
    for row in cohort:
        row.load()
        n += 1
    seconds = time.perf_counter() - begun
    return {"slices": n, "seconds": seconds, "opened_mib": opened["private_mib"], **memory()}


def whole(path: str) -> dict[str, float]:
    """Read slices as without the cache: the whole compressed volume for each."""
    import normscan as ns

    cohort = ns.Cohort.read(path)
    rows = list(cohort)[:: max(1, len(cohort) // 8)][:8]
    begun = time.perf_counter()
    for row in rows:
        file, _, k = str(row.paths[0]).partition("#slice=")
        ns.read(file).data[..., int(k)].copy()
    return {"slices": len(rows), "seconds": time.perf_counter() - begun, **memory()}


def prepare(path: str, workers: int) -> dict[str, float]:
    """Prepare every slice as training does: 128 px, scaled."""
    import functools

    import normscan as ns
    from normscan.preprocess import Preprocess
    from normscan.training.data import PreparedSet

    cohort = ns.Cohort.read(path)
    preprocess = Preprocess(size=128)
    with tempfile.TemporaryDirectory() as folder:
        begun = time.perf_counter()
        made = PreparedSet.create(
            Path(folder) / "cache",
            cohort,
            functools.partial(_prepare, preprocess),
            _whole,
            workers=workers,
        )
        seconds = time.perf_counter() - begun
        return {"slices": len(made), "seconds": seconds, **memory()}


def _prepare(preprocess, row):
    return preprocess(row.load(), 2)


def _whole(prepared):
    return False


JOBS = {"walk": walk, "whole": whole, "prepare": prepare}


def job(name: str, *arguments: object) -> dict[str, float]:
    """Run a job in a process of its own, so that its peak of memory is its own."""
    command = [sys.executable, __file__, "--job", json.dumps([name, *arguments])]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, check=True, capture_output=True, text=True, env=environment)
    return json.loads(done.stdout.splitlines()[-1])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--job", help="for the script itself")
    chosen = parser.parse_args().job
    if chosen:
        name, *arguments = json.loads(chosen)
        print(json.dumps(JOBS[name](*arguments)))
        return
    figures: dict[str, dict[str, float]] = {}
    with tempfile.TemporaryDirectory(prefix="normscan-reading-") as temporary:
        folder = Path(temporary)
        os.environ["NORMSCAN_CACHE"] = str(folder / "cache")
        make(folder, 64)
        tables = {n: str(table(folder, n)) for n in COUNTS}
        figures["whole volume for each slice"] = job("whole", tables[1000])
        figures["first pass, 1000 slices of 64 volumes"] = job("walk", tables[1000])
        for n in COUNTS:
            figures[f"mapped, {n} slices"] = job("walk", tables[n])
        for workers in (1, 2):
            figures[f"prepare 1000, {workers} workers"] = job("prepare", tables[1000], workers)
    lines = [
        "# Reading slices of 16-bit volumes",
        "",
        f"`python benchmarks/reading.py`, volumes of {' x '.join(map(str, SHAPE))} int16, "
        "`.nii.gz`. Private memory is what the process itself holds; the peak also counts pages of "
        "mapped files, which the system takes back when it needs them.",
        "",
        "| job | slices | slices/s | private memory before (MiB) | after (MiB) | peak (MiB) |",
        "|---|---|---|---|---|---|",
    ]
    for name, f in figures.items():
        opened = f"{f['opened_mib']:.0f}" if "opened_mib" in f else ""
        lines.append(
            f"| {name} | {f['slices']} | {f['slices'] / f['seconds']:.1f} | {opened} | "
            f"{f['private_mib']:.0f} | {f['peak_mib']:.0f} |"
        )
    text = "\n".join(lines) + "\n"
    (RESULTS / "reading.md").write_text(text)
    (RESULTS / "reading.json").write_text(
        json.dumps({"command": "python benchmarks/reading.py", "figures": figures}, indent=2) + "\n"
    )
    print(text)


if __name__ == "__main__":
    main()
