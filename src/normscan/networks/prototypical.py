"""Features beside prototypes at several scales, attention among patches, and a decoder to a map."""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn


def enlarging(factor: int) -> nn.Module:
    """Bilinear, corner on corner."""
    return nn.Upsample(scale_factor=factor, mode="bilinear", align_corners=True)


def larger(a: int, b: int, factor: int) -> nn.Module:
    """Enlarged, a convolution, a norm, a ReLU."""
    return nn.Sequential(
        enlarging(factor), nn.Conv2d(a, b, 3, padding=1), nn.BatchNorm2d(b), nn.ReLU()
    )


class Fusion(nn.Module):
    """Every scale gets what all others bring to it.

    From a coarser grid it is enlarged and convolved 1x1; from a finer one it is convolved with a
    stride, each channel by itself, or in as many groups as divide both widths.

    Args:
        widths: channels of each scale, the finest first, each grid half of the one before.
    """

    def __init__(self, widths: Sequence[int]) -> None:
        super().__init__()
        self.count = len(widths)
        self.paths = nn.ModuleDict()
        for a, b in itertools.permutations(range(self.count), 2):
            step = 2 ** abs(a - b)
            if a > b:
                path: nn.Module = nn.Sequential(enlarging(step), nn.Conv2d(widths[a], widths[b], 1))
            else:
                path = nn.Conv2d(
                    widths[a],
                    widths[b],
                    step + 1,
                    step,
                    step // 2,
                    groups=math.gcd(widths[a], widths[b]),
                )
            self.paths[f"{a}to{b}"] = path

    def forward(self, features: Sequence[Tensor]) -> list[Tensor]:
        """Features of each scale, (B, width, h, w), like what comes in."""
        result = []
        for b, own in enumerate(features):
            for a, other in enumerate(features):
                own = own if a == b else own + self.paths[f"{a}to{b}"](other)
            result.append(own)
        return result


class Scaled(nn.Module):
    """Every number of a patch scaled and moved by itself, a depthwise 1x1 convolution.

    Args:
        numbers: of a patch.
    """

    def __init__(self, numbers: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(numbers, 1, 1).uniform_(-1, 1))
        self.bias = nn.Parameter(torch.empty(numbers).uniform_(-1, 1))

    def forward(self, patches: Tensor) -> Tensor:
        """(B, numbers, N) like it."""
        return patches * self.weight[:, 0] + self.bias[:, None]


class PatchAttention(nn.Module):
    """Attention among square patches of one size, whose numbers are all scaled by themselves.

    Args:
        channels: of the features.
        side: of a patch.
    """

    def __init__(self, channels: int, side: int) -> None:
        super().__init__()
        self.side, numbers = side, channels * side**2
        # A matrix over so many numbers would be too large.
        self.query, self.key, self.value = (Scaled(numbers) for _ in range(3))

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, h, w) like it, h and w multiples of the side."""
        patches = nn.functional.unfold(x, self.side, stride=self.side)
        query, key, value = self.query(patches), self.key(patches), self.value(patches)
        weights = (query.mT @ key / patches.shape[1]).softmax(-1)
        mixed = (weights @ value.mT).mT
        return nn.functional.fold(mixed, x.shape[2:], self.side, stride=self.side)


class MultiSizeAttention(nn.Module):
    """Attention among patches of several sizes side by side, joined by a residual block.

    Args:
        channels: of the features.
        sides: of the patches.
    """

    def __init__(self, channels: int, sides: Sequence[int]) -> None:
        super().__init__()
        self.sizes = nn.ModuleList(PatchAttention(channels, side) for side in sides)
        many = len(sides) * channels
        self.join = nn.Sequential(
            nn.Conv2d(many, channels, 3, padding=1), nn.BatchNorm2d(channels), nn.ReLU(),
            nn.Conv2d(channels, channels, 3, padding=1), nn.BatchNorm2d(channels),
        )  # fmt: skip
        self.shortcut = nn.Conv2d(many, channels, 1)

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, h, w) like it."""
        seen = torch.cat([attention(x) for attention in self.sizes], 1)
        return (self.join(seen) + self.shortcut(seen)).relu()


class PrototypicalResidual(nn.Module):
    """From features and how they differ from prototypes to one logit for each pixel.

    Args:
        widths: channels of each scale and, last, of the coarsest features, which have no prototypes.
        sides: pixels of each scale's grid.
        sizes: patches of attention: as large as the grid, and halved so often less one.
        layers: of attention.
    """

    def __init__(
        self, widths: Sequence[int], sides: Sequence[int], sizes: int = 4, layers: int = 3
    ) -> None:
        super().__init__()
        *own, last = widths
        self.first, self.second = Fusion(own), Fusion([2 * w for w in own])
        self.attention = nn.ModuleList(
            nn.Sequential(
                *(
                    MultiSizeAttention(2 * w, [max(1, side >> k) for k in range(sizes)])
                    for _ in range(layers)
                )
            )
            for w, side in zip(own, sides, strict=False)
        )
        self.up, self.mix = nn.ModuleList(), nn.ModuleList()
        before = last
        for w in reversed(own):
            self.up.append(larger(before, w, 2))
            self.mix.append(
                nn.Sequential(
                    nn.Conv2d(3 * w, w, 3, padding=1), nn.BatchNorm2d(w), nn.ReLU(),
                    nn.Conv2d(w, w, 3, padding=1), nn.BatchNorm2d(w), nn.ReLU(),
                )
            )  # fmt: skip
            before = w
        self.out = nn.Sequential(larger(before, before, 4), nn.Conv2d(before, 1, 3, padding=1))

    def forward(
        self, features: Sequence[Tensor], residuals: Sequence[Tensor], last: Tensor
    ) -> Tensor:
        """Logits (B, 1, H, W).

        Args:
            features: of each scale.
            residuals: squared differences from their prototypes, alike.
            last: the coarsest features.
        """
        pairs = zip(self.first(features), self.first(residuals), strict=True)
        joined = [torch.cat(pair, 1) for pair in pairs]
        attended = [look(x) for look, x in zip(self.attention, joined, strict=True)]
        fused = self.second(attended)
        for up, mix, own in zip(self.up, self.mix, reversed(fused), strict=True):
            last = mix(torch.cat([own, up(last)], 1))
        result: Tensor = self.out(last)
        return result
