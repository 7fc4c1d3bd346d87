"""The commands that look at scans and prepare them; see ``normscan.cli.commands``."""

from __future__ import annotations

import json
import shlex
import sys
from pathlib import Path
from typing import Any

from normscan.cohort import Cohort
from normscan.errors import ArgumentError
from normscan.progress import Progress


def dump(value: Any) -> str:
    """Return JSON for people and machines."""
    return json.dumps(value, indent=2)


def preprocess(
    cohort: str,
    out: str,
    preset: str | None = None,
    steps: list[str | dict[str, Any]] | None = None,
    root: str | None = None,
    workers: int = 1,
    fractions: tuple[float, float, float] = (0.7, 0.1, 0.2),
    seed: int = 0,
) -> None:
    """Take a cohort through preprocessing steps and write it as a cohort of its own.

    Args:
        cohort: table (CSV, TSV, Parquet) or folder.
        out: folder for images, masks, transforms and cohort.csv; finished scans in it are kept.
        preset: brain-mri, brain-ct, chest-xray, ...; `normscan steps` lists them.
        steps: instead of those of the preset, such as '["n4", {"resample": {"spacing": 1.0}}]'.
        root: folder of the table's relative paths.
        workers: processes.
        fractions: healthy subjects for train, val and test, where the cohort gives no split.
        seed: of the split, where none is given.
    """
    from functools import partial

    from normscan.preprocess.cohort import prepare_cohort
    from normscan.preprocess.settings import build_preprocess, expanded

    given = {"preset": preset} | ({} if steps is None else {"steps": steps})
    settings = expanded(given)
    if not settings.get("steps"):
        raise ArgumentError("name a --preset or --steps; `normscan steps` lists them.")
    chosen = build_preprocess(settings)
    table = Cohort.read(cohort, root=root, seed=seed, fractions=fractions)
    bar = Progress()
    with bar:
        track = partial(bar.track, name="prepare", total=len(table))
        done = prepare_cohort(table, chosen, Path(out), workers, track=track)
    for scan, reason in done.failures:
        print(f"{scan}: left out: {reason}", file=sys.stderr)
    for scan, note in done.notes:
        print(f"{scan}: note: {note}", file=sys.stderr)
    before = f", {done.kept} were there already" if done.kept else ""
    left = f", {len(done.failures)} left out" if done.failures else ""
    print(f"{done.written} of {len(table)} scans prepared{before}{left}")
    # The grid and scaling that belong to the preset are the detector's.
    rest = {k: v for k, v in settings.items() if k not in ("steps", "preset")}
    more = f" --preprocess {shlex.quote(json.dumps(rest))}" if rest else ""
    print(f"cohort: {done.table}\nnext: normscan fit dae --cohort {done.table} --out RUN{more}")


def steps(json: bool = False) -> None:
    """List the preprocessing steps and the presets made of them.

    Args:
        json: print JSON for machines.
    """
    import inspect

    from normscan.preprocess.chain import load_steps
    from normscan.preprocess.presets import PRESETS
    from normscan.preprocess.steps import STEPS

    load_steps()
    rows = []
    for name, found in sorted(STEPS.items()):
        parameters = list(inspect.signature(found.function).parameters.values())[1:]
        summary = (inspect.getdoc(found.function) or "").partition("\n")[0]
        rows.append({"step": name, "arguments": [p.name for p in parameters], "summary": summary})
    if json:
        print(dump({"steps": rows, "presets": PRESETS}))
        return
    print("steps")
    for row in rows:
        print(f"  {row['step']:<20}{row['summary']}")
        if row["arguments"]:
            print(f"  {'':<20}arguments: {', '.join(row['arguments'])}")
    print("\npresets")
    for name, settings in PRESETS.items():
        names = [s if isinstance(s, str) else next(iter(s)) for s in settings.get("steps", [])]
        print(f"  {name:<20}{', '.join(names)}")


def cohort(
    path: str,
    root: str | None = None,
    seed: int = 0,
    slices: str | None = None,
    axis: int = 2,
    out: str | None = None,
    json: bool = False,
) -> None:
    """Say what is in a table or folder: counts, sizes, channels, masks, copies, bad files.

    Args:
        path: table (CSV, TSV, Parquet) or folder.
        root: folder of the table's relative paths.
        seed: of the split, where none is given.
        slices: take these slices of the volumes as scans, such as 60:100 or 0:150:3.
        axis: of the file, along which slices are counted.
        out: write the table there (CSV, TSV, Parquet), with its splits.
        json: print JSON for machines.
    """
    table = Cohort.read(path, root=root, seed=seed)
    if slices is not None:
        first, last, step = _range(slices)
        table = table.slices(first, last, step, axis, Progress().track)
    if out is not None:
        print(f"cohort: {table.write(out)}", file=sys.stderr)
    summary = table.summary(Progress().track)
    print(dump(summary.to_dict()) if json else summary)


def _range(text: str) -> tuple[int, int | None, int]:
    """Read ``first:last`` or ``first:last:step`` as Python does, without negative numbers."""
    parts = text.split(":")
    if not 2 <= len(parts) <= 3 or not all(p == "" or p.isdecimal() for p in parts):
        raise ArgumentError(f"slices '{text}' is no range. Write first:last, such as 60:100.")
    first, last, step = (int(p) if p else None for p in (*parts, "")[:3])
    return first or 0, last, 1 if step is None else step


def bids(
    path: str,
    out: str,
    suffix: str | None = None,
    label: str | None = None,
    filters: dict[str, Any] | None = None,
    derivatives: str | None = None,
    space: str | None = None,
    masks: dict[str, Any] | None = None,
    fractions: tuple[float, float, float] = (0.7, 0.1, 0.2),
    seed: int = 0,
) -> None:
    """Write a BIDS data set as a cohort table.

    Args:
        path: root of the data set.
        out: table to write (CSV, TSV, Parquet).
        suffix: images, such as T1w; several, which become channels, joined by commas.
        label: column and who is healthy in it, such as 'group:control=0,patient=1'; * for others.
        filters: entities that images must have, such as '{"acq": "mprage", "ce": null}'.
        derivatives: take the images from this folder of derivatives/.
        space: space of the images.
        masks: as filters, for lesion masks.
        fractions: healthy subjects for train, val and test.
        seed: of the split.
    """
    from normscan.cohort import read_bids

    table = read_bids(
        path, suffix.split(",") if suffix else None, filters, derivatives, space, label, masks,
        seed, fractions,
    )  # fmt: skip
    print("\n".join(table.notes))
    print(f"cohort: {table.write(out)}\nnext: normscan cohort {out}")


def tiles(
    path: str,
    out: str,
    size: int = 256,
    mpp: float | None = None,
    share: float = 0.5,
    most: int | None = None,
    seed: int = 0,
    root: str | None = None,
) -> None:
    """Cut whole-slide images into tiles of tissue, written as a cohort.

    Args:
        path: a slide (SVS, NDPI, MRXS, tiled TIFF), a folder of slides, or a table of slides.
        out: folder for the tiles, the tissue masks and cohort.csv.
        size: pixels along each side of a tile.
        mpp: micrometres of a pixel, such as 0.5 (20x); by default those of the finest level.
        share: of a tile that must be tissue.
        most: tiles of a slide; more are drawn from by the seed.
        seed: of that draw.
        root: folder of the table's relative paths.
    """
    from normscan.cohort.table import TABLES
    from normscan.cohort.tiles import cut_tiles

    if size < 1 or not 0 <= share <= 1 or (mpp is not None and mpp <= 0):
        raise ArgumentError(
            f"size={size}, share={share}, mpp={mpp}: give a size of 1 or more, a share of 0 to 1 and "
            "micrometres above 0."
        )
    table = Path(path).suffix.lower() in TABLES
    slides = Cohort.read(path, root=root) if table else Path(path)
    written, notes = cut_tiles(slides, Path(out), size, mpp, share, most, seed, Progress().track)
    for note in notes:
        print(note, file=sys.stderr)
    print(f"cohort: {written}\nnext: normscan cohort {written}")
