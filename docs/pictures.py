"""Makes the pictures of the README and of the phantom from a demo: docs/pictures.py [runs/demo].

The picture of the report is a screenshot by headless Chromium, if that is installed.
"""

from __future__ import annotations

import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np
import pandas as pd
from matplotlib.figure import Figure

import normscan as ns
from normscan.phantom import PhantomConfig
from normscan.phantom.config import RETINA_KINDS
from normscan.phantom.retina import make_retina
from normscan.report.figures import display_image, map_scale, overlay_levels, overlay_table, upright

IMAGES = Path(__file__).parent / "img"
CHROMIUM = [
    "--headless",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--hide-scrollbars",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
]


def findings(demo: Path) -> None:
    """One lesioned scan of each kind: scan, restoration, map, lesion."""
    detector = ns.load(demo / "run")
    rows = {row.scan: row for row in ns.Cohort.read(demo / "cohort")}
    scans = pd.read_csv(demo / "evaluation" / "scans.csv")
    lesioned = scans[scans["label"] == 1].sort_values("score", ascending=False)
    # The median of each kind: neither the best nor the worst.
    chosen = [part.iloc[len(part) // 2] for _, part in lesioned.groupby("kind")]
    pictures = []
    for entry in chosen:
        row = rows[entry["scan"]]
        scan = row.load()
        finding = detector.predict(scan, row.load_foreground(scan))
        title = f"{entry['kind']}, p = {finding.p_value:.2f}"
        pictures.append(finding.picture(row.load_mask(scan), 1, title))
    scale = map_scale([p.map for p in pictures], detector.pixel_threshold)
    figure = Figure(figsize=(2 * len(pictures), 6.2), layout="constrained")
    axes = figure.subplots(3, len(pictures))
    for column, picture in enumerate(pictures):
        base = display_image(upright(picture.image, picture.affine))
        shown = np.asarray(upright(picture.map, picture.affine), dtype=np.float64)
        mask = upright(picture.mask, picture.affine)
        restored = display_image(upright(picture.reconstruction, picture.affine))
        for row, image in enumerate((base, restored, base)):
            axes[row, column].imshow(image, cmap="gray", vmin=0, vmax=255)
            axes[row, column].set_axis_off()
        axes[2, column].imshow(overlay_table()[overlay_levels(shown, scale)])
        axes[2, column].contour(mask, [0.5], colors="#2fd0e6", linewidths=1)
        axes[0, column].set_title(picture.title, fontsize=9)
    for row, name in enumerate(("scan", "restoration", "anomaly map")):
        axes[row, 0].text(-0.05, 0.5, name, rotation=90, va="center", ha="right", fontsize=9,
                          transform=axes[row, 0].transAxes)  # fmt: skip
    figure.savefig(IMAGES / "findings.png", dpi=110)


def retinas() -> None:
    """A healthy simulated retina and one of each kind of lesion: scan, layers, lesion."""
    config = PhantomConfig(anatomy="retina")
    figure = Figure(figsize=(8, 4.2), layout="constrained")
    axes = figure.subplots(2, 4)
    for column, kind in enumerate((None, *RETINA_KINDS)):
        retina = make_retina(config, 7, kind)
        axes[0, column].imshow(retina.image, cmap="gray", vmin=0, vmax=1.2)
        axes[0, column].set_title(kind or "healthy", fontsize=9)
        axes[1, column].imshow(retina.layers, cmap="viridis", interpolation="nearest")
        if kind:
            for row in range(2):
                axes[row, column].contour(retina.mask, [0.5], colors="#2fd0e6", linewidths=1)
        for row in range(2):
            axes[row, column].set_axis_off()
    figure.savefig(IMAGES / "retina.png", dpi=90)


def report(demo: Path) -> None:
    """Screenshot of the top of the report."""
    browser = shutil.which("chromium") or shutil.which("google-chrome")
    if browser is None:
        print("no Chromium here: report.png stays as it is")
        return
    page = (demo / "report.html").resolve().as_uri()
    with tempfile.TemporaryDirectory() as profile:
        subprocess.run(
            [browser, *CHROMIUM, f"--user-data-dir={profile}", "--window-size=1100,1900",
             f"--screenshot={IMAGES / 'report.png'}", page],
            check=True, capture_output=True, timeout=120,
        )  # fmt: skip


if __name__ == "__main__":
    demo = Path(sys.argv[1] if len(sys.argv) > 1 else "runs/demo")
    IMAGES.mkdir(exist_ok=True)
    findings(demo)
    report(demo)
    retinas()
