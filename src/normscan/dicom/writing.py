"""Write a finding as the objects that an archive keeps beside its series."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from normscan.dicom.identity import Identity
from normscan.dicom.packages import check_highdicom
from normscan.dicom.results import Results
from normscan.errors import NormscanError, OutputError
from normscan.io.atomic import atomic_path
from normscan.io.dicom.source import quiet

if TYPE_CHECKING:
    from pydicom.dataset import Dataset

    from normscan.dicom.parametric_map import Stored
    from normscan.dicom.segmentation import SegmentsAs

ENDINGS = {"map": "map", "findings": "seg", "picture": "sc", "report": "sr", "page": "pdf"}


@dataclass(frozen=True)
class Options:
    """How results are written.

    Attributes:
        map: values of the parametric map, see ``parametric_map``.
        segments: ``binary`` has a frame for each segment and plane; ``labelmap`` one for each
            plane, which viewers before 2025 don't know.
        page: also write the page about the finding as Encapsulated PDF.
    """

    map: Stored = "float32"
    segments: SegmentsAs = "binary"
    page: bool = False


USUAL = Options()


def write_dicom(folder: Path, name: str, results: Results, options: Options = USUAL) -> list[Path]:
    """Write ``NAME_map.dcm``, ``NAME_seg.dcm``, ``NAME_sc.dcm``, ``NAME_sr.dcm``, ``NAME_pdf.dcm``.

    A series that lies in space gets its map as Parametric Map and its components as Segmentation;
    a picture without a place in the patient gets its components as Segmentation and a Secondary
    Capture. Every finding gets a Structured Report. Where nothing was found there is no
    Segmentation, and the report says so.

    Args:
        folder: made if missing.
        name: start of the file names.
        results: what to write.
        options: how.

    Returns:
        The files written.

    Raises:
        ArgumentError: highdicom isn't installed.
        OutputError: a series whose headers break the standard so that nothing can be derived from
            it; the message has no value of them.
    """
    check_highdicom()
    with _building(name):
        objects = _build(results, options)
    written = []
    for kind, dataset in objects.items():
        path = folder / f"{name}_{ENDINGS[kind]}.dcm"
        with atomic_path(path) as temporary, _building(name):
            dataset.save_as(temporary, enforce_file_format=True)
        written.append(path)
    return written


def _build(results: Results, options: Options) -> dict[str, Dataset]:
    """Return the objects by their kind."""
    from normscan.dicom.capture import capture
    from normscan.dicom.document import document
    from normscan.dicom.parametric_map import parametric_map
    from normscan.dicom.report import report
    from normscan.dicom.segmentation import segmentation
    from normscan.dicom.sources import frames_of, name_frames, source_images

    identity = Identity(results)
    images = source_images(identity)
    placed = results.series.placed
    made: dict[str, Dataset] = {}
    if results.map is not None and placed:
        made["map"] = parametric_map(identity, images, options.map)
    # A frame of a clip has no place by which highdicom could find it among the others.
    alone = placed or frames_of(results.series, images[0]) is None
    if results.components and alone:
        made["findings"] = segmentation(identity, images, options.segments)
    for dataset in made.values() if placed else ():
        name_frames(dataset, results.series)
    if results.picture is not None and not placed:
        made["picture"] = capture(identity, images[0], results.picture())
    made["report"] = report(identity, images, made)
    if options.page and results.page is not None:
        made["page"] = document(identity, images[0], results.page())
    for kind, dataset in made.items():
        _settle(dataset, identity.uid(kind, "dimensions"))
    return made


def _settle(dataset: Dataset, uid: str) -> None:
    """Replace the random UID that holds the dimensions of frames together; nobody is the creator."""
    for sequence in ("DimensionOrganizationSequence", "DimensionIndexSequence"):
        for item in dataset.get(sequence, ()):
            item.DimensionOrganizationUID = uid
    if "ContentLabel" in dataset:
        dataset.ContentCreatorName = None  # Type 2


@contextmanager
def _building(name: str) -> Iterator[None]:
    """Turn what highdicom and pydicom raise into an OutputError; their words may quote values."""
    try:
        with quiet:
            yield
    except (NormscanError, OSError, MemoryError):
        raise
    except (AttributeError, LookupError, RuntimeError, TypeError, ValueError) as error:
        raise OutputError(
            f"{name}: no DICOM results can be made from the headers of its series "
            f"({type(error).__name__}): something that the standard demands is missing or wrong in "
            "them. Check the series with a validator, or leave 'dicom' out of the formats."
        ) from None
