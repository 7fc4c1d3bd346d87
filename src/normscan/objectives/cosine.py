"""Cosine distances between feature maps, as distillation trains and scores with them."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn import functional as F


def point_distance(a: Tensor, b: Tensor) -> Tensor:
    """1 - cos of the vectors at each point: (B, 1, h, w) of (B, C, h, w) maps."""
    return 1 - F.cosine_similarity(a, b, dim=1).unsqueeze(1)


def global_distance(a: Tensor, b: Tensor) -> Tensor:
    """1 - cos of the maps as long vectors (C, h and w together), mean over the batch."""
    return (1 - F.cosine_similarity(a.flatten(1), b.flatten(1), dim=1)).mean()


def global_loss(targets: Sequence[Tensor], maps: Sequence[Tensor]) -> Tensor:
    """Sum over the levels of ``global_distance``; no gradient reaches the targets (RD4AD)."""
    pairs = zip(targets, maps, strict=True)
    return torch.stack([global_distance(a.detach(), b) for a, b in pairs]).sum()


def damped(b: Tensor, easy: Tensor, factor: float) -> Tensor:
    """Return a map whose gradient is multiplied by a factor at the easy points.

    The value stays: this is the hard mining of ReContrast and Dinomaly, which act on the gradient
    and not on the loss.

    Args:
        b: (B, C, h, w).
        easy: (B, 1, h, w) bool.
        factor: of the gradient there.
    """
    if not b.requires_grad:
        return b
    scale = torch.where(easy, factor, 1.0).to(b.dtype)
    return b * scale + (b * (1 - scale)).detach()


def distance_map(
    targets: Sequence[Tensor],
    maps: Sequence[Tensor],
    size: Sequence[int],
    align_corners: bool = True,
) -> Tensor:
    """Sum over the levels of the point distances, enlarged bilinearly: (B, 1, *size)."""
    return torch.stack(
        [
            F.interpolate(
                point_distance(a, b), tuple(size), mode="bilinear", align_corners=align_corners
            )
            for a, b in zip(targets, maps, strict=True)
        ]
    ).sum(0)
