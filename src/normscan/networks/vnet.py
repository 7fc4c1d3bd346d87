"""A small V-Net in 2D that says what an image would be without its anomalies (ASN)."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from normscan.networks.blocks import pad_to_multiple


def _unit(a: int, b: int, relu: bool = True) -> list[nn.Module]:
    return [nn.Conv2d(a, b, 3, padding=1), nn.BatchNorm2d(b), *([nn.ReLU()] if relu else [])]


class _Residual(nn.Module):
    """So many 3x3 convolutions beside the identity."""

    def __init__(self, channels: int, convolutions: int) -> None:
        super().__init__()
        parts: list[nn.Module] = []
        for i in range(convolutions):
            parts += _unit(channels, channels, i < convolutions - 1)
        self.layers = nn.Sequential(*parts)

    def forward(self, x: Tensor) -> Tensor:
        return torch.relu(x + self.layers(x))


class SeparatingVNet(nn.Module):
    """V-Net with 2x2 convolutions of stride 2 between levels, and a sigmoid at the end.

    The last batch norm and ReLU lie on the image's own channels.

    Args:
        channels: of the image.
        width: channels of the first level, an even number; they double three times.
    """

    def __init__(self, channels: int = 1, width: int = 16) -> None:
        super().__init__()
        n = [width * 2**i for i in range(4)]
        self.begin = nn.Sequential(*_unit(channels, width))
        self.down = nn.ModuleList(
            nn.Sequential(
                nn.Conv2d(a, b, 2, stride=2), nn.BatchNorm2d(b), nn.ReLU(), _Residual(b, i)
            )
            for i, (a, b) in enumerate(zip(n, n[1:], strict=False), 1)
        )
        self.enlarge, self.merge = nn.ModuleList(), nn.ModuleList()
        for (a, b), convolutions in zip(
            ((n[3], n[3]), (n[3], n[2]), (n[2], n[1])), (3, 2, 1), strict=True
        ):
            up = nn.ConvTranspose2d(a, b // 2, 2, stride=2)
            self.enlarge.append(nn.Sequential(up, nn.BatchNorm2d(b // 2), nn.ReLU()))
            self.merge.append(_Residual(b, convolutions))
        end = nn.Conv2d(channels, channels, 1)
        self.end = nn.Sequential(*_unit(n[1], channels), end, nn.Sigmoid())
        for part in self.modules():
            if isinstance(part, nn.BatchNorm2d):
                nn.init.normal_(part.weight, 1.0, 0.02)

    def forward(self, x: Tensor) -> Tensor:
        x, cut = pad_to_multiple(x, 8)
        skips = [self.begin(x)]
        for block in self.down:
            skips.append(block(skips[-1]))
        y = skips.pop()
        for enlarge, merge in zip(self.enlarge, self.merge, strict=True):
            y = merge(torch.cat([enlarge(y), skips.pop()], 1))
        separated: Tensor = self.end(y)
        return separated[cut]
