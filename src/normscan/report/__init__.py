"""Figures and the self-contained HTML page that tells how a detector did on a cohort."""

from normscan.report.figures import figure_to_data_uri, overlay_figure, upright
from normscan.report.page import write_report
from normscan.report.picture import Picture, best_slice

__all__ = [
    "Picture",
    "best_slice",
    "figure_to_data_uri",
    "overlay_figure",
    "upright",
    "write_report",
]
