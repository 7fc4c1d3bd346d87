"""The two networks of DRAEM, one that restores and one that segments, and the U-Net of AutoSeg."""

from __future__ import annotations

import itertools

import torch
from torch import Tensor, nn

from normscan.networks.blocks import pad_to_multiple


def unit(a: int, b: int, bias: bool = True) -> list[nn.Module]:
    """3x3 convolution, batch norm and ReLU."""
    return [nn.Conv2d(a, b, 3, padding=1, bias=bias), nn.BatchNorm2d(b), nn.ReLU()]


def _levels(channels: int, widths: list[int]) -> list[nn.Module]:
    """Two units a level, between max pooling."""
    return [
        nn.Sequential(*unit(a, b), *unit(b, b)) for a, b in itertools.pairwise([channels, *widths])
    ]


def _enlarged(a: int, b: int) -> nn.Sequential:
    return nn.Sequential(
        nn.Upsample(scale_factor=2, mode="bilinear", align_corners=True), *unit(a, b)
    )


def _near_zero(network: nn.Module) -> None:
    """Convolutions N(0, 0.02) and norms N(1, 0.02), as released."""
    for part in network.modules():
        if isinstance(part, nn.Conv2d):
            nn.init.normal_(part.weight, 0.0, 0.02)
        elif isinstance(part, nn.BatchNorm2d):
            nn.init.normal_(part.weight, 1.0, 0.02)


class RestoringNetwork(nn.Module):
    """Convolutions and max pooling down, enlargement up, no skips; linear output.

    Widths 1, 2, 4, 8, 8 times ``width`` down; 8, 4, 2, 1 up, each level with a unit after its
    enlargement and two more, the last of which narrows.

    Args:
        channels: of input and output.
        width: channels of the first level (128).
    """

    def __init__(self, channels: int, width: int = 128) -> None:
        super().__init__()
        down = [width * n for n in (1, 2, 4, 8, 8)]
        levels = _levels(channels, down)
        pools = [nn.MaxPool2d(2) for _ in levels[1:]]
        between = itertools.chain.from_iterable(zip(pools, levels[1:], strict=True))
        up: list[nn.Module] = []
        for a, b in ((8, 4), (4, 2), (2, 1), (1, 1)):
            a, b = a * width, b * width
            up += [_enlarged(a, a), *unit(a, a), *unit(a, b)]
        self.network = nn.Sequential(
            levels[0], *between, *up, nn.Conv2d(width, channels, 3, padding=1)
        )
        _near_zero(self)

    def forward(self, x: Tensor) -> Tensor:
        x, cut = pad_to_multiple(x, 16)
        result: Tensor = self.network(x)
        return result[cut]


class SegmentingNetwork(nn.Module):
    """U-Net of six levels with max pooling and linear enlargement; linear output.

    Widths 1, 2, 4, 8, 8, 8 times ``width``.

    Args:
        channels: of the input.
        outputs: channels of the output.
        width: channels of the first level (64).
    """

    def __init__(self, channels: int, outputs: int = 2, width: int = 64) -> None:
        super().__init__()
        down = [width * n for n in (1, 2, 4, 8, 8, 8)]
        up = [width * n for n in (8, 4, 2, 1, 1)]
        self.levels = nn.ModuleList(_levels(channels, down))
        self.enlarge = nn.ModuleList(
            _enlarged(a, b) for a, b in itertools.pairwise([down[-1], *up])
        )
        self.merge = nn.ModuleList(
            nn.Sequential(*unit(skip + b, b), *unit(b, b))
            for skip, b in zip(reversed(down[:-1]), up, strict=True)
        )
        self.out = nn.Conv2d(width, outputs, 3, padding=1)
        self.pool = nn.MaxPool2d(2)
        _near_zero(self)

    def forward(self, x: Tensor) -> Tensor:
        x, cut = pad_to_multiple(x, 32)
        skips: list[Tensor] = []
        for level in self.levels:
            x = level(self.pool(x) if skips else x)
            skips.append(x)
        skips.pop()
        for enlarge, merge in zip(self.enlarge, self.merge, strict=True):
            x = merge(torch.cat([enlarge(x), skips.pop()], 1))
        result: Tensor = self.out(x)
        return result[cut]


class BatchNormUNet(nn.Module):
    """U-Net of five levels, each twice as wide, with transposed 2x2 convolutions; linear output.

    Args:
        channels: of the input.
        outputs: channels of the output.
        width: channels of the first level (32).
        depth: how often the grid is halved.
        middle: what is done to the deepest features, (B, width 2**depth, h, w), before they are
            enlarged; None for nothing.
        dropout: share of the features that are dropped behind each level but the last.
    """

    def __init__(
        self,
        channels: int,
        outputs: int = 1,
        width: int = 32,
        depth: int = 4,
        middle: nn.Module | None = None,
        dropout: float = 0.0,
    ) -> None:
        super().__init__()
        widths = [width * 2**i for i in range(depth + 1)]

        def double(a: int, b: int) -> nn.Sequential:
            return nn.Sequential(*unit(a, b, bias=False), *unit(b, b, bias=False))

        self.down = nn.ModuleList(double(a, b) for a, b in itertools.pairwise([channels, *widths]))
        pairs = list(itertools.pairwise(reversed(widths)))
        self.up = nn.ModuleList(nn.ConvTranspose2d(a, b, 2, stride=2) for a, b in pairs)
        self.merge = nn.ModuleList(double(a, b) for a, b in pairs)
        self.middle = middle or nn.Identity()
        self.drop = nn.Dropout(dropout) if dropout else nn.Identity()
        self.out = nn.Conv2d(width, outputs, 1)
        self.pool = nn.MaxPool2d(2)
        self.multiple = 2**depth

    def forward(self, x: Tensor) -> Tensor:
        x, cut = pad_to_multiple(x, self.multiple)
        skips: list[Tensor] = []
        for level in self.down:
            x = self.drop(level(self.pool(x) if skips else x))
            skips.append(x)
        x = self.middle(skips.pop())
        for up, merge in zip(self.up, self.merge, strict=True):
            x = merge(torch.cat([up(x), skips.pop()], 1))
            x = self.drop(x) if skips else x
        result: Tensor = self.out(x)
        return result[cut]
