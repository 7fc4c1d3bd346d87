"""What a scan that doesn't fit seems to be instead: told from its header, its values and its look."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from normscan.quality.measures import RGB, reduced
from normscan.quality.rules import LOST, NOISE, RIM_SLACK, SLACK, Limits
from normscan.scan import Scan

# DICOM's defined terms (PS3.3 C.7.3.1.1.1) in words.
MODALITIES = {
    "CT": "a CT", "MR": "an MR scan", "PT": "a PET scan", "NM": "a nuclear medicine scan",
    "DX": "a radiograph", "CR": "a radiograph", "MG": "a mammogram", "XA": "an angiogram",
    "RF": "a fluoroscopy", "US": "an ultrasound image", "ES": "an endoscopy picture",
    "GM": "a photograph", "XC": "a photograph", "OP": "an eye photograph", "OPT": "an OCT",
    "SM": "a microscopy picture",
}  # fmt: skip
# By the view in which it lies farthest from the training scans.
FARTHEST = {
    "picture": "another part of the body, another view of it or another kind of picture",
    "histogram": "another contrast or modality",
    "texture": "another kind of image, by its texture and noise",
    "outline": "another framing or another part of the body",
}
# Share of the border that the foreground touches from which on a picture fills its frame.
FILLED = 0.9


def stated_kind(scan: Scan, header: Mapping[str, Any], limits: Limits) -> str:
    """Return the modality and the part of the body that the file states, if training states another."""
    said = header["modality"]
    known = [m for m in limits["modality"] if m]
    if not said or said in known:
        return ""
    name = MODALITIES.get(said, f"of the modality {said}")
    part = body_part(scan)
    return f"{name} of the {part}" if part else name


def body_part(scan: Scan) -> str:
    """Return the body part that a DICOM series states, in small letters, or an empty string."""
    if scan.series is None:
        return ""
    headers = scan.series.headers
    text = str(getattr(headers[0], "BodyPartExamined", "") or "") if headers else ""
    text = text.strip().lower()
    # A defined term is one word; anything else may be about a person.
    return text if text.isalpha() and len(text) <= 16 else ""


def damaged_kind(whole: Mapping[str, Any], dims: int, limits: Limits) -> str:
    """Return what damage makes of a scan, or an empty string."""
    if whole["structure"] < NOISE:
        return "noise"
    most = limits["empty_end"][1] + SLACK[dims]["empty_end"][1]
    if whole["empty_end"] > most or whole["half"] < LOST < limits["half"][0]:
        return "a scan of which a part is missing"
    return ""


def looks_like(scan: Scan, limits: Limits) -> str:
    """Return what can be told of the values and the colours, or an empty string."""
    if scan.channels == RGB and 3 not in limits["channels"]:
        return "a colour picture, such as a photograph"
    return ""


def rimmed_kind(whole: Mapping[str, Any], limits: Limits) -> str:
    """Return what a rim says that is whiter than in training, or an empty string."""
    known = "rim" in whole and "rim" in limits
    return (
        "a CT, by its white rim" if known and whole["rim"] > limits["rim"][1] + RIM_SLACK[0] else ""
    )


def fills_frame(scan: Scan) -> bool:
    """Tell whether a picture shows something up to its edges, as photographs and X-rays do."""
    if scan.dims != 2:
        return False
    _, foreground = reduced(scan.data, scan.channels)
    border = np.concatenate([np.take(foreground, i, a) for a in (0, 1) for i in (0, -1)])
    return bool(border.mean() >= FILLED)


def inverted(scan: Scan) -> Scan:
    """Return the negative of a scan."""
    return scan.with_data(scan.data.max() + scan.data.min() - scan.data)
