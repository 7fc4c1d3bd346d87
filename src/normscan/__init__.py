"""normscan learns what healthy looks like and shows what isn't.

>>> import normscan as ns
>>> detector = ns.create("dae", preset="laptop").fit("cohort.csv")  # doctest: +SKIP
>>> finding = detector.predict("scan.nii.gz")  # doctest: +SKIP
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from normscan.cohort import Cohort as Cohort
    from normscan.detector import Detector as Detector
    from normscan.detector import create as create
    from normscan.detector import load as load
    from normscan.registry import load_all as list_methods
    from normscan.scan import Scan as Scan

__version__ = "0.1.0"

# Imported on first use, so that `import normscan` loads neither torch nor pandas.
_LAZY = {
    "Scan": "normscan.scan:Scan",
    "Cohort": "normscan.cohort:Cohort",
    "Detector": "normscan.detector:Detector",
    "create": "normscan.detector:create",
    "load": "normscan.detector:load",
    "list_methods": "normscan.registry:load_all",
}
__all__ = ["Cohort", "Detector", "Scan", "__version__", "create", "list_methods", "load"]


def __getattr__(name: str) -> Any:
    if name not in _LAZY:
        raise AttributeError(f"module 'normscan' has no attribute '{name}'")
    module, _, attribute = _LAZY[name].partition(":")
    return getattr(import_module(module), attribute)


def __dir__() -> list[str]:
    return sorted(__all__)
