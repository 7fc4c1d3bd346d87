"""Gradients with respect to images, and losses on the gradients of images."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor


def input_gradient(error: Callable[[Tensor], Tensor], x: Tensor) -> tuple[Tensor, Tensor]:
    """The error of each image and its gradient with respect to that image.

    Args:
        error: images to (B,), each from its own image alone.
        x: (B, C, *spatial).

    Returns:
        (B,) and (B, C, *spatial), neither of which can be differentiated further.
    """
    with torch.enable_grad():
        x = x.detach().requires_grad_()
        errors = error(x)
        (slope,) = torch.autograd.grad(errors.sum(), x)
    return errors.detach(), slope


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
