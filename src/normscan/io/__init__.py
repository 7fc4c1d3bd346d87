"""Read and write images: DICOM, NIfTI, NRRD, MetaImage, MGH, MINC, pictures and NumPy files."""

from normscan.io.atomic import atomic_path, check_folder
from normscan.io.companions import COMPANIONS, Given, read_companion, read_further
from normscan.io.files import EXTENSIONS, Header, extension, stem
from normscan.io.masks import MaskReport
from normscan.io.read import content_hash, probe, read_mask, read_scan
from normscan.io.write import MAP_EXTENSIONS, map_suffix, write_map

__all__ = [
    "COMPANIONS",
    "EXTENSIONS",
    "MAP_EXTENSIONS",
    "Given",
    "Header",
    "MaskReport",
    "atomic_path",
    "check_folder",
    "content_hash",
    "extension",
    "map_suffix",
    "probe",
    "read_companion",
    "read_further",
    "read_mask",
    "read_scan",
    "stem",
    "write_map",
]
