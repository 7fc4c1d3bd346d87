"""What a network shall say of an artificial anomaly: rules from the change to a label.

Only pixels that changed are labelled.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor

Label = Callable[[Tensor, Tensor, Tensor, Tensor], Tensor]
"""Host, changed image, mask and share of the donor to a label (n, 1, *spatial)."""


def changed(x: Tensor, y: Tensor, mask: Tensor, tolerance: float = 0.0) -> Tensor:
    """Pixels of a mask whose channels changed by more than a tolerance on average, bool."""
    return mask & ((x - y).abs().mean(1, keepdim=True) > tolerance)


def binary(tolerance: float = 1e-3) -> Label:
    """1 where it changed."""

    def label(x: Tensor, y: Tensor, mask: Tensor, share: Tensor) -> Tensor:
        return changed(x, y, mask, tolerance).to(x)

    return label


def mask(x: Tensor, y: Tensor, mask: Tensor, share: Tensor) -> Tensor:
    """The whole mask, changed or not (DRAEM)."""
    return mask.to(x)


def factor(tolerance: float = 1e-3) -> Label:
    """The share of the donor where it changed (FPI, PII)."""

    def label(x: Tensor, y: Tensor, mask: Tensor, share: Tensor) -> Tensor:
        return changed(x, y, mask, tolerance) * share

    return label


def steps(n: int, tolerance: float = 1e-3) -> Label:
    """The number of the class whose share it is, of n with the unchanged one, (n, 1, *spatial)."""

    def label(x: Tensor, y: Tensor, mask: Tensor, share: Tensor) -> Tensor:
        return changed(x, y, mask, tolerance) * (share * (n - 1)).round()

    return label


def _median(values: Tensor, size: int | None = None, radius: int | None = None) -> Tensor:
    """Median filter over a square of ``size`` or a ball of ``radius``; the frame's values go on.

    Values are 0 or more. Only the box of what isn't 0 is filtered: a window centred outside it holds
    more zeros than other values.
    """
    from scipy.ndimage import median_filter

    dims, reach = values.ndim - 2, radius or (size or 1) // 2
    axes = np.meshgrid(*[np.arange(-reach, reach + 1)] * dims, indexing="ij")
    ball = sum(a**2 for a in axes) <= reach**2
    window = np.ones_like(ball) if radius is None else ball
    result = np.zeros(values.shape, np.float32)
    for image, out in zip(values[:, 0].cpu().numpy(), result[:, 0], strict=True):
        places = image.nonzero()
        if len(places[0]):
            box = tuple(slice(max(0, p.min() - reach), p.max() + reach + 1) for p in places)
            out[box] = median_filter(image[box], footprint=window, mode="nearest")
    return torch.from_numpy(result).to(values)


def difference(
    scale: float = 255, tolerance: float = 1, logistic: tuple[float, float] | None = None
) -> Label:
    """How much it changed, smoothed by medians (NSA).

    Pixels that changed by more than the tolerance, median filtered (5 x 5), hold the median of the
    change over a disk of radius 5; with ``logistic`` (k, x0) it becomes 1 / (1 + exp(-k (d - x0))).

    Args:
        scale: the image's unit in the grey values that all these numbers are in.
        tolerance: in grey values.
        logistic: slope and middle.
    """

    def label(x: Tensor, y: Tensor, mask: Tensor, share: Tensor) -> Tensor:
        change = scale * (x - y).abs().mean(1, keepdim=True) * mask
        where = _median((change > tolerance).to(x), size=5)
        found = _median(change * where, radius=5)
        if logistic is None:
            return found / scale
        k, middle = logistic
        return where * torch.sigmoid(k * (found - middle))

    return label


def flipped_gaussian(sigma: float = 0.2) -> Label:
    """1 - exp(-d^2 / (2 sigma^2)) of the mean change d, its holes filled (Baugh et al., 2023).

    In the box of each connected mask: grey closing with the structure of pixels that share an edge or
    a face, and reconstruction by erosion from the box's frame.
    """

    def label(x: Tensor, y: Tensor, mask: Tensor, share: Tensor) -> Tensor:
        change = (mask * (x - y).abs()).mean(1)
        raw = (1 - torch.exp(-change.square() / (2 * sigma**2))).cpu().double().numpy()
        for values, where in zip(raw, mask[:, 0].cpu().numpy(), strict=True):
            _fill_holes(values, where)
        return torch.from_numpy(raw)[:, None].to(x)

    return label


def _fill_holes(values: np.ndarray, mask: np.ndarray) -> None:
    from scipy import ndimage
    from skimage.morphology import reconstruction

    dims = values.ndim
    structure = ndimage.generate_binary_structure(dims, 2)
    for box in ndimage.find_objects(ndimage.label(mask)[0]):
        closed = ndimage.grey_closing(values[box], footprint=structure)
        seed = closed.copy()
        seed[(slice(1, -1),) * dims] = closed.max()
        values[box] = reconstruction(seed, closed, method="erosion", footprint=structure)
