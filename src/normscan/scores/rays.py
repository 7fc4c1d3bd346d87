"""What lies in most directions: compact anomalies stay, thin lines go (Seeboeck et al. 2020)."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

DIRECTIONS = [(dy, dx) for dy in (-1, 0, 1) for dx in (-1, 0, 1) if dy or dx]


def beyond(x: Tensor, dy: int, dx: int) -> Tensor:
    """Largest value on the ray that leaves each pixel in a direction, 0 beyond the border.

    The pixel itself doesn't count.

    Args:
        x: (B, 1, H, W), 0 or more.
        dy: rows of a step, -1, 0 or 1.
        dx: columns of a step, likewise.
    """
    if dy == 0:
        return beyond(x.mT, dx, 0).mT
    rows = x.unbind(-2)
    found = [torch.zeros_like(row) for row in rows]
    for i in range(len(rows) - 2, -1, -1) if dy > 0 else range(1, len(rows)):
        seen = torch.maximum(rows[i + dy], found[i + dy])
        # Column j sees column j + dx.
        found[i] = F.pad(seen, (-dx, dx)) if dx else seen
    return torch.stack(found, dim=-2)


def majority_of_rays(x: Tensor, inside: Tensor, times: int = 1) -> Tensor:
    """The largest value that more than half of eight rays from each pixel meet.

    Where this is above a threshold, most rays meet a pixel above it: majority ray casting of the
    image binarised at any threshold, for all of them at once. What is surrounded is filled; lines
    thinner than two pixels and ends that stick out vanish.

    Args:
        x: (B, 1, H, W), 0 or more.
        inside: (B, 1, H, W) bool; rays meet nothing outside, and nothing is found there.
        times: repetitions, each on the result of the one before.
    """
    for _ in range(times):
        x = x * inside
        met = torch.stack([beyond(x, dy, dx) for dy, dx in DIRECTIONS])
        x = met.topk(len(DIRECTIONS) // 2 + 1, dim=0).values[-1] * inside
    return x
