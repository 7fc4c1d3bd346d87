"""The source images as highdicom takes them, and where the planes of a result lie."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from normscan.dicom.identity import Identity
from normscan.dicom.results import Results
from normscan.errors import OutputError
from normscan.series import LPS_TO_RAS, Series

if TYPE_CHECKING:
    from pydicom.dataset import Dataset

NOT_STATED = "not stated in the source"


def source_images(identity: Identity) -> list[Dataset]:
    """Return one header for each file of the series, mended beyond what reading mends.

    highdicom takes what the images of a series share from the first, and refuses images that don't
    agree. Where a file lacks what every object needs, it is made from the hash of the series.

    Raises:
        OutputError: a file that doesn't say what kind of image it is.
    """
    series = identity.results.series
    headers = series.read_headers()
    files = list({id(header): header for header in headers}.values())
    study = headers[0].get("StudyInstanceUID") or identity.uid("study")
    for number, image in enumerate(files):
        # Where files with UIDs of their own were joined, those of the first stand for all.
        image.StudyInstanceUID = study
        image.SeriesInstanceUID = series.uid or identity.uid("source series")
        image.SOPInstanceUID = image.get("SOPInstanceUID") or identity.uid("source", number)
        _mend(image, identity)
    return files


def _mend(image: Dataset, identity: Identity) -> None:
    series = identity.results.series
    if not image.get("SOPClassUID"):
        image.SOPClassUID = image.file_meta.get("MediaStorageSOPClassUID", "")
    if not image.SOPClassUID:
        raise OutputError(
            "a file of the series has no SOP Class UID, so nothing can refer to it. Export the "
            "series again, or leave 'dicom' out of the formats."
        )
    if image.get("PatientSex") not in (None, "", "M", "F", "O"):
        image.PatientSex = None
    told = image.get("DeidentificationMethod") or image.get("DeidentificationMethodCodeSequence")
    removed = image.get("PatientIdentityRemoved") == "YES"
    if not told and (removed or "DeidentificationMethod" in image):
        image.DeidentificationMethod = NOT_STATED
    if series.placed:
        _place(image, series, identity)
    elif "FrameOfReferenceUID" in image:  # a frame without a position places nothing
        del image.FrameOfReferenceUID


def _place(image: Dataset, series: Series, identity: Identity) -> None:
    """Let all images of a series agree on their frame of reference, orientation and spacing."""
    import highdicom as hd
    from pydicom.dataset import Dataset

    planes = Planes.of(identity.results)
    image.FrameOfReferenceUID = series.frame_of_reference or identity.uid("frame of reference")
    if "PerFrameFunctionalGroupsSequence" not in image:
        image.ImageOrientationPatient = rounded(series.orientations[0])
        image.SliceThickness = image.get("SliceThickness") or planes.thickness
        return
    if not image.get("SharedFunctionalGroupsSequence"):
        image.SharedFunctionalGroupsSequence = [Dataset()]
    shared = image.SharedFunctionalGroupsSequence[0]
    shared.PlaneOrientationSequence = hd.PlaneOrientationSequence(
        "PATIENT", rounded(series.orientations[0])
    )
    if not shared.get("PixelMeasuresSequence"):
        shared.PixelMeasuresSequence = planes.measures()
    measures = shared.PixelMeasuresSequence[0]
    measures.SliceThickness = measures.get("SliceThickness") or planes.thickness


def rounded(values: Any) -> list[float]:
    """Return numbers that a decimal string holds as they are."""
    from pydicom.valuerep import format_number_as_ds

    return [float(format_number_as_ds(float(v))) for v in values]


def as_arguments(images: list[Dataset]) -> dict[str, Any]:
    """Return the source images as the constructors of images take them: of multi-frame files one."""
    if "PerFrameFunctionalGroupsSequence" not in images[0]:
        return {"source_images": images}
    return {"source_images": images[:1], "further_source_images": images[1:]}


@dataclass(frozen=True, eq=False)
class Planes:
    """Parallel planes in the patient, in LPS millimetres.

    Attributes:
        positions: (n, 3) centre of the first pixel of each.
        orientation: (6,) direction of the rows, then of the columns.
        spacing: (2,) between rows, between columns.
        step: between two planes; 0 for a single one.
    """

    positions: np.ndarray
    orientation: np.ndarray
    spacing: np.ndarray
    step: float

    @classmethod
    def of(cls, results: Results) -> Planes:
        """Return the planes of a series, or of the regular grid onto which an uneven one was read.

        On such a grid a map lies right in every viewer, on the uneven planes only in some.
        """
        series = results.series
        if series.regular:
            step = float(np.mean(series.steps)) if len(series.steps) else 0.0
            return cls(series.positions, series.orientations[0], series.spacings[0], step)
        affine = LPS_TO_RAS @ results.affine
        spacing = np.linalg.norm(affine[:3, :3], axis=0)
        directions = affine[:3, :3] / spacing
        counts = np.arange(series.shape[2])[:, None]
        return cls(
            affine[:3, 3] + counts * affine[:3, 2],
            np.concatenate([directions[:, 0], directions[:, 1]]),
            spacing[[1, 0]],
            float(spacing[2]),
        )

    @property
    def thickness(self) -> float:
        """What a plane counts for: the step, or the width of a pixel where it stands alone."""
        return rounded([self.step or float(self.spacing.mean())])[0]

    def measures(self) -> Any:
        """Return the Pixel Measures."""
        import highdicom as hd

        return hd.PixelMeasuresSequence(
            pixel_spacing=rounded(self.spacing),
            slice_thickness=self.thickness,
            spacing_between_slices=rounded([self.step])[0] if self.step else None,
        )

    def arguments(self) -> dict[str, Any]:
        """Return the place of the planes as the constructors of images take it."""
        import highdicom as hd

        return {
            "plane_positions": [
                hd.PlanePositionSequence("PATIENT", rounded(one)) for one in self.positions
            ],
            "plane_orientation": hd.PlaneOrientationSequence("PATIENT", rounded(self.orientation)),
            "pixel_measures": self.measures(),
        }


def as_planes(array: np.ndarray) -> np.ndarray:
    """Return a map or mask of the scan grid as (n, rows, columns)."""
    return np.ascontiguousarray(array[None] if array.ndim == 2 else array.transpose(2, 1, 0))


def frames_of(series: Series, image: Dataset) -> Sequence[int] | None:
    """Return the frames of a file that the scan shows; None for a file with one."""
    used = [
        frame
        for uid, frame in zip(series.uids, series.frames, strict=True)
        if frame and uid in (image.SOPInstanceUID, "")
    ]
    return used or None


def name_frames(made: Dataset, series: Series) -> None:
    """Let each frame of a result name the frame of a multi-frame source that it was made of.

    highdicom looks for one at the same place, and of several echoes there takes the first.
    """
    if not any(series.frames):
        return
    for group in made.PerFrameFunctionalGroupsSequence:
        if not group.get("DerivationImageSequence"):
            continue
        place = np.array(group.PlanePositionSequence[0].ImagePositionPatient, float)
        nearest = int(np.argmin(np.linalg.norm(series.positions - place, axis=1)))
        source = group.DerivationImageSequence[0].SourceImageSequence[0]
        source.ReferencedSOPInstanceUID = series.uids[nearest]
        source.ReferencedFrameNumber = series.frames[nearest]
