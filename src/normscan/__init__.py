"""normscan learns what healthy looks like and shows what isn't.

>>> import normscan as ns
>>> detector = ns.create("dae", preset="laptop").fit("cohort.csv")  # doctest: +SKIP
>>> finding = detector.predict("scan.nii.gz")  # doctest: +SKIP
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from normscan.lazy import lazily
from normscan.version import __version__

if TYPE_CHECKING:
    from normscan.cohort.cohort import Cohort as Cohort
    from normscan.detector.detector import Detector as Detector
    from normscan.detector.detector import create as create
    from normscan.detector.detector import load as load
    from normscan.io.read import read_scan as read
    from normscan.registry import list_methods as list_methods
    from normscan.scan import Scan as Scan

__all__ = ["Cohort", "Detector", "Scan", "__version__", "create", "list_methods", "load", "read"]

# Imported on first use, so that `import normscan` loads neither torch nor pandas.
__getattr__ = lazily(
    __name__,
    {
        "Scan": "scan",
        "Cohort": "cohort.cohort",
        "Detector": "detector.detector",
        "create": "detector.detector",
        "load": "detector.detector",
        "list_methods": "registry",
        "read": "io.read:read_scan",
    },
)


def __dir__() -> list[str]:
    return sorted(__all__)
