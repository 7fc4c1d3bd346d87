"""Luminance and colour differences (YBR_FULL) as red, green and blue; most of an ultrasound is grey."""

from __future__ import annotations

import numpy as np

GREY = 128  # of both colour differences


def ybr_to_rgb(stored: np.ndarray) -> np.ndarray:
    """Return the colours of PS3.3 C.7.6.3.1.2, as pydicom has them, faster where much is grey.

    pydicom takes every pixel through a matrix. A grey one is its luminance, so only the rectangle
    around all coloured ones goes that way.

    Args:
        stored: (rows, columns, 3) uint8.

    Returns:
        (rows, columns, 3) uint8.
    """
    from pydicom.pixels.processing import convert_color_space

    if (stored[::8, ::8, 1:] != GREY).mean() > 0.5:  # nothing to gain
        return np.asarray(convert_color_space(stored, "YBR_FULL", "RGB"))
    made = np.repeat(stored[..., :1], 3, axis=-1)
    coloured = (stored[..., 1] != GREY) | (stored[..., 2] != GREY)
    rows, columns = np.flatnonzero(coloured.any(1)), np.flatnonzero(coloured.any(0))
    if rows.size:
        box = np.s_[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1]
        made[box] = convert_color_space(stored[box], "YBR_FULL", "RGB")
    return made
