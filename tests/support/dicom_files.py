"""DICOM files made by the tests, in every usual form, with pydicom alone."""

from __future__ import annotations

import struct
from dataclasses import replace
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
import pydicom
from pydicom import uid as U
from pydicom.dataset import Dataset, FileDataset, FileMetaDataset
from pydicom.uid import generate_uid

from tests.support.dicom_planes import CORONAL, Encoding, Planes, make_planes

LOSSLESS = (U.RLELossless, U.JPEGLSLossless, U.JPEG2000Lossless, U.JPEGLosslessSV1)
NATIVE = (
    U.ImplicitVRLittleEndian, U.ExplicitVRLittleEndian, U.ExplicitVRBigEndian,
    U.DeflatedExplicitVRLittleEndian,
)  # fmt: skip
PATIENT = {"PatientName": "Ramp^Invented", "PatientID": "RAMP-4711", "PatientBirthDate": "19510203"}
SINGLE = {
    "CT": U.CTImageStorage,
    "MR": U.MRImageStorage,
    "CR": U.ComputedRadiographyImageStorage,
    "DX": U.DigitalXRayImageStorageForPresentation,
    "MG": U.DigitalMammographyXRayImageStorageForPresentation,
    "OT": U.SecondaryCaptureImageStorage,
}
ENHANCED = {"CT": U.EnhancedCTImageStorage, "MR": U.EnhancedMRImageStorage}
# What the two modules ask for besides image and geometry (PS3.3 C.8.2.1 and C.8.3.1).
ACQUISITION: dict[str, dict[str, Any]] = {
    "CT": {"KVP": "120", "AcquisitionNumber": "1"},
    "MR": {
        "ScanningSequence": "GR", "SequenceVariant": "SP", "ScanOptions": "", "EchoTrainLength": 1,
        "MRAcquisitionType": "3D", "RepetitionTime": "10", "EchoTime": "3",
        "MagneticFieldStrength": "3", "FlipAngle": "9",
    },
}  # fmt: skip


def decimal(value: float, long: bool = False) -> str:
    """A decimal string; ``long`` breaks the limit of 16 characters, as many real files do."""
    if long:
        return f"{value:.20f}"
    from pydicom.valuerep import format_number_as_ds

    return format_number_as_ds(float(value))


def base(sop_class: str, modality: str, series: str, instance: int | str, **header: Any) -> Dataset:
    """Patient, study, series and SOP common modules; UIDs follow from the names."""
    data = Dataset()
    data.SOPClassUID = sop_class
    data.SOPInstanceUID = generate_uid(entropy_srcs=[series, modality, str(instance)])
    data.StudyInstanceUID = generate_uid(entropy_srcs=["study"])
    data.SeriesInstanceUID = generate_uid(entropy_srcs=["series", series])
    data.FrameOfReferenceUID = generate_uid(entropy_srcs=["frame"])
    data.Modality, data.SeriesNumber, data.StudyID = modality, len(series), "1"
    data.SeriesDescription, data.Manufacturer = series, "Invented"
    data.StudyDate = data.SeriesDate = data.AcquisitionDate = data.ContentDate = "20200102"
    data.StudyTime = data.SeriesTime = data.AcquisitionTime = data.ContentTime = "030405"
    data.AccessionNumber = data.ReferringPhysicianName = data.PositionReferenceIndicator = ""
    data.PatientSex, data.PatientPosition = "O", "HFS"
    for name, value in {**PATIENT, **header}.items():
        if name in data and value is None:
            delattr(data, name)
        elif value is not None:
            setattr(data, name, value)
    return data


def add_pixels(data: Dataset, stored: np.ndarray, encoding: Encoding, photometric: str) -> None:
    """Image pixel module of (rows, columns), (frames, rows, columns) or RGB (..., 3) integers."""
    colour = stored.shape[-1] == 3 and photometric in ("RGB", "YBR_FULL")
    shape = stored.shape[:-1] if colour else stored.shape
    data.Rows, data.Columns = shape[-2:]
    if len(shape) == 3:
        data.NumberOfFrames = shape[0]
    data.SamplesPerPixel, data.PhotometricInterpretation = 3 if colour else 1, photometric
    if colour:
        data.PlanarConfiguration = 0
    data.BitsAllocated, data.BitsStored = encoding.allocated, encoding.bits
    data.HighBit, data.PixelRepresentation = encoding.bits - 1, int(encoding.signed)
    if encoding.signed and encoding.bits < encoding.allocated:
        # Bits above the high bit hold nothing (PS3.5 8.1.1): fill them with rubbish on odd pixels.
        stored = stored.astype(np.uint16) & (2**encoding.bits - 1)
        stored.reshape(-1)[1::2] |= 1 << (encoding.allocated - 1)
    data.PixelData = stored.tobytes() + b"\0" * (stored.nbytes % 2)
    data["PixelData"].VR = "OB" if encoding.allocated == 8 else "OW"


def save(path: Path, data: Dataset, syntax: str = U.ExplicitVRLittleEndian, preamble=True) -> Path:
    """Write a data set as a Part 10 file in a transfer syntax; without the preamble when asked."""
    path.parent.mkdir(parents=True, exist_ok=True)
    meta = FileMetaDataset()
    meta.TransferSyntaxUID = syntax if syntax in NATIVE else U.ExplicitVRLittleEndian
    if syntax == U.ExplicitVRBigEndian and data.get("BitsAllocated") == 16:
        data.PixelData = np.frombuffer(data.PixelData, "<u2").astype(">u2").tobytes()
    file = FileDataset(str(path), data, file_meta=meta, preamble=b"\0" * 128)
    if syntax in (U.RLELossless, U.JPEGLSLossless, U.JPEG2000Lossless):
        file.compress(syntax, generate_instance_uid=False)
    with pydicom.config.disable_value_validation():
        buffer = BytesIO()
        pydicom.dcmwrite(buffer, file, enforce_file_format=True)
    path.write_bytes(buffer.getvalue()[0 if preamble else 132 :])
    if syntax in (U.JPEGLosslessSV1, U.JPEGBaseline8Bit):
        transcode(path, syntax)
    return path


def transcode(path: Path, syntax: str) -> None:
    """Compress a file in place with GDCM."""
    import gdcm

    reader, change, writer = (
        gdcm.ImageReader(),
        gdcm.ImageChangeTransferSyntax(),
        gdcm.ImageWriter(),
    )
    reader.SetFileName(str(path))
    assert reader.Read()
    kind = gdcm.TransferSyntax.GetTSType(str(syntax))
    change.SetTransferSyntax(gdcm.TransferSyntax(kind))
    change.SetInput(reader.GetImage())
    assert change.Change()
    writer.SetFileName(str(path))
    writer.SetFile(reader.GetFile())
    writer.SetImage(change.GetOutput())
    assert writer.Write()
    if syntax == U.JPEGBaseline8Bit:
        data = pydicom.dcmread(path)
        data.LossyImageCompression, data.LossyImageCompressionMethod = "01", "ISO_10918_1"
        data.LossyImageCompressionRatio = "4"
        data.save_as(path)


def write_series(
    folder: Path,
    planes: Planes,
    values: np.ndarray,
    modality: str = "CT",
    series: str = "ramp",
    encoding: Encoding | None = None,
    photometric: str = "MONOCHROME2",
    syntax: str = U.ExplicitVRLittleEndian,
    shuffle: int | None = None,
    first: int = 0,
    long: bool = False,
    preamble: bool = True,
    header: dict[str, Any] | None = None,
) -> list[Path]:
    """Write one single-frame file per plane; return the paths in the order of ``planes``.

    Args:
        folder: where the files go, made when absent.
        planes: geometry of the n planes.
        values: (n, rows, columns) what a reader must find after the rescale.
        modality: CT, MR or OT.
        series: name from which UID, number and description follow.
        encoding: slope, intercept and bits; the finest 16 bit unsigned one by default.
        photometric: MONOCHROME1 or MONOCHROME2.
        syntax: one of ``NATIVE`` or ``LOSSLESS``, or JPEG baseline.
        shuffle: seed of file names and Instance Numbers that have nothing to do with the place;
            None numbers the planes as they come.
        first: number in the name of the first file.
        long: decimal strings with over 16 characters.
        preamble: False leaves out the 128 bytes and ``DICM``.
        header: attributes over the usual ones; None deletes, ``""`` empties.
    """
    encoding = encoding or Encoding.of(values)
    count = len(planes.positions)
    names, numbers = np.arange(count), np.arange(1, count + 1)
    if shuffle is not None:
        rng = np.random.default_rng(shuffle)
        names, numbers = rng.permutation(names), rng.permutation(numbers)
    paths = []
    for k, stored in enumerate(encoding.stored(values)):
        data = base(SINGLE[modality], modality, series, k, **ACQUISITION.get(modality, {}))
        data.ImageType = ["ORIGINAL", "PRIMARY", "AXIAL" if modality == "CT" else "OTHER"]
        data.InstanceNumber = int(numbers[k])
        add_pixels(data, stored, encoding, photometric)
        with pydicom.config.disable_value_validation():
            data.ImagePositionPatient = [decimal(v, long) for v in planes.positions[k]]
            both = (*planes.rows_along, *planes.columns_along)
            data.ImageOrientationPatient = [decimal(v, long) for v in both]
            data.PixelSpacing = [decimal(v, long) for v in planes.spacing]
            data.SliceThickness = "2"
            data.RescaleSlope = decimal(encoding.slope, long)
            data.RescaleIntercept = decimal(encoding.intercept, long)
            data.RescaleType = "HU" if modality == "CT" else "US"
            for name, value in (header or {}).items():
                if value is None:
                    data.pop(name, None)
                else:
                    setattr(data, name, value)
        paths.append(save(folder / f"IM{first + names[k]:04d}", data, syntax, preamble))
    return paths


def item(**attributes: Any) -> list[Dataset]:
    """A sequence of one item."""
    data = Dataset()
    for name, value in attributes.items():
        setattr(data, name, value)
    return [data]


def write_enhanced(
    path: Path,
    planes: Planes,
    values: np.ndarray,
    modality: str = "MR",
    series: str = "ramp",
    encoding: Encoding | None = None,
    syntax: str = U.ExplicitVRLittleEndian,
    shuffle: int | None = None,
    own_rescale: bool = False,
    per_frame: bool = False,
) -> list[Path]:
    """Write one multi-frame file with functional groups; see ``write_series``.

    Frame f, from 0, holds plane ``frame_order(n, shuffle)[f]``; the one path comes in a list.

    Args:
        path: the file.
        planes: geometry of the n planes.
        values: (n, rows, columns) what a reader must find after the rescale.
        modality: CT or MR.
        series: name from which UID, number and description follow.
        encoding: as for single frames.
        syntax: transfer syntax.
        shuffle: seed of the order in which the frames are stored; None stores them as they come.
        own_rescale: each frame has a slope and an intercept of its own.
        per_frame: orientation and spacing stand in every frame, not in the shared groups.
    """
    data = base(ENHANCED[modality], modality, series, 0)
    kind = {
        "PixelPresentation": "MONOCHROME",
        "VolumetricProperties": "VOLUME",
        "VolumeBasedCalculationTechnique": "NONE",
    }
    frame_type = ["ORIGINAL", "PRIMARY", "VOLUME", "NONE"]
    data.update(item(ImageType=frame_type, InstanceNumber=1, **kind)[0])
    data.PresentationLUTShape = "IDENTITY"
    data.BurnedInAnnotation, data.LossyImageCompression = "NO", "00"
    data.AcquisitionDateTime, data.ContentQualification = "20200102030405", "RESEARCH"
    organisation = generate_uid(entropy_srcs=["dimensions", series])
    data.DimensionOrganizationSequence = item(DimensionOrganizationUID=organisation)
    data.DimensionIndexSequence = [
        item(
            DimensionOrganizationUID=organisation,
            DimensionIndexPointer=pydicom.tag.Tag(name),
            FunctionalGroupPointer=pydicom.tag.Tag("FrameContentSequence"),
        )[0]
        for name in ("StackID", "InStackPositionNumber")
    ]
    both = (*planes.rows_along, *planes.columns_along)
    grid = {
        "PixelMeasuresSequence": item(
            PixelSpacing=[decimal(v) for v in planes.spacing], SliceThickness="2"
        ),
        "PlaneOrientationSequence": item(ImageOrientationPatient=[decimal(v) for v in both]),
    }
    data.SharedFunctionalGroupsSequence = item(**({} if per_frame else grid))
    count = len(planes.positions)
    frames, groups = [], []
    usual = encoding or Encoding.of(values)
    for frame, k in enumerate(frame_order(count, shuffle)):
        mine = usual
        if own_rescale:
            mine = replace(Encoding.of(values[k]), slope=usual.slope * (1 + k % 3))
        frames.append(mine.stored(values[k]))
        groups += item(
            FrameContentSequence=item(
                StackID="1",
                InStackPositionNumber=int(k + 1),
                DimensionIndexValues=[1, int(k + 1)],
                FrameAcquisitionNumber=frame + 1,
                FrameReferenceDateTime="20200102030405",
                FrameAcquisitionDateTime="20200102030405",
                FrameAcquisitionDuration=1.0,
            ),
            PlanePositionSequence=item(
                ImagePositionPatient=[decimal(v) for v in planes.positions[k]]
            ),
            PixelValueTransformationSequence=item(
                RescaleSlope=decimal(mine.slope),
                RescaleIntercept=decimal(mine.intercept),
                RescaleType="HU" if modality == "CT" else "US",
            ),
            **{f"{modality}ImageFrameTypeSequence": item(FrameType=frame_type, **kind)},
            **(grid if per_frame else {}),
        )
    data.PerFrameFunctionalGroupsSequence = groups
    add_pixels(data, np.stack(frames), usual, "MONOCHROME2")
    return [save(path, data, syntax)]


def frame_order(count: int, shuffle: int | None) -> np.ndarray:
    """(count,) plane that each stored frame holds."""
    order = np.arange(count)
    return order if shuffle is None else np.random.default_rng(shuffle).permutation(order)


def write_image(
    path: Path,
    stored: np.ndarray,
    modality: str,
    photometric: str = "MONOCHROME2",
    spacing: tuple[float, float] | None = (0.2, 0.1),
    bits: int | None = None,
    syntax: str = U.ExplicitVRLittleEndian,
    **header: Any,
) -> Path:
    """Write a radiograph (CR, DX), a mammogram (MG), or ultrasound (US) of one or more frames.

    Args:
        path: the file.
        stored: (rows, columns) or (frames, rows, columns) integers, (..., 3) for RGB and YBR_FULL;
            for ``PALETTE COLOR`` the indices into ``palette()``.
        modality: CR, DX, MG or US.
        photometric: MONOCHROME1, MONOCHROME2, RGB, YBR_FULL or PALETTE COLOR.
        spacing: row and column spacing in mm at the detector, or of the ultrasound region.
        bits: bits stored; all by default.
        syntax: transfer syntax.
        header: further attributes.
    """
    many = stored.ndim - (photometric in ("RGB", "YBR_FULL")) == 3
    ultrasound = U.UltrasoundMultiFrameImageStorage if many else U.UltrasoundImageStorage
    data = base(SINGLE.get(modality, ultrasound), modality, path.stem, 0, **header)
    data.ImageType, data.InstanceNumber = ["ORIGINAL", "PRIMARY", ""], 1
    del data.FrameOfReferenceUID
    size = stored.dtype.itemsize * 8
    add_pixels(
        data, stored, Encoding(1, 0, bits or size, stored.dtype.kind == "i", size), photometric
    )
    if photometric == "PALETTE COLOR":
        for name, column in zip(("Red", "Green", "Blue"), palette().T, strict=True):
            setattr(data, f"{name}PaletteColorLookupTableDescriptor", [256, 0, 16])
            table = struct.pack("<256H", *(int(v) * 257 for v in column))
            setattr(data, f"{name}PaletteColorLookupTableData", table)
    data.PatientOrientation = ["L", "F"]
    if many:
        data.FrameTime, data.FrameIncrementPointer = "40", pydicom.tag.Tag("FrameTime")
    if modality == "US" and spacing:
        data.SequenceOfUltrasoundRegions = item(
            RegionSpatialFormat=1, RegionDataType=1, RegionFlags=0,
            RegionLocationMinX0=0, RegionLocationMinY0=0,
            RegionLocationMaxX1=data.Columns - 1, RegionLocationMaxY1=data.Rows - 1,
            PhysicalUnitsXDirection=3, PhysicalUnitsYDirection=3,  # centimetres
            PhysicalDeltaX=spacing[1] / 10, PhysicalDeltaY=spacing[0] / 10,
        )  # fmt: skip
    elif spacing:
        data.ImagerPixelSpacing = [decimal(v) for v in spacing]
    return save(path, data, syntax)


def palette() -> np.ndarray:
    """(256, 3) uint8 colours of the palette files."""
    index = np.arange(256)
    return np.stack([index, 255 - index, index * 7 % 256], axis=1).astype(np.uint8)


def write_report(path: Path, series: str = "report") -> Path:
    """Write a structured report, which has no pixels and belongs in no volume."""
    data = base(U.BasicTextSRStorage, "SR", series, 0)
    data.InstanceNumber, data.ValueType, data.ContinuityOfContent = 1, "CONTAINER", "SEPARATE"
    data.CompletionFlag, data.VerificationFlag = "COMPLETE", "UNVERIFIED"
    title = item(CodeValue="18748-4", CodingSchemeDesignator="LN", CodeMeaning="Diagnostic report")
    data.ConceptNameCodeSequence = title
    return save(path, data)


def write_mixed(folder: Path, planes: Planes, values: np.ndarray) -> dict[str, list[Path]]:
    """Write a localiser, two series on different planes and a report into one folder."""
    half = replace(planes, positions=planes.positions[::2] + 3)
    across = make_planes(CORONAL, count=1, shape=planes.shape)
    scout = {"ImageType": ["ORIGINAL", "PRIMARY", "LOCALIZER"]}
    return {
        "scout": write_series(folder, across, values[:1], series="scout", header=scout, first=100),
        "main": write_series(folder, planes, values, series="main", shuffle=1),
        "second": write_series(folder, half, values[::2], series="second", shuffle=2, first=200),
        "report": [write_report(folder / "IM0300")],
    }


def edit(path: Path, **values) -> Path:
    """Change or delete elements of a file as they are, right or wrong."""
    data = pydicom.dcmread(path)
    for name, value in values.items():
        if value is None:
            delattr(data, name)
        else:
            setattr(data, name, value)
    with pydicom.config.disable_value_validation():
        data.save_as(path)
    return path
