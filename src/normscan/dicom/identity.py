"""Who made an object, and the UIDs that follow from its origin alone."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from hashlib import sha256
from typing import Any

from normscan.dicom.results import Results

MAKER = "normscan"
NUMBERS = {"map": 9001, "findings": 9002, "report": 9003, "picture": 9004, "page": 9005}
"""Series Number of each kind of object."""


@dataclass(frozen=True, eq=False)
class Identity:
    """The UIDs of the objects of one finding.

    They are a hash of the source images, the detector and the kind of object: the same detector on
    the same series gives the same UIDs, so that an archive takes a result that is sent again for
    the one that it has.
    """

    results: Results

    @cached_property
    def seed(self) -> str:
        """Hash of the source images, in their order, and of the detector."""
        series = self.results.series
        planes = [f"{u} {f}" for u, f in zip(series.uids, series.frames, strict=True)]
        detector = (self.results.detector, self.results.method, self.results.version)
        return sha256("\n".join([series.uid, *planes, *detector]).encode()).hexdigest()

    def uid(self, *what: str | int) -> str:
        """Return the UID of something of this finding."""
        from pydicom.uid import generate_uid

        return str(generate_uid(entropy_srcs=[self.seed, *map(str, what)]))

    def of(self, kind: str) -> dict[str, Any]:
        """Return what highdicom's constructors ask of a series, an instance and its maker."""
        return {
            "series_instance_uid": self.uid(kind, "series"),
            "series_number": NUMBERS[kind],
            "sop_instance_uid": self.uid(kind, "instance"),
            "instance_number": 1,
            "manufacturer": MAKER,
            "series_description": f"{MAKER} {kind}",
        }

    @property
    def equipment(self) -> dict[str, Any]:
        """Model, version and number of the maker, for the constructors that take them."""
        return {
            "manufacturer_model_name": self.results.method[:64] or MAKER,
            "software_versions": self.results.version[:64] or "unknown",
            "device_serial_number": self.results.detector[:64] or "unknown",
        }
