"""The Structured Report that sums a finding up: Comprehensive 3D, TID 1500 Measurement Report."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from normscan.dicom.codes import own, scheme
from normscan.dicom.identity import MAKER, Identity
from normscan.dicom.outlines import outline
from normscan.dicom.segmentation import name_of
from normscan.dicom.sources import frames_of

if TYPE_CHECKING:
    from highdicom.sr import Comprehensive3DSR
    from pydicom.dataset import Dataset


def report(
    identity: Identity, images: list[Dataset], others: dict[str, Dataset]
) -> Comprehensive3DSR:
    """Build the report of a finding.

    One group of measurements stands for the scan: score, p-value, threshold, the rate of false
    positives that was wanted and is expected, number of components, decision, quality gate. One
    more stands for each component: volume or area, peak, and its segment, or its outline where the
    scan is a picture without a place in the patient.

    Args:
        identity: of the finding.
        images: the source images.
        others: the other objects of the finding by kind, to which the report refers.
    """
    import highdicom as hd
    from highdicom.sr import CodedConcept
    from pydicom.sr.codedict import codes

    spots = identity.results.spots
    groups = [_scan(identity, images)]
    groups += [_spot(identity, images, others, n, spot) for n, spot in enumerate(spots, 1)]
    device = hd.sr.DeviceObserverIdentifyingAttributes(
        uid=identity.uid("device"),
        name=MAKER,
        manufacturer_name=MAKER,
        model_name=identity.equipment["manufacturer_model_name"],
        serial_number=identity.equipment["device_serial_number"],
    )
    content = hd.sr.MeasurementReport(
        observation_context=hd.sr.ObservationContext(
            observer_device_context=hd.sr.ObserverContext(codes.DCM.Device, device)
        ),
        procedure_reported=CodedConcept("363679005", "SCT", "Imaging procedure"),
        imaging_measurements=groups,
        title=codes.DCM.ImagingMeasurementReport,
    )
    return hd.sr.Comprehensive3DSR(
        evidence=[*images, *others.values()],
        content=content,
        **identity.of("report"),
        manufacturer_model_name=identity.equipment["manufacturer_model_name"],
        software_versions=identity.equipment["software_versions"],
        is_complete=True,
        coding_schemes=[scheme()],
    )


def _scan(identity: Identity, images: list[Dataset]) -> Any:
    """Return the group of the whole scan."""
    import highdicom as hd
    from pydicom.sr.codedict import codes

    results = identity.results
    measured = {
        "anomaly-score": results.score,
        "p-value": results.p_value,
        "score-threshold": results.threshold,
        "rate-wanted": results.wanted,
        "rate-expected": results.expected,
        "pixel-threshold": results.pixel_threshold,
        "components": None if results.labels is None else float(len(results.components)),
    }
    decision = {True: codes.SCT.Abnormal, False: codes.SCT.Normal, None: own("undecided")}
    if results.refused:
        decision[None] = own("not-scored")
    localised = "not-localised"
    if results.labels is not None:
        localised = "found" if results.components else "none"
    middle = images[len(images) // 2]
    group = hd.sr.MeasurementsAndQualitativeEvaluations(
        tracking_identifier=hd.sr.TrackingIdentifier(uid=identity.uid("scan"), identifier="Scan"),
        algorithm_id=_algorithm(identity),
        source_images=[
            hd.sr.SourceImageForMeasurementGroup.from_source_image(
                middle, frames_of(results.series, middle)
            )
        ],
        measurements=[
            _measurement(own(name), value) for name, value in measured.items() if _known(value)
        ],
        qualitative_evaluations=[
            hd.sr.QualitativeEvaluation(own("decision"), decision[results.anomalous]),
            hd.sr.QualitativeEvaluation(own("quality"), own(results.quality or "unchecked")),
            hd.sr.QualitativeEvaluation(own("localised"), own(localised)),
        ],
    )
    if results.refused:
        contains = hd.sr.RelationshipTypeValues.CONTAINS
        said = hd.sr.TextContentItem(own("refusal"), results.refused[:1024], contains)
        group[0].ContentSequence.append(said)
    return group


def _spot(
    identity: Identity,
    images: list[Dataset],
    others: dict[str, Dataset],
    number: int,
    spot: dict[str, Any],
) -> Any:
    """Return the group of a component."""
    import highdicom as hd
    from pydicom.sr.codedict import codes

    measurements = [_measurement(own("peak-score"), spot["peak"])]
    if "volume_mm3" in spot:
        unit = codes.UCUM.CubicMillimeter
        measurements.append(_measurement(codes.SCT.Volume, spot["volume_mm3"], unit))
    elif "area_mm2" in spot:
        unit = codes.UCUM.SquareMillimeter
        measurements.append(_measurement(codes.SCT.Area, spot["area_mm2"], unit))
    else:
        measurements.append(_measurement(own("pixels"), spot["voxels"]))
    about: dict[str, Any] = {
        "tracking_identifier": hd.sr.TrackingIdentifier(
            uid=identity.uid("finding", number), identifier=name_of(number, spot)
        ),
        "finding_type": codes.SCT.Lesion,
        "algorithm_id": _algorithm(identity),
        "measurements": measurements,
    }
    if identity.results.series.placed:
        segment = hd.sr.ReferencedSegment(
            others["findings"].SOPClassUID,
            others["findings"].SOPInstanceUID,
            number,
            source_series=hd.sr.SourceSeriesForSegmentation(images[0].SeriesInstanceUID),
        )
        return hd.sr.VolumetricROIMeasurementsAndQualitativeEvaluations(
            referenced_segment=segment, **about
        )
    if "parts" in spot:  # one polygon can't hold several
        del about["finding_type"]
        return hd.sr.MeasurementsAndQualitativeEvaluations(**about)
    assert identity.results.labels is not None
    image = images[0]
    region = hd.sr.ImageRegion(
        "POLYLINE",
        outline(np.asarray(identity.results.labels == number)),
        hd.sr.SourceImageForRegion.from_source_image(
            image, frames_of(identity.results.series, image)
        ),
    )
    return hd.sr.PlanarROIMeasurementsAndQualitativeEvaluations(referenced_region=region, **about)


def _algorithm(identity: Identity) -> Any:
    import highdicom as hd

    results = identity.results
    return hd.sr.AlgorithmIdentification(
        name=results.method or MAKER,
        version=results.version or "unknown",
        parameters=[f"detector {results.detector}"] if results.detector else None,
    )


def _known(value: float | None) -> bool:
    return value is not None and bool(np.isfinite(value))


def _measurement(name: Any, value: Any, unit: Any = None) -> Any:
    """Return a number; a decimal string has room for nine significant digits in any notation."""
    import highdicom as hd
    from pydicom.sr.codedict import codes

    return hd.sr.Measurement(name, float(f"{float(value):.9g}"), unit or codes.UCUM.NoUnits)
