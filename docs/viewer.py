"""Take the picture of the viewer in ``docs/img``: simulated brains, Chromium, no hand.

python docs/viewer.py
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from tests.support import browser  # noqa: E402

from normscan.cli.main import main as normscan  # noqa: E402

PICTURE = ROOT / "docs" / "img" / "viewer.png"


def make_run(folder: Path) -> Path:
    """Simulate volumes and find what is brighter in them than in most."""
    cohort, run = folder / "cohort", folder / "simulated"
    commands = [
        [
            "phantom",
            "--out",
            cohort,
            "--healthy",
            12,
            "--lesioned",
            5,
            "--dims",
            3,
            "--spacing",
            2.5,
        ],
        ["fit", "hist_threshold_baseline", "--cohort", cohort / "cohort.csv", "--out", run],
        ["predict", run, "--cohort", cohort / "cohort.csv", "--format", "nifti,view"],
    ]
    for command in commands:
        if normscan([str(part) for part in command]):
            raise SystemExit(1)
    return run


def take(run: Path, scan: str, higher: int, profile: Path, picture: Path) -> None:
    """Open a scan in three planes and in 3D, and write the window as PNG."""
    from playwright.sync_api import sync_playwright

    with (
        sync_playwright() as playwright,
        browser.viewer(run, "--cohort", str(run.parent / "cohort" / "cohort.csv")) as address,
        browser.chromium(
            playwright, profile, *browser.DRAWN, viewport={"width": 1360, "height": 850}
        ) as context,
    ):
        page = context.new_page()
        page.goto(address)
        page.click(f"[data-scan={scan}] .cell")
        page.wait_for_selector(f"#stage[data-shown={scan}]:not([aria-busy])")
        page.keyboard.press("v")
        for _ in range(higher):
            page.keyboard.press("]")
        page.wait_for_timeout(3000)  # drawn in software
        page.screenshot(path=picture)


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--run", type=Path, help="a run that is there already")
    parser.add_argument("--scan", default="sub-015")
    parser.add_argument("--higher", type=int, default=9, help="steps that raise the threshold")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        run = options.run or make_run(Path(folder))
        take(run, options.scan, options.higher, Path(folder) / "profile", PICTURE)


if __name__ == "__main__":
    main()
