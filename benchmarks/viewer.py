"""First paint of `normscan view` on a run of many scans, in Chromium.

    python benchmarks/viewer.py --scans 2000 --rounds 5

The run is made up: scores.csv with so many lines, and a finding with its maps for one of them. The
page is opened anew each time, with an empty cache. Told are the first paint of anything (the
browser's own figure), the time until the worklist stands in the page, both since the navigation
began, how many rows the page holds, and the memory of its script.
"""

from __future__ import annotations

import argparse
import resource
import statistics
import sys
import tempfile
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import numpy as np
from tests.support import browser
from tests.support.viewer_runs import write_table

FIGURES = """() => ({
  paint: performance.getEntriesByName('first-contentful-paint')[0]?.startTime ?? NaN,
  worklist: performance.getEntriesByName('worklist')[0].startTime,
  rows: document.querySelectorAll('[data-scan]').length,
  heap: performance.memory.usedJSHeapSize / 2 ** 20,
})"""


def serve_volumes(count: int, shape: tuple[int, ...] = (240, 240, 155)) -> None:
    """Hand scans and maps of so many voxels as the server does; tell seconds and memory."""
    from normscan.io.shown import as_nifti, write_shown
    from normscan.scan import Scan
    from normscan.viewer.volumes import Volumes

    noise = np.random.default_rng(0).normal(100, 20, (1, *shape)).astype(np.float32)
    scan = Scan(noise, np.eye(4), ("image",))
    with tempfile.TemporaryDirectory() as folder:
        paths = [write_shown(Path(folder) / f"{i}.nii.gz", noise, scan) for i in range(count)]
        kept, took, memory = Volumes(), [], []
        for path in paths:
            begun = time.perf_counter()
            size = len(as_nifti(kept.read(path)))
            took.append(time.perf_counter() - begun)
            memory.append(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**10)
    print(f"{count} volumes of {shape}, {size / 2**20:.0f} MiB each as they are handed over")
    print(f"seconds   {statistics.median(took):.2f} ({min(took):.2f} to {max(took):.2f})")
    print(f"peak MiB  after each: {', '.join(f'{m:.0f}' for m in memory)}")


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--scans", type=int, default=2000)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--volumes", type=int, default=0, help="measure so many volumes instead")
    options = parser.parse_args()
    if (missing := browser.reason()) is not None:
        raise SystemExit(missing)
    from playwright.sync_api import sync_playwright

    if options.volumes:
        serve_volumes(options.volumes)
        return
    told = []
    with tempfile.TemporaryDirectory() as folder, sync_playwright() as playwright:
        run = write_table(Path(folder) / "run", options.scans)
        for number in range(options.rounds):
            profile = Path(folder) / f"profile{number}"
            with (
                browser.viewer(run) as address,
                browser.chromium(playwright, profile, viewport={"width": 1440, "height": 900}) as c,
            ):
                page = c.new_page()
                page.goto("about:blank")
                page.goto(address)
                page.wait_for_selector("[data-scan]")
                time.sleep(0.5)  # the browser tells of its paints a little later
                told.append(page.evaluate(FIGURES))
    print(f"{options.scans} scans, {options.rounds} rounds: median (lowest to highest)")
    units = {"paint": "ms", "worklist": "ms", "rows": "rows", "heap": "MiB of script"}
    for name, unit in units.items():
        values = [each[name] for each in told]
        print(
            f"{name:9} {statistics.median(values):.0f} {unit} ({min(values):.0f} to {max(values):.0f})"
        )


if __name__ == "__main__":
    main()
