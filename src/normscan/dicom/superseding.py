"""A result in place of an earlier one: its report names that one, and every object says so."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from normscan.dicom.codes import own
from normscan.io.atomic import atomic_path
from normscan.io.dicom.source import quiet


def report_uids(path: Path) -> list[str] | None:
    """Return Series and SOP Instance UID of a report, or None for another object."""
    from pydicom import dcmread
    from pydicom.uid import Comprehensive3DSRStorage

    data = dcmread(path, specific_tags=["SOPClassUID", "SOPInstanceUID", "SeriesInstanceUID"])
    if data.SOPClassUID != Comprehensive3DSRStorage:
        return None
    return [str(data.SeriesInstanceUID), str(data.SOPInstanceUID)]


def supersede(
    files: Sequence[Path], earlier: Sequence[Sequence[str]], number: int, said: str
) -> None:
    """Mark the objects of a result as those that hold, in place of earlier ones.

    Archives keep what they have: the earlier objects stay beside these. The reports name the
    earlier reports as their predecessors (Predecessor Documents Sequence, PS3.3 C.17.2) and hold a
    sentence; the Series Description of each object ends in ``result N``.

    Args:
        files: all DICOM objects of the result; they are rewritten.
        earlier: Series and SOP Instance UID of each earlier report of the same study.
        number: of the result, from 2.
        said: the sentence.
    """
    from pydicom import dcmread
    from pydicom.uid import Comprehensive3DSRStorage

    for path in files:
        with quiet:
            data = dcmread(path)
            data.SeriesDescription = f"{data.get('SeriesDescription', '')} result {number}"[:64]
            if data.SOPClassUID == Comprehensive3DSRStorage:
                data.PredecessorDocumentsSequence = [_reference(data, earlier)]
                _add(data, said)
            with atomic_path(path) as temporary:
                data.save_as(temporary, enforce_file_format=True)


def _reference(data: Any, earlier: Sequence[Sequence[str]]) -> Any:
    from pydicom.dataset import Dataset

    study, series = Dataset(), []
    for uid, instance in earlier:
        one, document = Dataset(), Dataset()
        document.ReferencedSOPClassUID = data.SOPClassUID
        document.ReferencedSOPInstanceUID = instance
        one.SeriesInstanceUID, one.ReferencedSOPSequence = uid, [document]
        series.append(one)
    study.StudyInstanceUID, study.ReferencedSeriesSequence = data.StudyInstanceUID, series
    return study


def _add(data: Any, said: str) -> None:
    """Put a sentence into the group of measurements of the whole scan, the first."""
    import highdicom as hd
    from pydicom.sr.codedict import codes

    contains = hd.sr.RelationshipTypeValues.CONTAINS
    name = codes.DCM.ImagingMeasurements
    (measured,) = (
        item for item in data.ContentSequence
        if item.ConceptNameCodeSequence[0].CodeValue == name.value
    )  # fmt: skip
    text = hd.sr.TextContentItem(own("replaces"), said[:1024], contains)
    measured.ContentSequence[0].ContentSequence.append(text)
