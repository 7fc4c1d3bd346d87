"""First paint of `normscan view` on a run of many scans, in Chromium.

    python benchmarks/viewer.py --scans 2000 --rounds 5

The run is made up: scores.csv with so many lines, and a finding with its maps for one of them. The
page is opened anew each time, with an empty cache. Told are the first paint of anything (the
browser's own figure), the time until the worklist stands in the page, both since the navigation
began, how many rows the page holds, and the memory of its script.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import tempfile
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from tests.support import browser
from tests.support.viewer_runs import write_table

FIGURES = """() => ({
  paint: performance.getEntriesByName('first-contentful-paint')[0]?.startTime ?? NaN,
  worklist: performance.getEntriesByName('worklist')[0].startTime,
  rows: document.querySelectorAll('[data-scan]').length,
  heap: performance.memory.usedJSHeapSize / 2 ** 20,
})"""


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--scans", type=int, default=2000)
    parser.add_argument("--rounds", type=int, default=5)
    options = parser.parse_args()
    if (missing := browser.reason()) is not None:
        raise SystemExit(missing)
    from playwright.sync_api import sync_playwright

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
