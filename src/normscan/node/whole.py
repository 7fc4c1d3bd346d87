"""Whether all of a series has come: DICOM has no word for it, but its headers hold hints."""

from __future__ import annotations

from collections.abc import Sequence

from normscan.io.dicom import SeriesInfo
from normscan.io.dicom.source import read_header
from normscan.io.dicom.values import fetch, whole

COUNTS = ("ImagesInAcquisition", "NumberOfSlices")
"""What a header may tell of the number of images; the second in PET."""


def missing(found: Sequence[SeriesInfo]) -> int:
    """Return how many more images the headers let expect: 0 where they give no hint.

    Gaps in the Instance Numbers count, and the number of images that the first header tells. Both
    may be wrong (an archive that holds a selection of the images keeps their numbers), so they are a
    reason to wait, and none to refuse. A sender that stops behind the first images in order, and
    whose headers tell no number, can't be told from one that is through.

    Args:
        found: what ``find_series`` finds among the files that came.

    Raises:
        ScanError: a file that can't be read any more.
    """
    files = list({id(p.file): p.file for info in found for p in info.planes}.values())
    if not files or any(file.frames > 1 for file in files):
        return 0
    numbers = {file.order for file in files if file.order}
    gaps = max(numbers) - min(numbers) + 1 - len(numbers) if numbers else 0
    header, _ = read_header(files[0].source)
    told = max(int(whole(fetch(header, name)) or 0) for name in COUNTS)
    return max(gaps, told - len(files), 0)
