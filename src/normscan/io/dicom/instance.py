"""What one DICOM file says of itself: which series, where its planes lie, how its pixels are stored."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from normscan.errors import ScanError
from normscan.identity import pseudonym
from normscan.io.dicom.mosaic import place_tiles
from normscan.io.dicom.scales import Scale, scale_of
from normscan.io.dicom.source import Source, parsing, read_header
from normscan.io.dicom.values import Groups, fetch, number, numbers, text, whole, words

if TYPE_CHECKING:
    from pydicom.dataset import Dataset

LARGEST_MM = 1e5  # no patient is longer
PROJECTIONS = ("CR", "DX", "MG", "IO", "PX", "RG", "RF", "XA", "US", "IVUS", "ES", "XC", "OP", "GM")
"""Modalities whose single images are pictures; the planes of the others stand in space."""

NO_IMAGE = {
    "1.2.840.10008.5.1.4.1.1.66": "a registration, segmentation or raw data, no image",
    "1.2.840.10008.5.1.4.1.1.30": "a parametric map, not the image itself",
    "1.2.840.10008.5.1.4.1.1.67": "a mapping of values, no image",
    "1.2.840.10008.5.1.4.1.1.88": "a report, no image",
    "1.2.840.10008.5.1.4.1.1.11": "a presentation state, no image",
    "1.2.840.10008.5.1.4.1.1.481": "a radiotherapy object, no image",
    "1.2.840.10008.5.1.4.1.1.104": "a document, no image",
    "1.2.840.10008.5.1.4.1.1.9": "a waveform, no image",
    "1.2.840.10008.1.3.10": "an index (DICOMDIR), no image",
}
_SECONDARY = "1.2.840.10008.5.1.4.1.1.7"
_LOSSY_SYNTAXES = (
    "1.2.840.10008.1.2.4.50", "1.2.840.10008.1.2.4.51", "1.2.840.10008.1.2.4.81",
)  # fmt: skip
_OPEN_SYNTAXES = ("1.2.840.10008.1.2.4.91", "1.2.840.10008.1.2.4.203")  # lossy or not

# What tells images at one place apart: name, functional group, keywords.
_MARKS: tuple[tuple[str, str, tuple[str, ...]], ...] = (
    ("stack", "FrameContentSequence", ("StackID",)),
    ("type", "MRImageFrameTypeSequence", ("FrameType",)),
    ("type", "CTImageFrameTypeSequence", ("FrameType",)),
    ("type", "", ("ImageType",)),
    ("echo time", "MREchoSequence", ("EffectiveEchoTime", "EchoTime")),
    ("echo", "", ("EchoNumbers",)),
    ("b-value", "MRDiffusionSequence", ("DiffusionBValue",)),
    ("inversion time", "MRModifierSequence", ("InversionTimes", "InversionTime")),
    ("trigger delay", "CardiacSynchronizationSequence",
     ("NominalCardiacTriggerDelayTime", "TriggerTime")),
    ("temporal position", "FrameContentSequence",
     ("TemporalPositionIndex", "TemporalPositionIdentifier")),
    ("tube voltage", "", ("KVP",)),
    ("kernel", "CTReconstructionSequence", ("ConvolutionKernel",)),
    ("acquisition", "FrameContentSequence", ("FrameAcquisitionNumber", "AcquisitionNumber")),
    ("acquisition time", "", ("AcquisitionTime",)),
    ("content time", "", ("ContentTime",)),
)  # fmt: skip


@dataclass(frozen=True, eq=False)
class Instance:
    """The facts of a file; no name, date or description of a patient is kept.

    Attributes:
        source: where it lies.
        uid: SOP Instance UID.
        series: Series Instance UID.
        study: Study Instance UID.
        number: Series Number, or an empty string.
        order: Instance Number.
        subject: pseudonym of the Patient ID (``normscan.identity``), or an empty string.
        modality: CT, MR, DX, ...
        reason: why it is no image that can be read, or an empty string.
        kind: ``plane`` (its frames lie in space), ``picture`` or ``clip`` (frames without a place).
        secondary: a secondary capture.
        localiser: a scout.
        rows, columns, samples, frames: of the pixels.
        dtype: type in which the pixels are stored.
        positions: (frames, 3) LPS mm of the first pixel's centre.
        orientations: (frames, 6) row and column direction.
        spacings: (frames, 2) between rows, between columns; of a picture one row or none.
        marks: per frame what could tell it from others at the same place.
        frame_of_reference: its UID, or an empty string.
        lossy: whether values were lost in compression.
        note: what is to be known of the spacing.
        burnt: Burned In Annotation, ``YES``, ``NO`` or an empty string.
        scales: per frame how stored numbers become values.
        grid: of a mosaic, whose frames are tiles of one picture, how many lie in a row; else 1.
    """

    source: Source
    uid: str = ""
    series: str = ""
    study: str = ""
    number: str = ""
    order: int = 0
    subject: str = ""
    modality: str = ""
    reason: str = ""
    kind: str = "picture"
    secondary: bool = False
    localiser: bool = False
    rows: int = 0
    columns: int = 0
    samples: int = 1
    frames: int = 1
    dtype: str = ""
    positions: Any = None
    orientations: Any = None
    spacings: Any = None
    marks: tuple[dict[str, str], ...] = ()
    frame_of_reference: str = ""
    lossy: bool = False
    note: str = ""
    burnt: str = ""
    scales: tuple[Scale, ...] = ()
    grid: int = 1

    @property
    def stored(self) -> tuple[int, int, int]:
        """Frames, rows and columns as they are in the file."""
        frames = 1 if self.grid > 1 else self.frames
        return frames, self.rows * self.grid, self.columns * self.grid


@dataclass(frozen=True, eq=False)
class Plane:
    """A frame of a file: one plane or picture."""

    file: Instance
    frame: int

    @property
    def position(self) -> np.ndarray:
        """(3,) LPS mm."""
        return np.asarray(self.file.positions[self.frame])

    @property
    def orientation(self) -> np.ndarray:
        """(6,) row and column direction."""
        return np.asarray(self.file.orientations[self.frame])

    @property
    def spacing(self) -> np.ndarray:
        """(2,) mm between rows, between columns."""
        return np.asarray(self.file.spacings[self.frame])

    @property
    def normal(self) -> np.ndarray:
        """(3,) row direction x column direction."""
        return np.cross(self.orientation[:3], self.orientation[3:])


def describe(source: Source) -> Instance:
    """Read the facts of a file from its header.

    Raises:
        ScanError: no DICOM, damaged, nested too deeply. What is DICOM but no image that can be read
            comes back with a ``reason``.
    """
    data, pixel_bytes = read_header(source)
    with parsing(source):
        return _facts(source, data, pixel_bytes)


def _facts(source: Source, data: Dataset, pixel_bytes: int | None) -> Instance:
    sop_class = text(data, "SOPClassUID") or text(data.file_meta, "MediaStorageSOPClassUID")
    patient = text(data, "PatientID")
    known: dict[str, Any] = {
        "source": source,
        "uid": text(data, "SOPInstanceUID"),
        "series": text(data, "SeriesInstanceUID"),
        "study": text(data, "StudyInstanceUID"),
        "number": whole(fetch(data, "SeriesNumber")),
        "order": int(whole(fetch(data, "InstanceNumber")) or 0),
        "subject": pseudonym(patient) if patient else "",
        "modality": (text(data, "Modality") or "OT")[:16].upper(),
        "secondary": sop_class.startswith(_SECONDARY),
        "burnt": text(data, "BurnedInAnnotation")[:16].upper(),
        "localiser": "LOCALIZER" in words(fetch(data, "ImageType")),
        "frame_of_reference": text(data, "FrameOfReferenceUID"),
    }
    if not known["modality"].isalnum():
        known["modality"] = "OT"
    for prefix, reason in NO_IMAGE.items():
        if sop_class == prefix or sop_class.startswith(prefix + "."):
            return Instance(**known, reason=reason)
    rows, columns = (int(number(fetch(data, k)) or 0) for k in ("Rows", "Columns"))
    if pixel_bytes is None or rows < 1 or columns < 1:
        return Instance(**known, reason="holds no pixels")
    frames = int(number(fetch(data, "NumberOfFrames")) or 1)
    known |= {"rows": rows, "columns": columns, "frames": max(1, frames)}
    try:
        known |= _pixels(data, known, pixel_bytes)
        mosaic = "MOSAIC" in words(fetch(data, "ImageType"))
        known |= _tiles(data, known) if mosaic else _place(data, known)
    except ScanError as error:
        return Instance(**known, reason=str(error))
    return Instance(**known)


def _pixels(data: Dataset, known: dict[str, Any], pixel_bytes: int) -> dict[str, Any]:
    """Check how the pixels are stored; a ScanError holds the reason alone."""
    samples = int(number(fetch(data, "SamplesPerPixel")) or 1)
    allocated = int(number(fetch(data, "BitsAllocated")) or 0)
    if samples not in (1, 3) or allocated not in (1, 8, 16, 32, 64):
        raise ScanError(f"stores {samples} samples of {allocated} bits a pixel, which is no image")
    declared = known["rows"] * known["columns"] * known["frames"] * samples
    needed = declared * allocated // 8
    if text(data, "PhotometricInterpretation") == "YBR_FULL_422":
        needed = needed * 2 // 3
    if pixel_bytes >= 0 and pixel_bytes < needed:
        raise ScanError(
            f"truncated, or contradicts itself: {known['frames']} x {known['rows']} x "
            f"{known['columns']} pixels of {allocated} bits take {needed} bytes, it has {pixel_bytes}"
        )
    signed = int(number(fetch(data, "PixelRepresentation")) or 0) == 1
    kind = "iu"[not signed] + str(max(allocated, 8) // 8)
    name = np.dtype(kind).name
    if "BitsStored" not in data and allocated in (32, 64):
        name = f"float{allocated}"
    syntax = text(data.file_meta, "TransferSyntaxUID")
    flag = text(data, "LossyImageCompression")
    lossy = flag == "01" or syntax in _LOSSY_SYNTAXES or (syntax in _OPEN_SYNTAXES and flag != "00")
    return {"samples": samples, "dtype": name, "lossy": lossy}


def _place(data: Dataset, known: dict[str, Any]) -> dict[str, Any]:
    """Find where the frames lie; a ScanError holds the reason alone."""
    groups, count = Groups(data), known["frames"]
    if groups.frames and len(groups.frames) != count:
        raise ScanError(
            f"contradicts itself: {count} frames, but functional groups for {len(groups.frames)}"
        )
    single = count == 1 or bool(groups.frames)
    first = groups.get(0, "PlanePositionSequence", "ImagePositionPatient") if single else None
    if first is None:
        spacing, note = _picture_spacing(data)
        spacings = None if spacing is None else np.array([spacing])
        kind = "picture" if count == 1 else "clip"
        return {"kind": kind, "spacings": spacings, "note": note}
    rows = [_plane(groups, frame) for frame in range(count)]
    return {
        "kind": "plane",
        "positions": np.array([r[0] for r in rows]),
        "orientations": np.array([r[1] for r in rows]),
        "spacings": np.array([r[2] for r in rows]),
        "marks": tuple(_marks(groups, frame) for frame in range(count)),
        "scales": tuple(scale_of(data, groups, frame) for frame in range(count)),
    }


def _tiles(data: Dataset, known: dict[str, Any]) -> dict[str, Any]:
    """Find where the tiles of a mosaic lie; a ScanError holds the reason alone."""
    groups, size = Groups(data), (known["rows"], known["columns"])
    if known["frames"] > 1 or known["samples"] > 1:
        raise ScanError("a mosaic of several frames or in colour")
    plane = _plane(groups, 0)
    grid, positions = place_tiles(data, size, plane)
    count = len(positions)
    return {
        "kind": "plane",
        "rows": size[0] // grid,
        "columns": size[1] // grid,
        "frames": count,
        "grid": grid,
        "positions": positions,
        "orientations": np.tile(plane[1], (count, 1)),
        "spacings": np.tile(plane[2], (count, 1)),
        "marks": (_marks(groups, 0),) * count,
        "scales": (scale_of(data, groups, 0),) * count,
    }


def _plane(groups: Groups, frame: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    position = numbers(groups.get(frame, "PlanePositionSequence", "ImagePositionPatient"), 3)
    both = numbers(groups.get(frame, "PlaneOrientationSequence", "ImageOrientationPatient"), 6)
    spacing = numbers(groups.get(frame, "PixelMeasuresSequence", "PixelSpacing"), 2)
    if position is None or np.abs(position).max() > LARGEST_MM:
        raise ScanError("Image Position (Patient) isn't three numbers in mm")
    if both is None or spacing is None:
        missing = "Image Orientation (Patient)" if both is None else "Pixel Spacing"
        raise ScanError(f"{missing} is missing or damaged, so its plane can't be placed")
    if not (spacing > 1e-6).all() or spacing.max() > LARGEST_MM:
        raise ScanError("Pixel Spacing isn't positive, so its pixels have no size")
    row, column = both[:3], both[3:]
    lengths = np.linalg.norm(row), np.linalg.norm(column)
    if max(abs(n - 1) for n in lengths) > 0.01 or abs(float(row @ column)) > 0.01:
        raise ScanError("Image Orientation (Patient) isn't two directions at a right angle")
    if max(abs(n - 1) for n in lengths) > 1e-4:  # beyond rounding; else what the header says
        both = np.concatenate([row / lengths[0], column / lengths[1]])
    return position, both, spacing


def _picture_spacing(data: Dataset) -> tuple[np.ndarray | None, str]:
    """Return row and column spacing in mm, or None, and what is to be said of it."""
    for keyword, note in (
        ("PixelSpacing", ""),
        ("ImagerPixelSpacing", "The spacing is that at the detector, not in the patient."),
        ("NominalScannedPixelSpacing", "The spacing is that of the scanned film or plate."),
    ):
        spacing = numbers(fetch(data, keyword), 2)
        if spacing is not None and (spacing > 1e-6).all() and spacing.max() < LARGEST_MM:
            return spacing, note
    regions = fetch(data, "SequenceOfUltrasoundRegions") or []
    steps = set()
    for region in regions:
        units = [fetch(region, f"PhysicalUnits{axis}Direction") for axis in "XY"]
        delta = numbers([fetch(region, f"PhysicalDelta{axis}") for axis in "YX"], 2)
        if units == [3, 3] and delta is not None:  # centimetres
            steps.add(tuple(np.abs(delta) * 10))
    if len(steps) == 1 and min(max(steps)) > 1e-6:
        return np.array(max(steps)), ""
    return None, "The file gives no pixel spacing; 1 is taken for it."


def _marks(groups: Groups, frame: int) -> dict[str, str]:
    found: dict[str, str] = {}
    for name, sequence, keywords in _MARKS:
        value = groups.get(frame, sequence, *keywords)
        if value is not None:
            found.setdefault(name, "\\".join(words(value)))
    for item in groups.items(frame, "MRDiffusionSequence"):
        way = fetch(item, "DiffusionGradientDirectionSequence") or [item]
        value = fetch(way[0], "DiffusionGradientOrientation")
        if value is not None:
            found.setdefault("direction", "\\".join(words(value)))
    indices = groups.get(frame, "FrameContentSequence", "DimensionIndexValues")
    return found | {f"dimension {n}": value for n, value in enumerate(words(indices), 1)}
