"""Foreign files through the readers: python benchmarks/readers.py FOLDER ... [--out FILE].

Each file of the folders is read and compared with what other libraries make of it: SimpleITK, then
pydicom (DICOM), SimpleITK, then nibabel (NIfTI), SimpleITK (NRRD, MetaImage), nibabel (MGH, Analyze,
MINC), imagecodecs, then Pillow (PNG, JPEG, BMP, WebP), Pillow (TIFF, JPEG 2000). Prints a table by
format:

- equal: read, and one of them gives the same values (and the same place, where there is one)
- read: read, and none of them gives the same; standard error says what they do
- refused: a clear error
- wrong: any other exception, a probe that contradicts the scan, or a file called damaged that
  another library reads

A folder with ``In/`` and ``Ref/`` (the dcm_qa sets) is compared with dcm2niix's own volumes instead.
"""

from __future__ import annotations

import argparse
import json
import sys
import warnings
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np

import normscan as ns
from normscan.errors import ScanError
from normscan.io.dicom import find_series
from normscan.io.files import EXTENSIONS, check_file, extension, header_of, walk_files

WITHIN = 2e-5  # of the largest value; of a lossy picture two decoders may differ by 2 of 255
LOSSY = 2.0
OUTCOMES = ("equal", "read", "refused", "wrong")
Other = tuple[np.ndarray, np.ndarray | None]  # values in our order of axes; affine to RAS or None


def by_itk(path: Path) -> Other:
    """SimpleITK: x first, then y, z; colours in front."""
    import SimpleITK as sitk  # noqa: N813

    sitk.ProcessObject.SetGlobalWarningDisplay(False)
    image = sitk.ReadImage(str(path))
    values = sitk.GetArrayFromImage(image)
    values = values if image.GetNumberOfComponentsPerPixel() > 1 else values[..., None]
    dims = image.GetDimension()
    affine = np.eye(4)
    kept = min(dims, 3)
    directions = np.array(image.GetDirection()).reshape(dims, dims) * np.array(image.GetSpacing())
    affine[:kept, :kept] = directions[:kept, :kept]
    affine[:kept, 3] = np.array(image.GetOrigin())[:kept]
    return values.T, np.diag([-1.0, -1, 1, 1]) @ affine


def by_nibabel(path: Path) -> Other:
    """nibabel: as the file has it; time of MINC goes last."""
    import nibabel as nib

    image = nib.load(header_of(path))
    values = np.asarray(image.dataobj)
    if extension(path) == ".mnc" and values.ndim == 4:
        values = np.moveaxis(values, 0, -1)
    if values.dtype.names:
        values = np.stack([values[n] for n in "RGB"])
        return values, image.affine
    return values[None], image.affine


def by_pillow(path: Path) -> Other:
    """Pillow: colours in front."""
    from PIL import Image, ImageOps

    with Image.open(path) as image:
        frames = []
        for n in range(getattr(image, "n_frames", 1)):
            image.seek(n)
            plain = ImageOps.exif_transpose(image)
            if plain.mode in ("P", "CMYK", "YCbCr", "RGBA", "RGBX", "PA"):
                plain = plain.convert("RGB")
            elif plain.mode in ("LA", "La"):
                plain = plain.convert("L")
            frames.append(np.asarray(plain))
    values = frames[0] if len(frames) == 1 else np.stack(frames)
    return (
        np.moveaxis(values, -1, 0) if values.ndim == 3 and len(frames) == 1 else values[None]
    ), None


def by_imagecodecs(path: Path) -> Other:
    """imagecodecs: colours in front, without alpha."""
    import imagecodecs

    data = path.read_bytes()
    kind = check_file(path)
    decode: Callable[[bytes], Any] = {
        "PNG": imagecodecs.png_decode,
        "JPEG": imagecodecs.jpeg8_decode,
        "BMP": imagecodecs.bmp_decode,
        "WebP": imagecodecs.webp_decode,
    }[kind]
    values = np.asarray(decode(data))
    values = values[..., None] if values.ndim == 2 else values
    return np.moveaxis(values[..., : 3 if values.shape[-1] > 2 else 1], -1, 0), None


def by_pydicom(path: Path) -> Other:
    """Pixels of pydicom through the tables of the file; colours in front."""
    import pydicom
    from pydicom.pixels import apply_color_lut, apply_modality_lut, pixel_array

    data = pydicom.dcmread(path, force=True)
    values = pixel_array(path)
    if data.PhotometricInterpretation == "PALETTE COLOR":
        values = apply_color_lut(values, data)
    elif values.ndim == 2 or data.get("SamplesPerPixel", 1) == 1:
        return np.asarray(apply_modality_lut(values, data))[None], None
    values = values if values.ndim == 3 else values[0]
    return np.moveaxis(values, -1, 0), None


READERS: dict[str, tuple[Callable[[Path], Other], ...]] = {
    "DICOM file": (by_itk, by_pydicom),
    "NIfTI": (by_itk, by_nibabel),
    "gzipped NIfTI": (by_itk, by_nibabel),
    "NIfTI header": (by_itk, by_nibabel),
    "NRRD": (by_itk,),
    "MetaImage": (by_itk,),
    "PNG": (by_imagecodecs, by_pillow),
    "JPEG": (by_imagecodecs, by_pillow),
    "BMP": (by_imagecodecs, by_pillow),
    "WebP": (by_imagecodecs, by_pillow),
    "TIFF": (by_pillow,),
    "JPEG 2000": (by_pillow,),
}


def judge(path: Path) -> tuple[str, str, str]:
    """Return the format of a file, the outcome and why."""
    kind = format_of(path)
    address: Any = path
    try:
        try:
            scan = ns.read(address)
        except ScanError as error:
            if "#volume=0" not in str(error) and "#frame=0" not in str(error):
                raise
            address = f"{path}#{'volume' if '#volume=0' in str(error) else 'frame'}=0"
            scan = ns.read(address)
        header = ns.io.probe(address)
    except ScanError as error:
        reason = str(error).replace(str(path), path.name)
        sound = kind in READERS and any(other(path, r) is not None for r in READERS[kind])
        if sound and "damaged" in reason:
            return kind, "wrong", f"called damaged: {reason}"
        return kind, "refused", ("readable by another: " if sound else "") + reason
    except Exception as error:
        return kind, "wrong", f"{type(error).__name__}: {error}"
    if header.shape != scan.shape:
        return kind, "wrong", f"probe says {header.shape}, the scan is {scan.shape}"
    why = []
    for reader in READERS.get(kind, (by_nibabel,)):
        found = other(path, reader)
        if found is None:
            why.append(f"{reader.__name__[3:]} can't")
            continue
        difference = compare(scan, *found, lossy=kind in ("JPEG", "WebP", "JPEG 2000"))
        if not difference:
            return kind, "equal", reader.__name__[3:]
        why.append(f"{reader.__name__[3:]}: {difference}")
    return kind, "read", "; ".join(why)


def format_of(path: Path) -> str:
    """Return the format in words, by the content or else the extension."""
    try:
        return check_file(path)
    except ScanError:
        known = extension(path) in EXTENSIONS
        return f"not an image, called {extension(path)}" if known else "no known format"


def other(path: Path, reader: Callable[[Path], Other]) -> Other | None:
    """Return what another reader gives, None where it raises."""
    try:
        return reader(path)
    except Exception:
        return None


def compare(scan: ns.Scan, values: np.ndarray, affine: np.ndarray | None, lossy: bool) -> str:
    """Return in what they differ, or an empty string."""
    mine = scan.data
    for theirs in arrangements(values, mine.shape):
        apart = np.abs(mine.astype(np.float64) - theirs)
        most = max(float(np.abs(mine).max()), 1e-9)
        if float(np.nanmax(apart)) <= (LOSSY if lossy else WITHIN * most):
            break
    else:
        return f"{values.shape} other values than {mine.shape}"
    placed = "nifti" in scan.extra or "placed" in scan.extra
    if affine is None or not placed or scan.dims == 2:
        return ""
    corner = np.array([*(n - 1 for n in scan.shape), 1.0])
    off = max(np.abs((scan.affine - affine) @ p)[:3].max() for p in (corner, [0, 0, 0, 1]))
    return "" if off < 0.01 else f"lies {off:.3g} mm elsewhere"


def arrangements(values: np.ndarray, shape: tuple[int, ...]) -> Iterator[np.ndarray]:
    """Give the values in the orders of axes that files of several planes or frames may mean."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        values = np.nan_to_num(np.asarray(values, dtype=np.float64))
    tried = [values, values.swapaxes(-1, -2) if values.ndim > 2 else values]
    tried += [v[..., 0] for v in list(tried)] + [v[..., 0] for v in [values.squeeze()[None]]]
    for one in tried:
        for way in (one, one[..., ::-1], one.reshape(one.shape[0], *one.squeeze().shape) if
                    one.shape[0] == 1 else one):  # fmt: skip
            if way.shape == shape:
                yield way
            elif way.shape[1:] == shape[1:] and len(shape) and shape[0] == 1:
                yield way[:1]
            squeezed = way.reshape(way.shape[0], *(n for n in way.shape[1:] if n > 1))
            for swapped in (squeezed, squeezed.swapaxes(-1, -2) if squeezed.ndim > 2 else squeezed):
                if swapped.shape == shape:
                    yield swapped


def against_dcm2niix(folder: Path) -> Iterator[tuple[str, str, str]]:
    """Compare every volume of the series below ``In/`` with those in ``Ref/`` of its number."""
    import nibabel as nib

    references: dict[int, list[Any]] = defaultdict(list)
    for path in sorted((folder / "Ref").glob("*.nii*")):
        about = path.with_name(path.name.split(".nii")[0] + ".json")
        if about.is_file():
            references[json.loads(about.read_text()).get("SeriesNumber")].append(nib.load(path))
    for series in find_series(folder / "In"):
        if not series.usable:
            continue
        scan = ns.read(f"{folder / 'In'}#series={series.label}")
        mine = nib.as_closest_canonical(nib.Nifti1Image(scan.data[0], scan.affine))
        images = references.get(int(series.number or -1), [])
        outcome, why = ("wrong", f"series {series.label} isn't in its reference") if images else (
            "read", "no reference"
        )  # fmt: skip
        if any(same_volume(mine, image) for image in images):
            outcome, why = "equal", "dcm2niix"
        yield "DICOM series, dcm2niix", outcome, why


def same_volume(mine: Any, image: Any) -> bool:
    """Tell whether a volume, its axes in RAS order, is one of a NIfTI, in values and place."""
    import nibabel as nib

    whole = np.asarray(image.dataobj)
    whole = whole[..., None] if whole.ndim == 3 else whole
    for volume in np.moveaxis(whole, -1, 0):
        theirs = nib.as_closest_canonical(nib.Nifti1Image(volume.astype(np.float32), image.affine))
        placed = mine.shape == theirs.shape and np.allclose(mine.affine, theirs.affine, atol=0.01)
        if placed and np.array_equal(mine.get_fdata(), theirs.get_fdata()):
            return True
    return False


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folders", nargs="+", type=Path)
    parser.add_argument("--out", type=Path, help="also write the table there, as Markdown")
    arguments = parser.parse_args()
    warnings.simplefilter("ignore")
    lines = []
    for folder in arguments.folders:
        if (folder / "In").is_dir() and (folder / "Ref").is_dir():
            found = [(folder.name, *row) for row in against_dcm2niix(folder)]
        else:
            found = [(name, *judge(folder / name)) for name in walk_files(folder)]
        lines += table(folder.name, found)
        for name, kind, outcome, why in found:
            if outcome in ("read", "wrong") or why.startswith("readable"):
                print(f"{outcome:8}{kind:20}{name}: {why[:200]}", file=sys.stderr)
    print("\n".join(lines))
    if arguments.out:
        arguments.out.write_text("\n".join(lines) + "\n")


def table(title: str, found: list[tuple[str, str, str, str]]) -> list[str]:
    """Count the outcomes by format."""
    counts: dict[str, Counter[str]] = defaultdict(Counter)
    for _, kind, outcome, _ in found:
        counts[kind][outcome] += 1
    rows = [f"## {title}: {len(found)} files", "", "| format | " + " | ".join(OUTCOMES) + " |"]
    rows.append("| --- |" + " --- |" * len(OUTCOMES))
    for kind, count in sorted(counts.items()):
        rows.append(f"| {kind} | " + " | ".join(str(count[o]) for o in OUTCOMES) + " |")
    return [*rows, ""]


if __name__ == "__main__":
    main()
