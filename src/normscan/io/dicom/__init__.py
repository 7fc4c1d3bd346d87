"""DICOM: series found by content, sorted by geometry, read as scans that know every plane's place."""

from normscan.io.dicom.grouping import SeriesInfo, find_series
from normscan.io.dicom.read import hash_dicom, probe_dicom, read_dicom
from normscan.series import Series

__all__ = ["Series", "SeriesInfo", "find_series", "hash_dicom", "probe_dicom", "read_dicom"]
