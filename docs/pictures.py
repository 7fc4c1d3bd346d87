"""Makes the pictures of the README and of the phantom from a demo: docs/pictures.py [runs/demo].

The picture of the report is a screenshot by headless Chromium, if that is installed.
"""

from __future__ import annotations

import shutil
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.figure import Figure

import normscan as ns
from normscan.display import window
from normscan.phantom import PhantomConfig
from normscan.phantom.config import RETINA_KINDS
from normscan.phantom.retina import make_retina
from normscan.report.figures import display_image, map_scale, overlay_levels, overlay_table, upright
from normscan.report.picture import Picture

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


def grid(
    pictures: Sequence[Picture],
    threshold: float | None,
    above: Mapping[str, Sequence[Any]] = {},
    letters: int = 9,
) -> Figure:
    """Scans side by side; below each its restoration, if there is one, and the map over it.

    Args:
        pictures: one a column.
        threshold: of pixels, which the colours of the maps hang on.
        above: further rows by name, images of their own in 0..1, that come first.
        letters: points of the text.
    """
    scale = map_scale([p.map for p in pictures], threshold)
    restored = all(p.reconstruction is not None for p in pictures)
    names = [*above, "scan", *(["restoration"] if restored else []), "anomaly map"]
    figure = Figure(figsize=(2 * len(pictures), 2.07 * len(names)), layout="constrained")
    axes = dict(zip(names, figure.subplots(len(names), len(pictures), squeeze=False), strict=True))
    for row, images in above.items():
        for axis, image in zip(axes[row], images, strict=False):
            axis.imshow(image, cmap="gray", vmin=0, vmax=1)
    for column, picture in enumerate(pictures):
        image = upright(picture.image, picture.affine)
        limits = window(image)
        base = display_image(image, limits)
        shown = np.asarray(upright(picture.map, picture.affine), dtype=np.float64)
        for row in ("scan", "anomaly map"):
            axes[row][column].imshow(base, cmap="gray", vmin=0, vmax=255)
        if restored:
            image = display_image(upright(picture.reconstruction, picture.affine), limits)
            axes["restoration"][column].imshow(image, cmap="gray", vmin=0, vmax=255)
        axes["anomaly map"][column].imshow(overlay_table()[overlay_levels(shown, scale)])
        if picture.mask is not None and picture.mask.any():
            mask = upright(picture.mask, picture.affine)
            axes["anomaly map"][column].contour(mask, [0.5], colors="#2fd0e6", linewidths=1)
        axes["scan"][column].set_title(picture.title, fontsize=letters)
    for name, row in axes.items():
        for axis in row:
            axis.set_axis_off()
        row[0].text(-0.05, 0.5, name, rotation=90, va="center", ha="right", fontsize=letters,
                    transform=row[0].transAxes)  # fmt: skip
    return figure


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
    figure = grid(pictures, detector.pixel_threshold)
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
