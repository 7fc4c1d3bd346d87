"""The commands that put scores to the test; see ``normscan.cli.commands``."""

from __future__ import annotations

import sys
from functools import partial
from pathlib import Path

from normscan.cli.spelling import command_line
from normscan.cohort import Cohort
from normscan.errors import ArgumentError
from normscan.progress import Progress

# The article's radius and blur are in pixels of images of this size.
ARTICLE_SIZE = 256


def pitfalls(
    cohort: str,
    out: str,
    run: str | None = None,
    root: str | None = None,
    split: str = "test",
    size: int = ARTICLE_SIZE,
    images: int = 30,
    radius: float = 20.0,
    intensities: int = 51,
    blurs: int = 51,
    largest_blur: float = 5.0,
    seed: int = 0,
    device: str = "auto",
) -> None:
    """Plant disks into healthy images: which intensities and textures can the residual find at all?

    Args:
        cohort: table (CSV, TSV, Parquet) or folder with healthy scans.
        out: folder for pitfalls.json, .md and .png.
        run: run folder of a detector, whose restorations are tried beside blurred images.
        root: folder of the table's relative paths.
        split: part of the cohort.
        size: pixels along each axis; with a run, the detector's.
        images: number of healthy images.
        radius: of the disks in pixels of an image of 256.
        intensities: number of intensities from 0 to 1.
        blurs: number of blurs from 0 up.
        largest_blur: standard deviation in pixels of an image of 256.
        seed: of places and shuffles.
        device: auto, cpu or cuda.
    """
    import numpy as np

    from normscan.detector import load, storage
    from normscan.diagnostics import equalized, residual_landscape
    from normscan.diagnostics.images import healthy_images, restoring
    from normscan.diagnostics.page import write
    from normscan.io.atomic import check_folder

    for name, value in (("images", images), ("intensities", intensities), ("blurs", blurs)):
        if value < 1:
            raise ArgumentError(f"{name} is {value}; it must be 1 or more.")
    if not largest_blur >= 0:
        raise ArgumentError(f"largest_blur is {largest_blur:g}; it must be 0 or more.")
    folder = Path(out)
    check_folder(folder)
    detector = None if run is None else load(run, device)
    restore = None if detector is None else restoring(detector)
    if detector is None:
        table = Cohort.read(cohort, root=root, seed=seed)
    else:
        table = detector.read_cohort(cohort, root)
    with Progress() as bar:
        x, inside, failures = healthy_images(
            table.part(split), images, size, detector, partial(bar.track, name="prepare")
        )
        scale = x.shape[1] / ARTICLE_SIZE
        measure = partial(
            residual_landscape,
            foregrounds=inside,
            intensities=np.linspace(0, 1, intensities),
            blurs=np.linspace(0, largest_blur * scale, blurs),
            radius=radius * scale,
            seed=seed,
        )
        track = partial(bar.track, total=len(x))
        landscapes = {
            "scaled": measure(x, restore=restore, track=partial(track, name="scaled")),
            "equalised": measure(equalized(x, inside), track=partial(track, name="equalised")),
        }
    for failure in failures:
        print(f"left out: {failure}", file=sys.stderr)
    text = (
        f"Disks with a radius of {radius * scale:.3g} pixels in {len(x)} healthy images of "
        f"{x.shape[1]} pixels ({Path(cohort).stem}, split {split}). The residual is that of the "
        "image with its disk from a blurred image without it. Mean average precision over images."
    )
    about = {
        "command": command_line(),
        "text": text,
        "method": None if detector is None else detector.card.id,
        "seed": seed,
        "radius": radius * scale,
        "failures": failures,
        "versions": storage.versions(),
    }
    write(folder, landscapes, about)
    plain = landscapes["scaled"]
    k = int(np.abs(plain.blurs - scale).argmin())
    healthy, other = (plain.disks[where, k] for where in (plain.inside(), ~plain.inside()))
    for name, values in (("healthy tissue", healthy), ("neither", other)):
        if values.size:
            print(
                f"disks as bright as {name}: AP {values.mean():.3f} at a blur of {plain.blurs[k]:.2g}"
            )
    print(f"results: {folder / 'pitfalls.md'}\npicture: {folder / 'pitfalls.png'}")
