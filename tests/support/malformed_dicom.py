"""Malformed DICOM: files, series and archives, with pydicom and struct alone."""

from __future__ import annotations

import copy
import struct
from collections.abc import Callable, Iterator
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
from pydicom import config
from pydicom import uid as U
from pydicom.dataset import Dataset

from tests.support import dicom_files as D
from tests.support import dicom_planes as G
from tests.support.malformed import SECRET, Case, Make, Odd, addressed

NAMES = {"PatientName": f"{SECRET}^NAME", "PatientID": f"{SECRET}-17", "SeriesNumber": 4}
PLANES = G.make_planes(count=4, shape=(6, 5))
VALUES = np.arange(4 * 6 * 5, dtype=float).reshape(4, 6, 5) * 7
PLAIN = G.Encoding(1, 0)
TEXT = "7777777"  # a number that becomes a text once it is written
WORDS = f"{SECRET}!"
NAN = "8888"


@cache
def _plane(place: int) -> Dataset:
    data = D.base(D.SINGLE["MR"], "MR", "main", place, **D.ACQUISITION["MR"], **NAMES)
    data.ImageType, data.InstanceNumber = ["ORIGINAL", "PRIMARY", "OTHER"], place + 1
    D.add_pixels(data, PLAIN.stored(VALUES[place]), PLAIN, "MONOCHROME2")
    data.ImagePositionPatient = [D.decimal(v) for v in PLANES.positions[place]]
    data.ImageOrientationPatient = [1, 0, 0, 0, 1, 0]
    data.PixelSpacing, data.SliceThickness = ["0.9", "1.3"], "2"
    data.RescaleSlope, data.RescaleIntercept = "1", "0"
    return data


def plane(
    path: Path, place: int = 0, syntax: str = U.ExplicitVRLittleEndian, **changes: Any
) -> Path:
    """Write a plane; None deletes an attribute, ``TEXT`` and ``NAN`` become text in its place."""
    data = copy.deepcopy(_plane(place))
    with config.disable_value_validation():
        return _saved(path, data, syntax, **changes)


def _saved(
    path: Path, data: Dataset, syntax: str = U.ExplicitVRLittleEndian, **changes: Any
) -> Path:
    for name, value in changes.items():
        if value is None:
            del data[name]
        else:
            setattr(data, name, value)
    D.save(path, data, syntax)
    content = path.read_bytes().replace(TEXT.encode(), WORDS.encode())
    path.write_bytes(content.replace(NAN.encode(), b" nan"))
    return path


def bytes_of(place: int = 0, syntax: str = U.ExplicitVRLittleEndian, **changes: Any) -> bytes:
    import tempfile

    with tempfile.TemporaryDirectory() as folder:
        return plane(Path(folder) / "a", place, syntax, **changes).read_bytes()


def single(**changes: Any) -> Make:
    return lambda folder: plane(folder / "IM1", **changes)


def series(*changes: dict[str, Any], count: int = 4) -> Make:
    """Planes of one series, the first of them changed one by one."""

    def make(folder: Path) -> Path:
        for place in range(count):
            more = changes[place] if place < len(changes) else {}
            plane(folder / "study" / f"IM{place}", place, **more)
        return folder / "study"

    return make


def enhanced(change: Callable[[Dataset], None]) -> Make:
    def make(folder: Path) -> Path:
        import pydicom

        path = D.write_enhanced(folder / "IM1", PLANES, VALUES, encoding=PLAIN)[0]
        data = pydicom.dcmread(path)
        with config.disable_value_validation():
            change(data)
            return _saved(path, data, **NAMES)

    return make


def picture(stored: np.ndarray, photometric: str = "MONOCHROME2", syntax: str = U.ExplicitVRLittleEndian,
            **changes: Any) -> Make:  # fmt: skip
    """A radiograph; changes are made after it was compressed."""

    def make(folder: Path) -> Path:
        import pydicom

        path = D.write_image(folder / "IM1", stored, "DX", photometric, syntax=syntax, **NAMES)
        data = pydicom.dcmread(path)
        with config.disable_value_validation():
            for name, value in changes.items():
                if value is None:
                    del data[name]
                elif name == "TransferSyntaxUID":
                    data.file_meta.TransferSyntaxUID = value
                else:
                    setattr(data, name, value)
            data.save_as(path, enforce_file_format=True) if changes else None
        return path

    return make


BAD, NONE = "this DICOM file is damaged", "holds no pixels"
CUT = "truncated, or contradicts itself"
ITEMS = b"\xfe\xff\0\xe0\0\0\0\0\xfe\xff\0\xe0"  # an empty table of offsets, and a frame
GREY = (np.arange(32)[:, None] * 3 + np.arange(32)).astype("u1")
HUGE = {"Rows": 60000, "Columns": 60000}


def headers() -> Iterator[tuple[str, dict[str, Any], str]]:
    """What one attribute, or two that contradict each other, does to a file."""
    for name in ("Rows", "Columns"):
        yield f"no {name}", {name: None}, NONE
        yield f"{name} 0", {name: 0}, NONE
        yield f"{name} too many", {name: 60000}, CUT
    yield "more pixels than bytes", {"Rows": 7}, CUT
    yield "no pixels", {"PixelData": None}, NONE
    yield "empty pixels", {"PixelData": b""}, CUT
    yield "half the pixels", {"PixelData": b"\1\2" * 15}, CUT
    for bits in (0, 13, 24, 128):
        yield f"{bits} bits allocated", {"BitsAllocated": bits}, f"1 samples of {bits} bits a pixel"
    yield "no bits allocated", {"BitsAllocated": None}, "1 samples of 0 bits a pixel"
    yield "more bits than allocated", {"BitsStored": 99}, BAD
    yield "no bits stored", {"BitsStored": 0}, BAD
    yield "high bit above", {"HighBit": 40}, "high bit 40 contradicts"
    yield "high bit below", {"HighBit": 2}, "high bit 2 contradicts"
    yield "7 samples", {"SamplesPerPixel": 7}, "7 samples of 16 bits"
    yield "2 samples", {"SamplesPerPixel": 2}, "2 samples of 16 bits"
    yield "3 samples of grey", {"SamplesPerPixel": 3}, CUT
    yield "photometric unknown", {"PhotometricInterpretation": "RAINBOW"}, BAD
    yield "photometric missing", {"PhotometricInterpretation": None}, BAD
    yield "palette without tables", {"PhotometricInterpretation": "PALETTE COLOR"}, "no palette"
    yield "sign 7", {"PixelRepresentation": 7}, BAD
    yield "sign missing", {"PixelRepresentation": None}, BAD
    for count in (-1, 2, 2**31 - 1, 10**11):
        yield f"{count} frames", {"NumberOfFrames": count}, CUT if count > 0 else BAD
    yield "frames as text", {"NumberOfFrames": TEXT}, BAD
    for name, position in {
        "nan": [NAN, "0", "0"], "text": [TEXT, "0", "0"], "two numbers": ["0", "0"],
        "four numbers": ["0"] * 4, "beyond all patients": ["0", "1e30", "0"],
        "infinite": ["0", "1e999", "0"],
    }.items():  # fmt: skip
        yield f"position {name}", {"ImagePositionPatient": position}, "Image Position"
    for name, directions in {
        "zero": [0] * 6, "skew": [1, 0, 0, 0.5, 0.8, 0], "twice the same": [1, 0, 0, 1, 0, 0],
        "not of length one": [2, 0, 0, 0, 2, 0], "five numbers": [1, 0, 0, 0, 1],
        "nan": [NAN, 0, 0, 0, 1, 0], "text": [TEXT, 0, 0, 0, 1, 0], "empty": "",
        "missing": None, "infinite": ["1e999", 0, 0, 0, 1, 0],
    }.items():  # fmt: skip
        yield f"orientation {name}", {"ImageOrientationPatient": directions}, "Image Orientation"
    for name, spacing in {
        "0": [0, 0], "negative": [-1, 1], "nan": [NAN, 1], "one number": "0.9", "text": [TEXT, 1],
        "empty": "", "missing": None, "tiny": ["1e-9", "1e-9"], "huge": ["1e9", "1"],
        "infinite": ["1e999", 1], "three numbers": [1, 1, 1],
    }.items():  # fmt: skip
        yield f"spacing {name}", {"PixelSpacing": spacing}, "Pixel Spacing"
    for name, slope in {"0": "0", "nan": NAN, "text": TEXT, "infinite": "1e999"}.items():
        yield f"slope {name}", {"RescaleSlope": slope}, "RescaleSlope is no number"
    yield "slope beyond float32", {"RescaleSlope": "1e300"}, "range of float32"
    yield "intercept text", {"RescaleIntercept": TEXT}, "RescaleIntercept is no number"
    yield "intercept beyond float32", {"RescaleIntercept": "1e300"}, "range of float32"
    yield "all pixels alike", {"PixelData": b"\1\2" * 30}, "every pixel is 513"
    yield "all padding", {"PixelData": b"\1\2" * 30, "PixelPaddingValue": 513}, "padding value"
    yield "mosaic", {"ImageType": ["ORIGINAL", "PRIMARY", "MOSAIC"]}, "a mosaic"
    yield "report with pixels", {"SOPClassUID": U.BasicTextSRStorage}, "a report, no image"


def folders() -> Iterator[tuple[str, Make, str]]:
    """Series that contradict themselves."""
    same = {"ImagePositionPatient": [0, 0, 0]}
    yield (
        "no file of a position",
        series(*[{"ImagePositionPatient": None}] * 4),
        "has no position and orientation",
    )
    yield "all at one place", series(*[same] * 4), "several images lie at one place"
    yield (
        "one place twice",
        series({"ImagePositionPatient": list(PLANES.positions[1])}),
        "several images lie at one place",
    )
    yield "other rows", series({"Rows": 5}, {"Rows": 4}), "3 DICOM series"
    yield "each of another size", series(*[{"Rows": 6 - n} for n in range(4)]), "mixed"
    turned = [[1, 0, 0, 0, 1, 0], [0, 1, 0, 0, 0, -1], [1, 0, 0, 0, 0, -1], [0, 1, 0, 1, 0, 0]]
    yield "each turned", series(*[{"ImageOrientationPatient": t} for t in turned]), "mixed"
    yield (
        "each of another spacing",
        series(*[{"PixelSpacing": [n, n]} for n in (1, 2, 3, 4)]),
        "mixed",
    )
    yield (
        "a gap of a metre",
        series(*[{}] * 3, {"ImagePositionPatient": [0, 0, 1000]}),
        "lie 955 mm, elsewhere 2.5 mm",
    )
    yield (
        "planes drift away",
        series(*[{"ImagePositionPatient": [99 * n, 0, n]} for n in range(4)]),
        "drift sideways",
    )
    yield (
        "all localisers",
        series(*[{"ImageType": ["ORIGINAL", "PRIMARY", "LOCALIZER"]}] * 4),
        "a localiser",
    )
    yield "all damaged", series(*[{"BitsAllocated": 13}] * 4), "13 bits"
    yield (
        "all screenshots",
        series(
            *[{"SOPClassUID": U.SecondaryCaptureImageStorage, "ImagePositionPatient": None}] * 4
        ),
        "a secondary capture",
    )
    yield (
        "two series",
        series({"SeriesInstanceUID": "1.2", "Rows": 5}, {"SeriesInstanceUID": "1.2", "Rows": 5}),
        "2 DICOM series",
    )
    lost = {"RescaleSlope": None, "RescaleIntercept": None}
    yield "rescale of some alone", series({"RescaleIntercept": "-1024"}, lost), "different scales"
    yield "one slope beyond all numbers", series({}, {"RescaleSlope": "1e300"}), "range of float32"


def multiframe() -> Iterator[tuple[str, Make, str]]:
    def deleted(name: str) -> Callable[[Dataset], None]:
        return lambda data: data.pop(name)

    def fewer(data: Dataset) -> None:
        data.PerFrameFunctionalGroupsSequence = data.PerFrameFunctionalGroupsSequence[:2]

    def more(data: Dataset) -> None:
        data.NumberOfFrames = 9

    def short(data: Dataset) -> None:
        data.PixelData = data.PixelData[:60]

    def groups(change: Callable[[Dataset, int], None]) -> Callable[[Dataset], None]:
        def apply(data: Dataset) -> None:
            for n, one in enumerate(data.PerFrameFunctionalGroupsSequence):
                change(one, n)

        return apply

    def at_origin(one: Dataset, n: int) -> None:
        one.PlanePositionSequence[0].ImagePositionPatient = [0, 0, 0]
        one.FrameContentSequence = []

    def nowhere(one: Dataset, n: int) -> None:
        if n == 2:
            one.PlanePositionSequence[0].ImagePositionPatient = [NAN, 0, 0]

    def empty(one: Dataset, n: int) -> None:
        one.PlanePositionSequence = []

    yield (
        "no shared groups",
        enhanced(deleted("SharedFunctionalGroupsSequence")),
        "Image Orientation",
    )
    yield (
        "no groups of the frames",
        enhanced(deleted("PerFrameFunctionalGroupsSequence")),
        "4 frames that don't make a volume",
    )
    yield "fewer groups than frames", enhanced(fewer), "functional groups for 2"
    yield "more frames than groups", enhanced(more), CUT
    yield "fewer frames than declared", enhanced(short), CUT
    yield "all frames at one place", enhanced(groups(at_origin)), "several images lie at one place"
    yield "one frame nowhere", enhanced(groups(nowhere)), "Image Position"
    yield "empty positions of frames", enhanced(groups(empty)), "4 frames that don't make a volume"


def compressed() -> Iterator[tuple[str, Make, str]]:
    """Streams and headers of different opinions."""
    for syntax in (*D.LOSSLESS, U.JPEGBaseline8Bit):
        name = syntax.name.split(" (")[0]
        yield (
            f"{name}: huge",
            picture(GREY, syntax=syntax, **HUGE),
            "the header declares 3600000000 values",
        )
        yield (
            f"{name}: no stream",
            picture(GREY, syntax=syntax, PixelData=ITEMS + b"\4\0\0\0abcd"),
            BAD,
        )
        two = picture(GREY, syntax=syntax, NumberOfFrames=2)
        yield f"{name}: a frame too few", addressed(two, "#frame=1"), "holds 1|damaged"
    yield (
        "RLE: more segments than bytes",
        picture(
            GREY,
            syntax=U.RLELossless,
            PixelData=ITEMS + b"\x40\0\0\0" + struct.pack("<16I", 15, *range(64, 79)),
        ),
        BAD,
    )
    wide = struct.pack(">HHHIIIIIIII", 0xFF4F, 0xFF51, 41, 0, 2**31, 2**31, 0, 0, 2**31, 2**31, 0)
    yield (
        "JPEG 2000: 2**31 wide",
        picture(
            GREY, syntax=U.JPEG2000Lossless, PixelData=ITEMS + struct.pack("<I", len(wide)) + wide
        ),
        "its compressed image 32768 x 32768",
    )


def _reports(folder: Path) -> Path:
    for n in range(3):
        D.write_report(folder / "study" / f"SR{n}")
    (folder / "study" / "README").write_text(SECRET)
    return folder / "study"


def _texts(folder: Path) -> Path:
    (folder / "study").mkdir()
    (folder / "study" / "README").write_text(SECRET)
    return folder / "study"


def cases() -> list[Case]:
    found = [Case(f"dicom {name}", single(**changes), says) for name, changes, says in headers()]
    for part, label in ((folders, "series"), (multiframe, "enhanced"), (compressed, "packed")):
        found += [Case(f"{label} {name}", make, says) for name, make, says in part()]
    found.append(Case("series of reports", _reports, "a report, no image"))
    found.append(Case("folder of texts", _texts, "without DICOM"))
    return found


def odd() -> list[Odd]:
    flat, whole = VALUES[0], VALUES
    square, cube = (6, 5), (5, 6, 4)
    found = [
        ("RGB of one sample", single(PhotometricInterpretation="RGB"), square, flat),
        ("0 frames", single(NumberOfFrames=0), square, flat),
        (
            "more pixels than it needs",
            single(PixelData=bytes(_plane(0).PixelData) * 3),
            square,
            flat,
        ),
        ("no place in the patient", single(ImagePositionPatient=None), square, flat),
        ("empty place", single(ImagePositionPatient=""), square, flat),
        ("slope and intercept empty", single(RescaleSlope="", RescaleIntercept=""), square, flat),
        ("window of text", single(WindowCenter=TEXT, WindowWidth="0"), square, flat),
        ("numbers as text", single(SeriesNumber=TEXT, InstanceNumber=TEXT), square, flat),
        (
            "directions rounded",
            single(ImageOrientationPatient=[0.9999, 0.001, 0, 0, 1, 0]),
            square,
            flat,
        ),
        ("no modality", single(Modality=None), square, flat),
        ("no series", single(SeriesInstanceUID=None, SeriesNumber=None), square, flat),
        ("order of the files", series(*[{"InstanceNumber": 1}] * 4), cube, whole),
        ("one without a place", series({"ImagePositionPatient": None}), (5, 6, 3), whole[1:]),
        ("one of another size", series({"Rows": 5}), (5, 6, 3), whole[1:]),
        ("one damaged", series(*[{}] * 3, {"BitsAllocated": 13}), (5, 6, 3), whole[:3]),
        ("no frame of reference", series({"FrameOfReferenceUID": None}), cube, whole),
        ("texts beside", _among_texts, cube, whole),
    ]
    return [Odd(name, make, shape, float(v.mean())) for name, make, shape, v in found]


def _among_texts(folder: Path) -> Path:
    path = series()(folder)
    (path / "README").write_text(SECRET)
    (path / "empty").touch()
    (path / "copy").write_bytes((path / "IM2").read_bytes())
    (path / "DICOMDIR").write_bytes(b"\0" * 128 + b"DICM" + SECRET.encode())
    return path
