"""Which detector scores which series: by what their headers say."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Sequence
from dataclasses import dataclass

from normscan.io.dicom import SeriesInfo
from normscan.io.dicom.source import read_header
from normscan.io.dicom.values import text
from normscan.node.config import Rule

SCANNER = ("Manufacturer", "ManufacturerModelName", "DeviceSerialNumber", "StationName")


@dataclass(frozen=True)
class Facts:
    """What the rules look at.

    Attributes:
        modality: such as MR.
        description: Series Description and Protocol Name; may hold anything: for the rules alone.
        body_part: Body Part Examined.
        scanner: eight hexadecimal digits made of maker, model, serial number and station.
    """

    modality: str
    description: str = ""
    body_part: str = ""
    scanner: str = ""

    @classmethod
    def of(cls, info: SeriesInfo) -> Facts:
        """Read them from the header of the first image.

        Raises:
            ScanError: it can't be read.
        """
        header, _ = read_header(info.planes[0].file.source)
        named = "\n".join(text(header, name) for name in SCANNER)
        return cls(
            info.modality,
            f"{text(header, 'SeriesDescription')}\n{text(header, 'ProtocolName')}",
            text(header, "BodyPartExamined").upper(),
            hashlib.sha256(named.encode()).hexdigest()[:8],
        )


def fitting(rules: Sequence[Rule], facts: Facts) -> list[Rule]:
    """Return the rules that fit, in their order."""
    return [rule for rule in rules if _fits(rule, facts)]


def _fits(rule: Rule, facts: Facts) -> bool:
    def found(pattern: str) -> bool:
        return re.search(pattern, facts.description, re.IGNORECASE) is not None

    return (
        (not rule.modality or facts.modality in [m.upper() for m in rule.modality])
        and (not rule.body_part or facts.body_part in [p.upper() for p in rule.body_part])
        and (not rule.description or found(rule.description))
        and not (rule.without and found(rule.without))
    )
