"""Intensities that aren't scaled scan by scan: the range of the files, or the order of the values.

Systems made for photographs divide by the 255 that a file of 8 bits can hold, so that brightness stays
comparable between pictures. Files of 16 bits, DICOM and NIfTI seldom use the range of their type;
there the healthy training scans say what 0 and 1 are.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable

import numpy as np

from normscan.errors import ScanError
from normscan.scan import Scan

# What lies beyond in a scan are hot pixels and the rim of the field of view.
TAILS = (0.1, 99.9)
COLOUR = ("red", "green", "blue")


def file_range(scans: Iterable[Scan], grey: bool = False) -> tuple[tuple[float, float], ...]:
    """Return what becomes 0 and 1 in each channel, from healthy training scans.

    Where all files have 8 bits it is 0 and 255, or 0 and 1 if steps brought the values there. Else
    it is 0 and the median over the scans of each one's 99.9th percentile, so that neither a hot pixel
    nor an odd scan sets it; with negative values, as in CT, the median of the 0.1th percentiles
    takes the place of 0. The channels of a colour picture share one range, which keeps its hues.

    Args:
        scans: as the steps left them.
        grey: the channels will be averaged.

    Raises:
        ScanError: none of them has any contrast.
    """
    bytes_only, top = True, 0.0
    names: tuple[str, ...] = ()
    ends: list[np.ndarray] = []
    for scan in scans:
        data = scan.data.mean(axis=0, keepdims=True) if grey else scan.data
        bytes_only = bytes_only and scan.dtype == "uint8"
        top, names = max(top, float(data.max())), scan.channels
        ends.append(np.percentile(data.reshape(len(data), -1), TAILS, axis=1).T)
    # Scans with another number of channels are left out of the training, too.
    usual = Counter(len(e) for e in ends).most_common(1)[0][0]
    if bytes_only and top <= 255:
        return ((0.0, 255.0 if top > 1 else 1.0),) * usual
    middle = np.median([e for e in ends if len(e) == usual], axis=0)
    low, high = np.minimum(middle[:, 0], 0), middle[:, 1]
    if usual == 3 and names == COLOUR:
        low, high = np.full(3, low.min()), np.full(3, high.max())
    if not (low < high).all():
        raise ScanError("the training scans are nearly all of one value: they have no range.")
    return tuple(zip(low.tolist(), high.tolist(), strict=True))


def equalised(values: np.ndarray, inside: np.ndarray, bins: int = 256) -> np.ndarray:
    """Equalise the histogram of a channel: the share of the foreground that is no brighter.

    Args:
        values: any shape.
        inside: of the same shape, bool; what is outside becomes 0.
        bins: of the histogram, between the smallest and the largest value inside.

    Returns:
        float32 in 0..1.
    """
    counts, edges = np.histogram(values[inside], bins)
    shares = counts.cumsum() / max(1, counts.sum())
    ranked = np.interp(values, (edges[:-1] + edges[1:]) / 2, shares)
    return np.where(inside, ranked, 0).astype(np.float32)
