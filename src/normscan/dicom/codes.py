"""Coded words: those of SNOMED CT and DICOM where they exist, else of a scheme of our own."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from highdicom.sr import CodedConcept

SCHEME = "99NORMSCAN"  # private schemes begin with 99 and have at most 16 characters
OWN = {
    "anomaly-score": "Anomaly score",
    "p-value": "p-value against healthy scans",
    "score-threshold": "Threshold of the anomaly score",
    "rate-wanted": "False-positive rate wanted",
    "rate-expected": "False-positive rate expected",
    "pixel-threshold": "Threshold of the anomaly map",
    "peak-score": "Peak of the anomaly map",
    "components": "Number of components",
    "pixels": "Number of pixels",
    "decision": "Decision",
    "undecided": "Not decided: the detector has no threshold",
    "not-scored": "Not scored: the series was refused",
    "refusal": "Why the series was refused",
    "replaces": "What the result replaces",
    "quality": "Quality gate",
    "ok": "A scan of the kind that the detector knows",
    "flag": "To be looked at",
    "refuse": "Refused: not the kind of scan, or damaged",
    "unchecked": "Not checked: the detector has no quality gate",
    "localised": "Findings localised",
    "found": "Findings above the threshold of the map",
    "none": "No finding above the threshold of the map",
    "not-localised": "Not localised: no map or no threshold",
}


REGIONS = {
    "BRAIN": ("12738006", "Brain"),
    "CSPINE": ("122494005", "Cervical spine"),
    "TSPINE": ("122495006", "Thoracic spine"),
    "LSPINE": ("122496007", "Lumbar spine"),
}
"""Parts of the body that Body Part Examined calls otherwise than CID 4031, or that it lacks."""


def own(value: str) -> CodedConcept:
    """Return a word of the private scheme."""
    from highdicom.sr import CodedConcept

    return CodedConcept(value, SCHEME, OWN[value])


def scheme() -> Any:
    """Return the identification of the private scheme."""
    from highdicom.coding_schemes import CodingSchemeIdentificationItem

    return CodingSchemeIdentificationItem(
        designator=SCHEME, name="Words of normscan", responsible_organization="normscan"
    )


def region(part: str) -> CodedConcept:
    """Return the anatomic region (CID 4031) of a Body Part Examined; the whole body where unknown."""
    from highdicom.sr import CodedConcept
    from pydicom.sr.codedict import codes

    if part in REGIONS:
        value, meaning = REGIONS[part]
        return CodedConcept(value, "SCT", meaning)
    try:
        return CodedConcept.from_code(getattr(codes.CID4031, part.title()))
    except AttributeError:
        return CodedConcept("38266002", "SCT", "Entire body")
