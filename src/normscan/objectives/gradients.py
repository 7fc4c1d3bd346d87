"""Losses on the gradients of images, for sharper restorations."""

from __future__ import annotations

from torch import Tensor


def gradient_difference(x: Tensor, restored: Tensor, power: float = 1.0) -> Tensor:
    """Mean of | |dx| - |dx^| |^power over neighbours, summed over the axes.

    Mathieu, Couprie and LeCun, ICLR 2016, where the neighbours are summed; as a mean its weight
    doesn't depend on the size. Magnitudes are compared: an edge of the other sign costs nothing.

    Args:
        x: (B, C, *spatial).
        restored: of the same shape.
        power: of the difference, 1 or more.
    """
    terms = [
        (x.diff(dim=axis).abs() - restored.diff(dim=axis).abs()).abs().pow(power).mean()
        for axis in range(2, x.ndim)
    ]
    return sum(terms[1:], terms[0])
