"""Read scans and masks of any known format, and refuse what is no image."""

from __future__ import annotations

import hashlib
import os
import stat
from collections.abc import Sequence
from dataclasses import replace
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np

from normscan.errors import ScanError
from normscan.io.address import split_address, whole_number
from normscan.io.background import fill_background
from normscan.io.decoders import decode, files_of, is_lossy, probe_file
from normscan.io.files import (
    EXTENSIONS,
    Decoded,
    Header,
    check_file,
    check_spacing,
    extension,
    identity,
    sniff,
)
from normscan.io.masks import NEARLY, MaskReport, MaskRule, coloured, indexed, mask_rule, upright
from normscan.scan import Scan

PathLike = str | os.PathLike[str]


def read_scan(path: PathLike | Sequence[PathLike], channels: tuple[str, ...] | None = None) -> Scan:
    """Read one image or volume, or several files as the channels of one scan.

    DICOM (a file, a folder, a .zip; see ``normscan.io.dicom.read_dicom``), NIfTI, NRRD, MetaImage,
    MGH, Analyze, MINC, PNG, JPEG, BMP, WebP, JPEG 2000, TIFF, .npy and .npz. Values stay in the
    units of the file (a NIfTI slope is applied) as float32, which is exact up to 2**24. Nothing is
    reoriented, except
    that a picture's EXIF orientation is applied. RGB with three equal channels is read as one
    channel ``grey``; alpha is dropped. A TIFF of several grey pages is a volume (pages, H, W), and
    so is a three-dimensional .npy. Pictures have a spacing of 1; NIfTI, .npz and metric TIFF have
    their own. ``volume.nii.gz#slice=80`` is one slice of a volume, along the last axis of the file
    unless ``&axis=`` says another; NIfTI slices are read through a memory map.
    ``bold.nii.gz#volume=0`` is one volume of a series, ``study#series=3`` one series of a DICOM
    folder, ``clip.dcm#frame=7`` one frame of a multi-frame file. NaN around the anatomy becomes
    background, with a note in ``extra["notes"]``.

    Args:
        path: a file, or a list of files of one channel each, on the same grid.
        channels: names of the channels. By default ``grey``, or ``red, green, blue``; for NIfTI the
            BIDS suffix or ``image``; for several files without distinct names ``channel0``, ...

    Returns:
        The scan; ``source`` is the (first) file.

    Raises:
        ScanError: no readable image, NaN inside of the anatomy or infinite values, a constant image,
            a series of which no part is chosen, files that don't share one grid. The message names
            the file, the reason and the mend.
    """
    if isinstance(path, str | os.PathLike):
        return _named(_read_one(path), channels)
    paths = list(path)
    if not paths:
        raise ScanError("A scan needs at least one file; the list of paths is empty.")
    scans = [_read_one(p) for p in paths]
    return _named(_stack(scans), channels) if len(scans) > 1 else _named(scans[0], channels)


def check_array(array: np.ndarray) -> Scan:
    """Return an array as a scan, refusing what a file reader would refuse."""
    if np.isinf(array).any():
        raise ScanError("array: it holds NaN or infinite values. Replace them first.")
    filled, notes = fill_background(array[None], Path("array"))
    if array.size and filled.min() == filled.max():
        raise ScanError("array: all values are the same, so there is nothing to see.")
    scan = Scan.from_array(filled[0])
    return replace(scan, extra={"notes": notes}) if notes else scan


def read_mask(
    path: PathLike, like: Scan, threshold: float = 0.5, report: MaskReport | None = None
) -> np.ndarray:
    """Read a lesion or foreground mask.

    What it is, its content says, whatever the format and for a slice as for its whole file:

    - a *label map* holds whole numbers, up to rounding (1.00002): every value above 0.5 is inside,
      of many instances and of greys in steps (85, 170, 255) too. Of a palette the index counts, and
      0 is the background, white as well as black, unless the picture shows otherwise;
    - a *probability map* holds 0 to 1, or runs smoothly over 0..255: above ``threshold``;
    - a *drawing* has pens of one grey with smooth or, in a JPEG, blurred borders: above half of the
      faintest pen.

    Of a colour mask the brightest channel counts, on white paper what is not white. An empty mask is
    fine.

    Args:
        path: the mask.
        like: the scan it belongs to.
        threshold: of probability maps.
        report: counts what the mask was taken for.

    Returns:
        Boolean array of the shape ``like.shape``.

    Raises:
        ScanError: unreadable file, another shape than the scan, another affine (NIfTI beside
            NIfTI, more than a tenth of a voxel), negative values, values that are neither labels
            nor probabilities.
    """
    file, chosen = split_address(path)
    kind = check_file(file)
    decoded, values = _mask_values(file, kind, chosen)
    _check_grid(file, decoded, values, like)
    return _cut(file, kind, chosen, decoded, values, threshold, report)


def read_labels(path: PathLike, like: Scan) -> np.ndarray:
    """Read a label map, such as structures of the anatomy: a whole number in each voxel.

    Of a palette the index counts.

    Returns:
        int32 array of the shape ``like.shape``.

    Raises:
        ScanError: unreadable file, another grid than the scan (as ``read_mask``), a JPEG or a colour
            picture, negative values or fractions.
    """
    file, chosen = split_address(path)
    kind = check_file(file)
    decoded, values = _mask_values(file, kind, chosen)
    _check_grid(file, decoded, values, like)
    colours = len(decoded.data) > 1 and _mask_numbers(file, kind) is None
    whole = np.round(values)
    if kind == "JPEG" or colours or whole.min() < 0 or np.abs(values - whole).max() > NEARLY:
        raise ScanError(
            f"{file}: is no label map. Save a whole number from 0 in each voxel, as NIfTI, .npy or a "
            "grey or indexed PNG."
        )
    return whole.astype(np.int32)


def _check_grid(file: Path, decoded: Decoded, values: np.ndarray, like: Scan) -> None:
    if values.shape != like.shape:
        raise ScanError(
            f"{file}: the mask has the shape {values.shape}, its scan {like.source or like.name} "
            f"has {like.shape}. Give the mask on the grid of the scan."
        )
    if _placed(decoded.extra) and _placed(like.extra) and decoded.affine is not None:
        off = grid_distance(decoded.affine, like.affine, like.shape)
        if off > 0.1:
            raise ScanError(
                f"{file}: the mask lies up to {off:.2g} voxels away from its scan "
                f"{like.source or like.name}: their affines differ. Resample the mask to the scan."
            )


def _placed(extra: dict[str, Any]) -> bool:
    """Tell whether a file says where it lies in the patient."""
    return "nifti" in extra or "placed" in extra


def load_mask_array(
    path: PathLike, threshold: float = 0.5, report: MaskReport | None = None
) -> np.ndarray:
    """Read a mask without its scan, as booleans; see ``read_mask`` for what counts as inside.

    Raises:
        ScanError: unreadable file, no mask.
    """
    file, chosen = split_address(path)
    kind = check_file(file)
    decoded, values = _mask_values(file, kind, chosen)
    return _cut(file, kind, chosen, decoded, values, threshold, report)


def _mask_values(path: Path, kind: str, chosen: dict[str, str]) -> tuple[Decoded, np.ndarray]:
    """Decode a mask; the values have the background as 0, whatever its colour."""
    decoded = decode(path, chosen)
    numbers = _mask_numbers(path, kind)
    if numbers is not None:
        numbers = numbers.astype(np.float32)
        if "slice" in chosen:
            from normscan.io.volumes import take

            place = whole_number(path, chosen, "slice"), whole_number(path, chosen, "axis", 2)
            numbers, _ = take(numbers, np.eye(4), *place, path)
        return decoded, numbers
    data = decoded.data
    colour = decoded.channels == ("red", "green", "blue") and data.ndim == 3
    return decoded, coloured(data) if colour else data.max(axis=0)


def _mask_numbers(path: Path, kind: str) -> np.ndarray | None:
    """Return what a palette or white-is-zero picture stores, None of others."""
    if kind in ("PNG", "BMP"):
        from normscan.io.raster import read_palette

        found = read_palette(path, kind)
        return None if found is None else indexed(*found)
    if kind == "TIFF":
        from normscan.io.tiff import read_indices

        told = read_indices(path)
        if told is not None:
            numbers, colours, top = told
            return upright(numbers, top) if colours is None else indexed(numbers, colours)
    return None


def _cut(
    file: Path,
    kind: str,
    chosen: dict[str, str],
    decoded: Decoded,
    values: np.ndarray,
    threshold: float,
    report: MaskReport | None,
) -> np.ndarray:
    if chosen:  # a slice alone doesn't tell what the file is
        part = tuple((k, v) for k, v in chosen.items() if k not in ("slice", "axis"))
        known = "".join(identity(one) for one in files_of(file))
        rule = _rule_of_file(file, kind, threshold, known, part)
    else:
        rule = mask_rule(values, file, threshold, decoded.dtype, is_lossy(file, kind))
    inside = rule.inside(values)
    if report is not None:
        report.add(file, rule, inside)
    return inside


@lru_cache(maxsize=256)
def _rule_of_file(
    path: Path, kind: str, threshold: float, known: str, part: tuple[tuple[str, str], ...]
) -> MaskRule:
    decoded, values = _mask_values(path, kind, dict(part))
    return mask_rule(values, path, threshold, decoded.dtype, is_lossy(path, kind))


def probe(path: PathLike) -> Header:
    """Read what a file says of itself, without decoding its pixels.

    Raises:
        ScanError: missing, empty or unknown file, damaged header. Damage further in is found by
            ``read_scan`` only.
    """
    file, chosen = split_address(path)
    if "slice" in chosen:
        return _cut_header(probe(_without_slice(path)), whole_number(file, chosen, "axis", 2))
    header = _probed(file, chosen)
    check_spacing(file, header.spacing, header.shape)
    return header


def _probed(file: Path, chosen: dict[str, str]) -> Header:
    if is_dicom(file):
        from normscan.io.dicom import probe_dicom

        return probe_dicom(file, **_selected(file, chosen))
    return probe_file(file, chosen)


def content_hash(path: PathLike) -> str:
    """Return the SHA-256 of the bytes of a file, as 64 hexadecimal digits.

    Of a header with its data beside it, it is that of both files' hashes; of a DICOM series in a
    folder or an archive that of its files' hashes, sorted.

    Raises:
        ScanError: the file can't be read.
    """
    file, chosen = split_address(path)
    try:
        if not (stat.S_ISREG(mode := file.stat().st_mode) or stat.S_ISDIR(mode)):
            raise ScanError(f"{path}: is no file but a device, pipe or socket. Name a file.")
        if stat.S_ISDIR(mode) or ({"series", "repetition"} & set(chosen) and is_dicom(file)):
            from normscan.io.dicom import hash_dicom

            digest = hash_dicom(file, **_selected(file, chosen))
        else:
            digests = [_file_hash(one, identity(one)) for one in files_of(file)]
            digest = digests[0]
            if len(digests) > 1:
                digest = hashlib.sha256(" ".join(digests).encode()).hexdigest()
    except OSError as error:
        raise ScanError(f"{path}: can't be read ({error.strerror}).") from error
    if not chosen:
        return digest
    return hashlib.sha256(f"{digest}{sorted(chosen.items())}".encode()).hexdigest()


@lru_cache(maxsize=2**16)
def _file_hash(path: Path, known: str) -> str:
    """Hash a file once, however often a run asks for it and for its slices."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def grid_distance(one: np.ndarray, other: np.ndarray, shape: Sequence[int]) -> float:
    """Return how far apart two grids put the same voxel at most, in voxels of the first."""
    ends = [(0, n - 1) for n in (*shape, 1, 1, 1)[:3]]
    corners = np.stack(np.meshgrid(*ends, indexing="ij"), axis=-1).reshape(-1, 3)
    points = np.concatenate([corners, np.ones((len(corners), 1))], axis=1)
    distance = np.linalg.norm((points @ (one - other).T)[:, :3], axis=1)
    smallest = np.linalg.norm(one[:3, : len(shape)], axis=0).min()
    return float(distance.max() / max(smallest, 1e-12))


def _cut_header(header: Header, axis: int) -> Header:
    def cut(values: tuple[Any, ...]) -> tuple[Any, ...]:
        return tuple(v for a, v in enumerate(values) if a != axis)

    spacing = None if header.spacing is None else cut(header.spacing)
    return replace(header, shape=cut(header.shape), spacing=spacing)


def _read_one(address: PathLike) -> Scan:
    path, chosen = split_address(address)
    if is_dicom(path):
        return _read_dicom(address, path, chosen)
    decoded = decode(path, chosen)
    data = decoded.data
    _refuse_constant(data, path)
    affine = decoded.affine
    if affine is None:
        affine = Scan.from_array(data[0]).affine
    source = Path(address)
    scan = Scan(data, affine, decoded.channels, source, decoded.dtype, dict(decoded.extra))
    check_spacing(path, scan.spacing, scan.shape)
    return scan


def _refuse_constant(data: np.ndarray, path: Path) -> None:
    if float(data.min()) == float(data.max()):
        raise ScanError(
            f"{path}: every pixel is {float(data.flat[0]):g}, so there is nothing to see. "
            "Check the export, or leave this scan out."
        )


def is_dicom(path: Path) -> bool:
    """Tell whether a path is a DICOM file, a folder that may hold some, or an archive of some.

    A .npz is an archive too, of arrays: extensions of other formats are believed.
    """
    if os.path.isdir(path):
        return True
    if not os.path.isfile(path):
        return False
    kind = sniff(path)
    archive = kind == "zip archive" and extension(path) not in EXTENSIONS
    return kind == "DICOM file" or archive


def _selected(path: Path, chosen: dict[str, str]) -> dict[str, Any]:
    """Return the selectors of a DICOM address as the arguments of its reader."""
    frame = whole_number(path, chosen, "frame") if "frame" in chosen else None
    repetition = whole_number(path, chosen, "repetition") if "repetition" in chosen else None
    return {"series": chosen.get("series"), "frame": frame, "repetition": repetition}


def _read_dicom(address: PathLike, path: Path, chosen: dict[str, str]) -> Scan:
    from normscan.io.dicom import read_dicom

    scan = replace(read_dicom(path, **_selected(path, chosen)), source=Path(address))
    check_spacing(path, scan.spacing, scan.shape)
    if "slice" in chosen:
        from normscan.io.volumes import take

        index, axis = whole_number(path, chosen, "slice"), whole_number(path, chosen, "axis", 2)
        data, affine = take(scan.data[0], scan.affine, index, axis, path)
        scan = replace(scan, data=data[None], affine=affine, series=None)
    _refuse_constant(scan.data, path)
    return scan


def _without_slice(path: PathLike) -> str:
    """Return the address of the volume that a slice is cut from."""
    base, _, fragment = os.fspath(path).rpartition("#")
    kept = "&".join(p for p in fragment.split("&") if p.partition("=")[0] not in ("slice", "axis"))
    return f"{base}#{kept}" if kept else base


def _named(scan: Scan, channels: tuple[str, ...] | None) -> Scan:
    if channels is None:
        return scan
    if len(channels) != len(scan.channels):
        raise ScanError(
            f"{scan.source}: has {len(scan.channels)} channels ({', '.join(scan.channels)}), but "
            f"{len(channels)} names: {', '.join(channels)}. Give one file and one name a channel."
        )
    return replace(scan, channels=tuple(channels))


def _stack(scans: list[Scan]) -> Scan:
    """Join scans of one channel each on the grid of the first."""
    first = scans[0]
    for scan in scans:
        if len(scan.channels) != 1:
            raise ScanError(
                f"{scan.source}: is a colour image; each file in a list is one channel. Give it "
                "alone, or save it as grey."
            )
        if scan.shape != first.shape:
            raise ScanError(
                f"{first.source} has the shape {first.shape}, {scan.source} has {scan.shape}. "
                "The channels of one scan share one grid: resample one of them to the other."
            )
        off = grid_distance(first.affine, scan.affine, first.shape)
        if off > 0.1:
            raise ScanError(
                f"{first.source} and {scan.source} lie up to {off:.2g} voxels apart: their affines "
                "differ. Register and resample one of them to the other."
            )
    names = tuple(scan.channels[0] for scan in scans)
    if len(set(names)) < len(names):
        names = tuple(f"channel{i}" for i in range(len(scans)))
    kinds = sorted({scan.dtype for scan in scans})
    return replace(
        first,
        data=np.concatenate([scan.data for scan in scans]),
        channels=names,
        dtype="+".join(kinds),
        extra={**first.extra, "sources": [str(scan.source) for scan in scans]},
    )
