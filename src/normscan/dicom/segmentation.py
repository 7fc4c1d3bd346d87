"""The components of a finding as a Segmentation (PS3.3 A.51), binary or a label map."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from normscan.dicom.identity import MAKER, Identity
from normscan.dicom.sources import Planes, as_arguments, as_planes

if TYPE_CHECKING:
    from highdicom.seg import Segmentation
    from pydicom.dataset import Dataset

SegmentsAs = Literal["binary", "labelmap"]
COLOUR = (255, 64, 64)


def segmentation(
    identity: Identity, images: list[Dataset], stored: SegmentsAs = "binary"
) -> Segmentation:
    """Build the segmentation of a finding that has components; each is a segment.

    Args:
        identity: of the finding.
        images: the source images.
        stored: a frame for each segment, or one label map.
    """
    import highdicom as hd
    from pydicom.uid import ExplicitVRLittleEndian

    results = identity.results
    segments = results.segments
    assert segments is not None
    place = Planes.of(results).arguments() if results.series.placed else {}
    made = hd.seg.Segmentation(
        pixel_array=as_planes(np.asarray(segments)),
        segmentation_type=stored.upper(),
        segment_descriptions=[
            _described(identity, number, spot) for number, spot in enumerate(results.spots, 1)
        ],
        **as_arguments(images),
        **identity.of("findings"),
        **identity.equipment,
        **place,
        transfer_syntax_uid=ExplicitVRLittleEndian,
        content_label="FINDINGS",
        content_description="Components of the anomaly map above its threshold",
    )
    if not results.series.placed:
        made.PatientOrientation = images[0].get("PatientOrientation") or None
    return made


def name_of(number: int, spot: dict[str, Any]) -> str:
    """Return what a component is called, in every object."""
    return f"{spot['parts']} further findings" if "parts" in spot else f"Finding {number}"


def _described(identity: Identity, number: int, spot: dict[str, Any]) -> Any:
    import highdicom as hd
    from pydicom.sr.codedict import codes

    results = identity.results
    algorithm = hd.AlgorithmIdentificationSequence(
        name=results.method[:64] or MAKER,
        family=codes.DCM.ArtificialIntelligence,
        version=results.version[:64] or "unknown",
        source=MAKER,
        parameters={"detector": results.detector} if results.detector else None,
    )
    return hd.seg.SegmentDescription(
        segment_number=number,
        segment_label=name_of(number, spot),
        segmented_property_category=codes.SCT.MorphologicallyAbnormalStructure,
        segmented_property_type=codes.SCT.Lesion,
        algorithm_type="AUTOMATIC",
        algorithm_identification=algorithm,
        tracking_uid=identity.uid("finding", number),
        tracking_id=name_of(number, spot),
        display_color=hd.color.CIELabColor.from_rgb(*COLOUR),
    )
