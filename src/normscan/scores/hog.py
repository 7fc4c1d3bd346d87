"""Images of oriented gradients."""

from __future__ import annotations

import functools
import math

import torch
from torch import Tensor
from torch.nn import functional as F


@functools.cache
def _strokes(cell: int, orientations: int) -> Tensor:
    """A line across the cell for each orientation, (orientations, 1, cell, cell) of 0 and 1."""
    from skimage.draw import line

    glyphs = torch.zeros(orientations, 1, cell, cell)
    radius, middle = cell // 2 - 1, cell // 2
    for i in range(orientations):
        angle = math.pi * (i + 0.5) / orientations
        rows, columns = radius * math.cos(angle), radius * math.sin(angle)
        ends = (middle - rows, middle + columns, middle + rows, middle - columns)
        r, c = line(*map(int, ends))
        glyphs[i, 0, r.tolist(), c.tolist()] = 1
    return glyphs


def hog_image(x: Tensor, cell: int = 8, orientations: int = 9) -> Tensor:
    """Picture of the histograms of oriented gradients (Dalal and Triggs 2005).

    Each cell shows a line for each orientation, as bright as its gradients are strong. The same as
    ``skimage.feature.hog(..., visualize=True)``, on the device of the images.

    Args:
        x: (B, 1, H, W).
        cell: side of a cell in pixels, even; what is left at the end of the axes stays dark.
        orientations: bins of the half circle.

    Returns:
        (B, 1, H, W) in the units of the image per two pixels.
    """
    rows, columns = torch.zeros_like(x), torch.zeros_like(x)
    rows[..., 1:-1, :] = x[..., 2:, :] - x[..., :-2, :]
    columns[..., 1:-1] = x[..., 2:] - x[..., :-2]
    angle = torch.rad2deg(torch.atan2(rows, columns)) % 180
    # A tiny negative angle rounds to 180, which is 0.
    index = (angle * (orientations / 180)).long() % orientations
    strength = torch.hypot(rows, columns)
    split = torch.cat([strength * (index == i) for i in range(orientations)], dim=1)
    histograms = F.avg_pool2d(split, cell)
    drawn = F.conv_transpose2d(histograms, _strokes(cell, orientations).to(x), stride=cell)
    height, width = x.shape[2:]
    return F.pad(drawn, (0, width - drawn.shape[3], 0, height - drawn.shape[2]))
