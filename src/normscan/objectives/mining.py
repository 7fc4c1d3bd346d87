"""Hard mining: points that are matched already teach nothing."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from normscan.objectives.cosine import damped, global_loss, point_distance


def mining_strength(
    step: int, steps: int, first: float = -3.0, last: float = 1.0, ramp: float = 0.1
) -> float:
    """ReContrast's alpha: from ``first`` to ``last`` linearly in a share of the steps, then constant.

    Args:
        step: number of the step, from 0.
        steps: of the whole training.
        first: alpha at the start.
        last: alpha behind the ramp.
        ramp: share of the steps.
    """
    return min(first + (last - first) * step / (steps * ramp), last) if ramp > 0 else last


@torch.no_grad()
def easy_points(distance: Tensor, alpha: float) -> Tensor:
    """Points nearer than mean + alpha * std over the whole batch (ReContrast): bool.

    Args:
        distance: (B, 1, h, w), at least two points.
        alpha: how many deviations above the mean a hard point lies.
    """
    return distance < distance.mean() + alpha * distance.std()


def mined_loss(
    targets: Sequence[Tensor], maps: Sequence[Tensor], alpha: float, factor: float = 0.0
) -> Tensor:
    """``global_loss`` whose gradient on the maps is multiplied by a factor at their easy points.

    Guo et al., NeurIPS 2023. The value is that of ``global_loss``.

    Args:
        targets: (B, C, h, w) per level; no gradient reaches them.
        maps: of the same shapes.
        alpha: of ``easy_points``.
        factor: of the gradient at easy points.
    """
    hard = [
        damped(b, easy_points(point_distance(a, b), alpha), factor)
        for a, b in zip(targets, maps, strict=True)
    ]
    return global_loss(targets, hard)
