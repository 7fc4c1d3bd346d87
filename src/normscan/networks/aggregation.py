"""From the stages of a backbone to one vector for each patch of the image."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import torch
from torch import Tensor
from torch.nn import functional as F


def concatenated(
    features: Sequence[Tensor],
    grid: tuple[int, int] | None = None,
    mode: Literal["nearest", "bilinear"] = "bilinear",
    align_corners: bool = False,
    pooled: int = 0,
) -> Tensor:
    """Bring all stages onto one grid and join their channels.

    Args:
        features: (B, C, h, w) per stage.
        grid: (h, w); that of the first stage by default.
        mode: ``nearest`` (PaDiM) or ``bilinear`` (UniAD, FAE, CFA).
        align_corners: of the bilinear interpolation.
        pooled: average each stage over windows of so many cells a side first (CFA); 0 for none.

    Returns:
        (B, sum of C, h, w).
    """
    size = tuple(grid or features[0].shape[-2:])
    corners = align_corners if mode == "bilinear" else None
    stages = []
    for f in features:
        f = F.avg_pool2d(f, pooled, stride=1, padding=pooled // 2) if pooled else f
        same = tuple(f.shape[-2:]) == size
        stages.append(f if same else F.interpolate(f, size, mode=mode, align_corners=corners))
    return torch.cat(stages, dim=1)


def patch_features(
    features: Sequence[Tensor], neighbourhood: int, stage_dim: int, dim: int
) -> Tensor:
    """Locally aware patch features (PatchCore's aggregation, Roth et al. 2022; also SimpleNet's).

    Each stage is unfolded into windows; the windows of deeper stages are enlarged to the grid of
    the first; a window's values are pooled to ``stage_dim`` numbers and the stages' together to
    ``dim``.

    Args:
        features: (B, C, h, w) per stage, the finest first.
        neighbourhood: side of a window in cells.
        stage_dim: numbers per stage.
        dim: numbers per patch.

    Returns:
        (B, h * w, dim) on the grid of the first stage.
    """
    grid = features[0].shape[-2:]
    stages = []
    for f in features:
        b, _, h, w = f.shape
        windows = F.unfold(f, neighbourhood, padding=neighbourhood // 2)
        # The article enlarges the windows before it pools them. The two are linear and on different
        # axes, so the order doesn't matter, and pooled windows are several times shorter.
        pooled = F.adaptive_avg_pool1d(windows.transpose(1, 2), stage_dim)
        if (h, w) != tuple(grid):
            image = pooled.transpose(1, 2).reshape(b, stage_dim, h, w)
            image = F.interpolate(image, grid, mode="bilinear", align_corners=False)
            pooled = image.flatten(2).transpose(1, 2)
        stages.append(pooled)
    return F.adaptive_avg_pool1d(torch.cat(stages, dim=-1), dim)


def vectors(features: Tensor) -> Tensor:
    """Channels of (B, C, h, w) as rows: (B, h * w, C)."""
    return features.flatten(2).transpose(1, 2)
