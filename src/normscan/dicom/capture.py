"""The map over a picture as a Secondary Capture, which every viewer shows."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from normscan.dicom.identity import Identity

if TYPE_CHECKING:
    from highdicom.sc import SCImage
    from pydicom.dataset import Dataset


def capture(identity: Identity, image: Dataset, drawn: np.ndarray) -> SCImage:
    """Build the picture of a finding.

    Args:
        identity: of the finding.
        image: the source image.
        drawn: (rows, columns, 3) uint8.
    """
    import highdicom as hd
    from pydicom.uid import ExplicitVRLittleEndian

    made = hd.sc.SCImage.from_ref_dataset(
        image,
        np.ascontiguousarray(drawn, np.uint8),
        "RGB",
        8,
        "PATIENT",
        **identity.of("picture"),
        **identity.equipment,
        patient_orientation=("L", "F"),
        transfer_syntax_uid=ExplicitVRLittleEndian,
    )
    # What the source doesn't say stays open (Type 2C).
    made.PatientOrientation = image.get("PatientOrientation") or None
    if image.get("BodyPartExamined"):
        made.BodyPartExamined = image.BodyPartExamined
    side = image.get("Laterality") or image.get("ImageLaterality")
    made.Laterality = side if side in ("R", "L") else None
    return made
