"""Inpainter with aggregated contextual transformations (AOT-GAN, Zeng et al., TVCG 2023)."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from normscan.errors import ArgumentError


def _mirrored(a: int, b: int, dilation: int = 1) -> nn.Conv2d:
    return nn.Conv2d(a, b, 3, padding=dilation, dilation=dilation, padding_mode="reflect")


class AOTBlock(nn.Module):
    """Convolutions of several dilations, fused, and mixed into the input by a gate of its own.

    Args:
        channels: of input and output, a multiple of the number of rates.
        rates: dilations; the grid has more cells a side than the largest.
    """

    def __init__(self, channels: int, rates: Sequence[int]) -> None:
        super().__init__()
        each = channels // len(rates)
        self.branches = nn.ModuleList(
            nn.Sequential(_mirrored(channels, each, rate), nn.ReLU()) for rate in rates
        )
        self.fuse, self.gate = _mirrored(channels, channels), _mirrored(channels, channels)

    def forward(self, x: Tensor) -> Tensor:
        fused = self.fuse(torch.cat([branch(x) for branch in self.branches], 1))
        gate = self.gate(x)
        std, mean = torch.std_mean(gate, (2, 3), keepdim=True)
        gate = torch.sigmoid(5 * (2 * (gate - mean) / (std + 1e-9) - 1))
        return x * (1 - gate) + fused * gate


class Inpainter(nn.Module):
    """An image whose holes are 1, and the holes, to the whole image, by tanh.

    Args:
        channels: of the image.
        width: channels of the first convolution; the widest has four times as many.
        blocks: on a quarter of the grid.
        rates: dilations in each block.

    Raises:
        ArgumentError: the widest's channels can't be shared equally among the rates.
    """

    def __init__(
        self,
        channels: int = 1,
        width: int = 64,
        blocks: int = 8,
        rates: Sequence[int] = (1, 2, 4, 8),
    ) -> None:
        super().__init__()
        wide = 4 * width
        if wide % len(rates):
            raise ArgumentError(
                f"width={width}, rates={tuple(rates)}: {wide} channels, four times the width, must "
                f"be a multiple of the number of rates, {len(rates)}."
            )
        self.down = nn.Sequential(
            nn.Conv2d(channels + 1, width, 7, padding=3, padding_mode="reflect"), nn.ReLU(),
            nn.Conv2d(width, 2 * width, 4, 2, 1), nn.ReLU(),
            nn.Conv2d(2 * width, wide, 4, 2, 1), nn.ReLU(),
        )  # fmt: skip
        self.middle = nn.Sequential(*(AOTBlock(wide, rates) for _ in range(blocks)))
        self.up = nn.ModuleList(nn.Conv2d(a, a // 2, 3, padding=1) for a in (wide, wide // 2))
        self.end = nn.Conv2d(width, channels, 3, padding=1)

    def forward(self, x: Tensor, holes: Tensor) -> Tensor:
        """Fill (B, C, H, W), sides multiples of 4, with holes (B, 1, H, W) of ones."""
        x = self.middle(self.down(torch.cat([x, holes], 1)))
        for conv in self.up:
            enlarged = F.interpolate(x, scale_factor=2, mode="bilinear", align_corners=True)
            x = F.relu(conv(enlarged))
        filled: Tensor = torch.tanh(self.end(x))
        return filled
