"""Holes as a brush would make them."""

from __future__ import annotations

import torch
from torch import Tensor

from normscan.rng import Rng
from normscan.synthesis.draws import between, grid


def brushed(
    rng: Rng,
    n: int,
    spatial: tuple[int, int],
    unit: float = 1.0,
    device: torch.device | str = "cpu",
) -> Tensor:
    """Masks of 1 to 4 strokes of 10 to 15 points, 10 to 15 pixels wide (Yu et al. 2019).

    From each point a stroke goes on for 10 to 30 pixels in any direction, within the frame.

    Args:
        rng: source of randomness.
        n: masks.
        spatial: (H, W).
        unit: pixels for each of those that widths and lengths are told in.
        device: where the masks are to lie.

    Returns:
        (n, 1, H, W) float, 1 in a stroke and 0 beyond.
    """
    frame = torch.tensor(spatial, dtype=torch.float32)
    strokes = rng.integers(1, 5, (n, 1))
    at, masks = grid(spatial), torch.zeros(n, *spatial, dtype=torch.bool)
    for stroke in range(4):
        points = rng.integers(10, 16, (n, 1))
        half = between(rng, (n, 1), 10, 15) * unit / 2
        here = rng.uniform((n, 2)) * frame
        for point in range(14):
            turn, length = between(rng, (n, 1), 0, 2 * torch.pi), between(rng, (n, 1), 10, 30)
            step = torch.cat([turn.sin(), turn.cos()], 1) * length * unit
            there = torch.minimum((here + step).clamp_min(0), frame - 1)
            drawn = (stroke < strokes) & (point < points - 1)
            masks |= drawn[..., None] & (_distance(at, here, there) <= half[..., None])
            here = there
    return masks[:, None].float().to(device)


def _distance(at: Tensor, a: Tensor, b: Tensor) -> Tensor:
    """Distance (n, H, W) of pixels (2, H, W) from the segments between points (n, 2)."""
    along = (b - a)[..., None, None]
    offset = at - a[..., None, None]
    length = along.square().sum(1).clamp_min(1e-6)
    share = ((offset * along).sum(1) / length).clamp(0, 1)
    return (offset - share[:, None] * along).norm(dim=1)
