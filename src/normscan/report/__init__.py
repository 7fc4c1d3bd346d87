"""Figures and the self-contained HTML page that tells how a detector did on a cohort."""

from normscan.report.figures import upright
from normscan.report.overlay import overlay_image
from normscan.report.page import write_report
from normscan.report.picture import Picture, best_slice

__all__ = [
    "Picture",
    "best_slice",
    "overlay_image",
    "upright",
    "write_report",
]
