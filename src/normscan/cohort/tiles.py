"""Slides as a cohort of tiles: pictures of tissue, and a table of where they were cut."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from normscan.cohort.table import normalise, write_table
from normscan.errors import CohortError, ScanError
from normscan.io.atomic import atomic_path, check_folder
from normscan.io.slides import EXTENSIONS, Slide, open_slide, tissue

if TYPE_CHECKING:
    from normscan.cohort.cohort import Cohort

Progress = Callable[[Iterable[Any], str], Iterable[Any]]


def cut_tiles(
    slides: Cohort | Path,
    out: Path,
    size: int = 256,
    mpp: float | None = None,
    share: float = 0.5,
    most: int | None = None,
    seed: int = 0,
    progress: Progress | None = None,
) -> tuple[Path, list[str]]:
    """Cut slides into tiles of tissue and write them as a cohort.

    Tiles lie side by side, from the upper left corner of the slide. ``out`` receives
    ``tiles/<slide>/<x>_<y>.png``, ``tissue/<slide>.png`` (the mask) and ``cohort.csv``, with the
    columns of the slide's row and ``slide``, ``x``, ``y`` and ``side`` (pixels of the finest level),
    ``mpp`` (micrometres of a pixel of the tile) and ``tissue`` (its share). Tiles of healthy slides
    are healthy; those of anomalous ones have no label, since nobody knows where the lesion is.

    Args:
        slides: a cohort whose paths are slides, a slide, or a folder of slides.
        out: folder to write to.
        size: pixels along each side of a tile.
        mpp: micrometres of a pixel; None for those of the finest level.
        share: of a tile that must be tissue.
        most: tiles of a slide; more are drawn from by the seed.
        seed: of that draw.
        progress: wraps the slides and a description, for a progress bar.

    Returns:
        The table, and notes of what was left out.

    Raises:
        CohortError: no slides, or none of them gave a tile.
        OutputError: the folder can't be written.
    """
    import pandas as pd

    check_folder(out)
    found = list(_rows(slides))
    made: list[dict[str, Any]] = []
    notes: list[str] = []
    for path, cells in progress(found, "cutting slides") if progress else found:
        try:
            with open_slide(path) as slide:
                rows = list(_tiles(slide, cells["slide"], out, size, mpp, share, most, seed))
        except ScanError as error:
            notes.append(f"Left out: {error}")
            continue
        made += [{**cells, **row} for row in rows]
    if not made:
        raise CohortError(f"none of the {len(found)} slides gave a tile. {notes[0]}")
    table = normalise(pd.DataFrame(made).fillna(""), "The tiles")
    return write_table(table, out, out / "cohort.csv"), notes


def _rows(slides: Cohort | Path) -> Iterator[tuple[Path, dict[str, Any]]]:
    """Yield the slides with what their tiles inherit; their names are unique."""
    if isinstance(slides, Path):
        paths = [slides]
        if slides.is_dir():
            paths = sorted(p for p in slides.rglob("*") if p.suffix.lower() in EXTENSIONS)
        if not paths:
            raise CohortError(f"{slides}: holds no slides ({', '.join(EXTENSIONS)}).")
        names = [p.stem for p in paths]
        if len(set(names)) < len(names):
            names = [
                re.sub(r"[/\\]", "_", str(p.relative_to(slides).with_suffix(""))) for p in paths
            ]
        for path, name in zip(paths, names, strict=True):
            yield path, {"slide": name, "subject": name, "label": ""}
        return
    for row in slides:
        free = {k: v for k, v in row.columns.items() if k not in ("x", "y", "side", "mpp")}
        yield row.paths[0], {
            **free, "slide": row.scan, "subject": row.subject, "split": row.split,
            "site": row.site, "label": "0" if row.label == 0 else "",
        }  # fmt: skip


def _tiles(
    slide: Slide,
    name: str,
    out: Path,
    size: int,
    mpp: float | None,
    share: float,
    most: int | None,
    seed: int,
) -> Iterator[dict[str, Any]]:
    """Cut one slide; yield the rows of its tiles."""
    from PIL import Image

    side = size
    if mpp is not None:
        if slide.mpp is None:
            raise ScanError(
                f"{slide.path}: doesn't say how large its pixels are. Leave out the micrometres per "
                "pixel (mpp), which takes its finest level as it is."
            )
        side = round(size * mpp / slide.mpp)
        if side < size:
            raise ScanError(
                f"{slide.path}: its pixels are {slide.mpp:g} micrometres large, coarser than the "
                f"{mpp:g} asked for. Ask for {slide.mpp:g} or more."
            )
    picture, step = slide.overview()
    mask = tissue(picture)
    places = _places(mask, step, slide.size, side, share)
    if not places:
        raise ScanError(f"{slide.path}: no tile of {side} pixels is {share:.0%} tissue.")
    if most is not None and len(places) > most:
        kept = np.random.default_rng(seed).choice(len(places), most, replace=False)
        places = [places[i] for i in sorted(kept)]
    _save(out / "tissue" / f"{name}.png", Image.fromarray(mask.astype(np.uint8) * 255))
    for x, y, covered in places:
        path = out / "tiles" / name / f"{x}_{y}.png"
        _save(path, Image.fromarray(slide.square(x, y, side, size)))
        yield {
            "path": path.relative_to(out).as_posix(),
            "x": x,
            "y": y,
            "side": side,
            "mpp": "" if slide.mpp is None else round(slide.mpp * side / size, 6),
            "tissue": round(covered, 4),
        }


def _places(
    mask: np.ndarray, step: int, size: tuple[int, ...], side: int, share: float
) -> list[tuple[int, int, float]]:
    """Return left, top and share of tissue of the tiles that have enough of it."""
    found = []
    for y in range(0, size[1] - side + 1, side):
        for x in range(0, size[0] - side + 1, side):
            rows = slice(y // step, max(y // step + 1, (y + side) // step))
            columns = slice(x // step, max(x // step + 1, (x + side) // step))
            covered = float(mask[rows, columns].mean())
            if covered >= share:
                found.append((x, y, covered))
    return found


def _save(path: Path, image: Any) -> None:
    with atomic_path(path) as temporary:
        image.save(temporary)
