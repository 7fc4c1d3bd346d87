"""DICOM series as scans: pixels onto a regular grid, with the true place of every plane."""

from __future__ import annotations

import hashlib
import math
import os
import warnings
from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from normscan.errors import ScanError
from normscan.io.burnt import text_rows
from normscan.io.dicom.geometry import lay_out
from normscan.io.dicom.grouping import SeriesInfo, choose, find_series
from normscan.io.dicom.header import bare, clean
from normscan.io.dicom.instance import Plane
from normscan.io.dicom.pixels import Picture, Pixels, window
from normscan.io.dicom.source import PathLike, parsing, read_whole
from normscan.io.dicom.values import Groups
from normscan.io.files import Header, check_size
from normscan.io.memory import check_memory
from normscan.scan import RASTER_AFFINE, Scan
from normscan.series import LPS_TO_RAS, Layout, Series, from_planes

# Whose makers write on their pictures.
WRITTEN_ON = ("US", "IVUS", "ES", "XC", "OP", "GM", "RF", "XA", "SC", "OT")
AIR = -1000.0  # Hounsfield units


def read_dicom(
    path: PathLike | Sequence[PathLike],
    series: str | int | None = None,
    frame: int | None = None,
    repetition: int | None = None,
) -> Scan:
    """Read a DICOM series as one scan.

    Several planes make a volume (1, columns, rows, planes), planes sorted along their normal (row
    direction x column direction) by their positions alone. A single plane or picture is 2D, (C,
    rows, columns). Values are those after rescale slope and intercept (or modality LUT); windows are
    recorded in ``Scan.series.window``, not applied. MONOCHROME1 is turned over within its stored
    range, so that higher is brighter, but not where values are measurements (CT, MR, PT, NM).
    Pixels with the padding value get the lowest value of the series that is real, in CT (where
    values are below 0) at most -1000 HU. Grey images have one channel named by the modality
    (``ct``, ``mr``, ``dx``), colour ones ``red, green, blue``.

    An uneven or tilted series is resampled linearly onto a regular grid of its own; a warning and
    ``Scan.series.notes`` say so, and ``Scan.series.to_planes`` brings maps back.

    Args:
        path: a file, a folder (searched to any depth), a .zip, or a list of files in any order.
        series: which series, where there are several: the label that ``find_series`` gives, a
            Series Number or a Series Instance UID.
        frame: which frame of a multi-frame file, from 0. Frames that lie in space make a volume
            without it; frames of a clip need it.
        repetition: which of several volumes of a series that only time or order tells apart, from 1.

    Returns:
        The scan, with ``Scan.series``.

    Raises:
        ScanError: no DICOM, no or several usable series, gaps too large to interpolate, damaged or
            contradictory files, an unknown compression. No message holds a patient's identity.
    """
    where = _where(path)
    named = path if isinstance(path, str | os.PathLike) else where
    info = choose(find_series(path), named, series, repetition)
    planes = _chosen(info, frame, where)
    first = planes[0]
    layout = _layout(planes, where)
    planes = [planes[i] for i in layout.order] if layout is not None else planes
    pictures, headers, shown, inverted, stack = _decoded(planes, where, layout)
    notes = [*info.notes, *_notes(planes, layout), *([first.file.note] if first.file.note else [])]
    if inverted:
        notes.append("MONOCHROME1: turned over, so that higher is brighter.")
    burnt = _burnt(planes, stack)
    notes += burnt
    data, fill = stack, pictures
    found = _series(info, planes, layout, notes, headers, shown, inverted)
    if layout is not None:
        data = from_planes(layout, stack[..., 0], fill=fill)[None]
    else:
        data = np.moveaxis(stack[0], -1, 0)
    if layout is not None and not layout.regular:
        warnings.warn(f"{where}: {_resampling(layout)}", stacklevel=2)
    names = _channels(data, first.file.modality)
    extra: dict[str, Any] = {"dicom": {"inverted": inverted, "series": info.label}}
    if first.file.spacings is not None:
        extra["spacing_known"] = True
    if burnt:
        extra["notes"] = tuple(burnt)
    source = Path(where) if isinstance(path, str | os.PathLike) else planes[0].file.source.path
    return Scan(
        data[:1] if len(names) == 1 else data,
        found.affine, names, source, first.file.dtype, extra, found,
    )  # fmt: skip


def probe_dicom(
    path: PathLike | Sequence[PathLike],
    series: str | int | None = None,
    frame: int | None = None,
    repetition: int | None = None,
) -> Header:
    """Return what ``read_dicom`` would give, from the headers alone; errors as there."""
    where = _where(path)
    named = path if isinstance(path, str | os.PathLike) else where
    info = choose(find_series(path), named, series, repetition)
    planes = _chosen(info, frame, where)
    layout = _layout(planes, where)
    file = planes[0].file
    if layout is not None:
        steps = np.linalg.norm(layout.affine[:3, :3], axis=0)
        return Header(layout.shape, 1, file.dtype, tuple(float(s) for s in steps))
    spacing = None if file.spacings is None else tuple(map(float, file.spacings[0]))
    return Header((file.rows, file.columns), file.samples, file.dtype, spacing)


def hash_dicom(
    path: PathLike,
    series: str | int | None = None,
    frame: int | None = None,
    repetition: int | None = None,
) -> str:
    """Return a SHA-256 over the files of a series, whatever their names and order."""
    info = choose(find_series(path), path, series, repetition)
    digests = set()
    for source in {p.file.source for p in info.planes}:
        with parsing(source), source.open() as file:
            digest = hashlib.sha256()
            while block := file.read(2**20):
                digest.update(block)
        digests.add(digest.hexdigest())
    part = f"{info.label.partition('.')[2]} {frame}"
    return hashlib.sha256(" ".join([*sorted(digests), part]).encode()).hexdigest()


def _where(path: PathLike | Sequence[PathLike]) -> Path:
    """Return what messages call it."""
    if isinstance(path, str | os.PathLike):
        return Path(path)
    return Path(path[0]) if len(path) else Path("an empty list")


def _chosen(info: SeriesInfo, frame: int | None, where: Path) -> list[Plane]:
    """Return the planes of the series, or the one frame that was asked for."""
    planes = list(info.planes)
    first = planes[0].file
    if frame is None:
        if info.kind == "clip":
            raise ScanError(
                f"{where}: has {first.frames} frames that don't make a volume. Choose one by "
                f"#frame=0 to #frame={first.frames - 1}."
            )
        return planes
    files = {p.file.source for p in planes}
    if len(files) > 1:
        raise ScanError(f"{where}: has {len(files)} files. #frame= is for one multi-frame file.")
    if not 0 <= frame < first.frames:
        raise ScanError(
            f"{where}: there is no frame {frame}; it has {first.frames}, counted from 0."
        )
    if info.kind == "clip":
        return [Plane(first, frame)]
    found = [p for p in planes if p.frame == frame]
    if not found:
        raise ScanError(f"{where}: frame {frame} belongs to another part of the file.")
    return found


def _layout(planes: list[Plane], where: Path) -> Layout | None:
    """Return the grid of a volume, None for a single image."""
    if len(planes) < 2:
        return None
    positions = np.array([p.position for p in planes])
    orientation = np.mean([p.orientation for p in planes], axis=0)
    spacing = np.mean([p.spacing for p in planes], axis=0)
    file = planes[0].file
    return lay_out(where, positions, orientation, spacing, (file.rows, file.columns))


def _decoded(
    planes: list[Plane], where: Path, layout: Layout | None
) -> tuple[float, list[Any], dict[str, Any], bool, np.ndarray]:
    """Decode all planes, a file at a time.

    Returns:
        The value for where there is no data, one bare header a plane, the window of the first, if
        any was turned over, and (n, rows, columns, samples) float32.
    """
    size = (planes[0].file.rows, planes[0].file.columns)
    by_file: dict[Any, list[int]] = {}
    for place, plane in enumerate(planes):
        by_file.setdefault(plane.file, []).append(place)
    shape = (len(planes), *size, planes[0].file.samples)
    check_size(where, shape)
    check_memory(where, 8 * math.prod(shape))  # the planes, and the volume that they make
    headers: list[Any] = [None] * len(planes)
    stack: np.ndarray | None = None
    lowest, inverted, shown = np.inf, False, {}
    padded: dict[int, np.ndarray] = {}
    for file, places in by_file.items():
        whole = read_whole(file.source)
        with parsing(file.source):
            header = bare(whole)
            if 0 in places:
                shown = window(whole, Groups(whole), planes[0].frame)
        pixels = Pixels(whole, file)
        for place in places:
            picture = pixels.frame(planes[place].frame)
            values = picture.values if picture.values.ndim == 3 else picture.values[..., None]
            if stack is None:
                stack = np.empty((len(planes), *size, values.shape[2]), np.float32)
            if values.shape != stack.shape[1:]:
                raise ScanError(f"{file.source}: is in colour, others of its series aren't.")
            stack[place], headers[place] = values, header
            inverted |= picture.inverted
            lowest = min(lowest, _lowest(picture))
            if picture.padding is not None:
                padded[place] = np.packbits(picture.padding)
    assert stack is not None
    if layout is not None and stack.shape[3] > 1:
        raise ScanError(
            f"{where}: colour pictures in space (a derived map) hold no measured values."
        )
    if not np.isfinite(lowest):
        raise ScanError(
            f"{where}: every pixel has the padding value, so there is nothing to see. Check the export, "
            "or leave this scan out."
        )
    fill = min(lowest, AIR) if planes[0].file.modality == "CT" and lowest < 0 else lowest
    for place, bits in padded.items():
        mask = np.unpackbits(bits, count=size[0] * size[1]).astype(bool).reshape(size)
        stack[place][mask] = fill
    return float(fill), headers, shown, inverted, stack


def _lowest(picture: Picture) -> float:
    if picture.padding is None:
        return float(picture.values.min())
    real = picture.values[~picture.padding]
    return float(real.min()) if real.size else np.inf


def _notes(planes: list[Plane], layout: Layout | None) -> list[str]:
    notes = []
    numbers = [(p.file.order, p.frame) for p in planes]
    if layout is not None and len(set(numbers)) == len(numbers):
        if numbers == sorted(numbers, reverse=True):
            notes.append("The images are numbered against the normal; they were reversed.")
        elif numbers != sorted(numbers):
            notes.append("The images aren't numbered by their place; they were sorted by it.")
    if any(p.file.lossy for p in planes):
        notes.append("Values were lost in compression (JPEG or the like).")
    if layout is not None and not layout.regular:
        notes.append(_resampling(layout))
    return notes


def _burnt(planes: list[Plane], stack: np.ndarray) -> list[str]:
    """Say where names may stand in the pixels: by the header, and by the look of what wasn't scanned."""
    file = planes[0].file
    said = {plane.file.burnt for plane in planes}
    if "YES" in said:
        return [
            "Burned In Annotation is YES: names may stand in the pixels, and in what shows them."
        ]
    if not file.secondary and file.modality not in WRITTEN_ON:
        return []
    rows = max(text_rows(picture) for picture in (stack[0], stack[-1])[: len(stack)])
    if not rows:
        return []
    lines = f"{rows} line{'s' * (rows > 1)} near a border look{'s' * (rows == 1)}"
    belied = ", though Burned In Annotation is NO" if "NO" in said else ""
    return [f"{lines} like text{belied}: names may stand in the pixels, and in what shows them."]


def _resampling(layout: Layout) -> str:
    steps, count = layout.steps, layout.shape[2]
    what = f"{len(steps) + 1} planes "
    if layout.tilted:
        what += f"tilted by {layout.tilt:.1f} degrees "
    what += f"at steps of {steps.min():.4g} to {steps.max():.4g} mm"
    step = float(np.linalg.norm(layout.affine[:3, 2]))
    return f"Not a regular series: {what} were resampled linearly onto {count} planes at {step:.4g} mm."


def _series(
    info: SeriesInfo,
    planes: list[Plane],
    layout: Layout | None,
    notes: list[str],
    headers: list[Any],
    shown: dict[str, Any],
    inverted: bool,
) -> Series:
    first = planes[0]
    size = (first.file.rows, first.file.columns)
    frames = {p.file.frame_of_reference for p in planes} - {""}
    base = Series(
        uid=first.file.series,
        modality=first.file.modality,
        positions=np.zeros((1, 3)),
        # A picture without a place lies as a raster image does.
        orientations=np.array([[-1.0, 0, 0, 0, 1, 0]]),
        spacings=np.ones((1, 2)),
        uids=tuple(p.file.uid for p in planes),
        frames=tuple(p.frame + 1 if p.file.stored[0] > 1 else 0 for p in planes),
        size=size,
        shape=size,
        affine=RASTER_AFFINE,
        steps=np.zeros(0),
        frame_of_reference=min(frames, default=""),
        lossy=any(p.file.lossy for p in planes),
        inverted=inverted,
        window=shown,
        notes=tuple(notes),
        read_headers=partial(clean, tuple(headers)),
        placed=False,
    )
    if first.file.kind != "plane":
        if first.file.spacings is None:
            return base
        rows, columns = first.file.spacings[0]
        affine = RASTER_AFFINE @ np.diag([rows, columns, 1.0, 1.0])
        return replace(base, spacings=first.file.spacings.copy(), affine=affine)
    base = replace(
        base,
        positions=np.array([p.position for p in planes]),
        orientations=np.array([p.orientation for p in planes]),
        spacings=np.array([p.spacing for p in planes]),
        placed=True,
    )
    if layout is None:
        return replace(base, affine=_plane_affine(first))
    return replace(
        base, shape=layout.shape, affine=layout.affine, steps=layout.steps, layout=layout,
        regular=layout.regular, tilted=layout.tilted, tilt=layout.tilt if layout.tilted else 0.0,
    )  # fmt: skip


def _plane_affine(plane: Plane) -> np.ndarray:
    """Return (row, column) index of a single plane to RAS mm."""
    affine = np.eye(4)
    affine[:3, 0] = plane.orientation[3:] * plane.spacing[0]
    affine[:3, 1] = plane.orientation[:3] * plane.spacing[1]
    affine[:3, 2] = -plane.normal
    affine[:3, 3] = plane.position
    return LPS_TO_RAS @ affine


def _channels(data: np.ndarray, modality: str) -> tuple[str, ...]:
    if len(data) == 3 and not (
        np.array_equal(data[0], data[1]) and np.array_equal(data[0], data[2])
    ):
        return ("red", "green", "blue")
    return (modality.lower(),)
