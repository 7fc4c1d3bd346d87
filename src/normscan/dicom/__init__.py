"""Findings as DICOM objects beside their source series: parametric map, segmentation, report."""

from normscan.dicom.packages import check_highdicom
from normscan.dicom.refusal import refusal
from normscan.dicom.results import Results
from normscan.dicom.writing import Options, write_dicom

__all__ = ["Options", "Results", "check_highdicom", "refusal", "write_dicom"]
