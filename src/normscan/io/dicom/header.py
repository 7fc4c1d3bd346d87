"""Headers made legal, so that what is derived from a series can be written beside it."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from normscan.io.dicom.source import quiet
from normscan.io.dicom.values import number

if TYPE_CHECKING:
    from pydicom.dataset import Dataset

LARGEST_VALUE = 2**16  # bytes of one value that is kept
DEEPEST = 16  # sequences within sequences

# What the images of a series share. A gap is filled where all others agree.
_STUDY = (
    "StudyInstanceUID", "SeriesInstanceUID", "FrameOfReferenceUID", "PatientName", "PatientID",
    "PatientBirthDate", "PatientSex", "PatientAge", "PatientWeight", "PatientSize", "StudyDate",
    "StudyTime", "StudyID", "AccessionNumber", "ReferringPhysicianName", "StudyDescription",
    "SeriesNumber", "SeriesDate", "SeriesTime", "Modality", "Manufacturer", "SOPClassUID",
    "BodyPartExamined", "Laterality", "PatientPosition", "PositionReferenceIndicator",
    "SpecificCharacterSet", "ImageType",
)  # fmt: skip
# What must be there and may be empty (Type 2) in the patient and study modules of every image.
_MAY_BE_EMPTY = (
    "PatientName", "PatientID", "PatientBirthDate", "PatientSex", "StudyDate", "StudyTime",
    "ReferringPhysicianName", "StudyID", "AccessionNumber", "SeriesNumber", "Manufacturer",
    "InstanceNumber", "PositionReferenceIndicator",
)  # fmt: skip


def bare(data: Dataset) -> Dataset:
    """Return a header without pixels, private, bulky and outdated elements; nothing is parsed.

    What is private says nothing here and may hold anything, a patient's name too.
    """
    from pydicom.dataset import Dataset, FileMetaDataset

    kept = Dataset()
    for tag in list(data.keys()):
        group, element = tag >> 16, tag & 0xFFFF
        groups = group == 0x5200  # the functional groups of a multi-frame file, at any size
        if group % 2 or element == 0 or group < 8 or (group >= 0x5000 and not groups):
            continue
        raw = data.get_item(tag)
        length = getattr(raw, "length", 0) or 0
        bulky = LARGEST_VALUE < length < 0xFFFFFFFF and not groups
        if bulky or tag == 0x00880200:  # the icon image
            continue
        kept._dict[tag] = raw
    implicit, little = data.original_encoding
    kept.set_original_encoding(implicit, little, data.original_character_set)
    kept.file_meta = FileMetaDataset()
    meta = getattr(data, "file_meta", {})
    for keyword in ("MediaStorageSOPClassUID", "MediaStorageSOPInstanceUID", "TransferSyntaxUID"):
        if keyword in meta:
            setattr(kept.file_meta, keyword, meta.get(keyword))
    return kept


def clean(headers: Sequence[Dataset]) -> tuple[Dataset, ...]:
    """Mend the headers of one series.

    Values that the standard forbids are dropped; decimal strings are rounded to their 16
    characters; what the images of a series share is filled from those that have it, where these
    agree; attributes that must be there but may be empty are added empty. Nothing is made up.

    Args:
        headers: as ``bare`` gives them; the same object may stand several times.

    Returns:
        New data sets, the same object where the same object stood.
    """
    with quiet:
        made: dict[int, Dataset] = {}
        for header in headers:
            if id(header) not in made:
                made[id(header)] = _legal(header, 0)
                made[id(header)].file_meta = header.file_meta
        for keyword in _STUDY:
            _inherit(list(made.values()), keyword)
        for one in made.values():
            for keyword in _MAY_BE_EMPTY:
                if keyword not in one:
                    setattr(one, keyword, None)
        return tuple(made[id(header)] for header in headers)


def _inherit(headers: list[Dataset], keyword: str) -> None:
    known = Counter(repr(h[keyword].value) for h in headers if h.get(keyword) not in (None, "", []))
    if len(known) != 1:
        return
    value = next(h[keyword].value for h in headers if h.get(keyword) not in (None, "", []))
    for one in headers:
        if one.get(keyword) in (None, "", []):
            setattr(one, keyword, value)


def _legal(data: Dataset, depth: int) -> Dataset:
    from pydicom.dataset import Dataset

    made = Dataset()
    if depth > DEEPEST:
        return made
    for tag in sorted(data.keys()):
        if tag >> 16 & 1:
            continue
        try:
            element = data[tag]
            if element.VR == "SQ":
                made.add_new(tag, "SQ", [_legal(item, depth + 1) for item in element.value])
                continue
            keep, value = _legal_value(element.VR, element.value)
            if keep:
                made.add_new(tag, element.VR, value)
        except Exception:  # a value that can't be parsed is no value
            continue
    return made


def _legal_value(vr: str, value: Any) -> tuple[bool, Any]:
    from pydicom.config import RAISE
    from pydicom.valuerep import format_number_as_ds, validate_value

    if value is None or value == "":
        return True, value
    if vr in ("UN", "OB", "OW", "OF", "OD", "OL", "OV"):
        return vr != "UN", value
    many = hasattr(value, "append") and not isinstance(value, str | bytes)
    made = []
    for one in value if many else [value]:
        if vr in ("DS", "IS"):
            found = number(one)
            if found is None:
                return False, None
            one = format_number_as_ds(found) if vr == "DS" else str(int(found))
        elif vr not in ("PN", "AT", "US", "SS", "UL", "SL", "FL", "FD", "UV", "SV"):
            validate_value(vr, one, RAISE)
        made.append(one)
    return True, made if many else made[0]
