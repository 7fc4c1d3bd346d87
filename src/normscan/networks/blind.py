"""Networks that see all around a pixel, but not the square in whose middle it lies."""

from __future__ import annotations

from typing import cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from normscan.errors import ArgumentError


class UpwardConv(nn.Sequential):
    """3 x 3 convolution of rows up to its own, batch norm and Leaky ReLU.

    Args:
        inputs: channels.
        outputs: channels.
    """

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__(
            nn.ZeroPad2d((1, 1, 2, 0)),
            nn.Conv2d(inputs, outputs, 3, bias=False),
            nn.BatchNorm2d(outputs),
            nn.LeakyReLU(0.1),
        )


def lowered(x: Tensor, rows: int) -> Tensor:
    """Move an image down by so many rows, zeros above."""
    return F.pad(x, (0, 0, rows, 0))[..., : x.shape[-2], :]


class UpwardUNet(nn.Module):
    """A U-Net whose output in a row depends on this row and those above alone.

    Laine et al., NeurIPS 2019: convolutions see no lower row, and before two rows become one they are
    moved down by one.

    Args:
        channels: of the image.
        width: of the first level; they double.
        levels: that the image is halved to.
    """

    def __init__(self, channels: int, width: int, levels: int) -> None:
        super().__init__()
        widths = [width * 2**i for i in range(levels + 1)]
        self.down = nn.ModuleList(
            nn.Sequential(UpwardConv(a, b), UpwardConv(b, b))
            for a, b in zip((channels, *widths[:-1]), widths, strict=True)
        )
        self.up = nn.ModuleList(
            nn.Sequential(UpwardConv(a + b, a), UpwardConv(a, a))
            for a, b in reversed(list(zip(widths[:-1], widths[1:], strict=True)))
        )

    def forward(self, x: Tensor) -> Tensor:
        """Features (B, width, H, W); the sides are multiples of 2 to the number of levels."""
        skips: list[Tensor] = []
        for i, level in enumerate(self.down):
            x = level(F.max_pool2d(lowered(x, 1), 2) if i else x)
            skips.append(x)
        skips.pop()
        for level in self.up:
            x = F.interpolate(x, scale_factor=2, mode="nearest")
            x = level(torch.cat([skips.pop(), x], 1))
        return x


class BlindNetwork(nn.Module):
    """Features of each pixel from all but a square around it.

    The image passes an ``UpwardUNet`` in four directions; each result is moved away by half of the
    square, so that together they see all but its inside.

    Args:
        channels: of the image.
        width: of the network's first level, and of the result.
        levels: that the image is halved to.
        side: of the square in pixels, odd.
    """

    def __init__(self, channels: int, width: int, levels: int, side: int) -> None:
        super().__init__()
        if side < 1 or side % 2 == 0:
            raise ArgumentError(
                f"side={side}: a pixel is the middle of an odd square. Use {side + 1}."
            )
        self.away, self.multiple = side // 2 + 1, 2**levels
        self.network = UpwardUNet(channels, width, levels)
        self.mix = nn.Conv2d(4 * width, width, 1)

    def forward(self, x: Tensor) -> Tensor:
        """(B, width, H, W) of images whose sides are multiples of 2 to the number of levels."""
        views = []
        for turn in range(4):
            seen = lowered(self.network(x.rot90(turn, (2, 3))), self.away)
            views.append(seen.rot90(-turn, (2, 3)))
        return cast(Tensor, self.mix(torch.cat(views, 1)))


def plain_convolutions(channels: int, width: int, side: int) -> nn.Sequential:
    """3 x 3 convolutions with batch norm and Leaky ReLU, whose output sees a square of this side."""
    parts: list[nn.Module] = []
    for i in range((side - 1) // 2):
        parts += [nn.Conv2d(width if i else channels, width, 3, padding=1, bias=False)]
        parts += [nn.BatchNorm2d(width), nn.LeakyReLU(0.1)]
    return nn.Sequential(*parts)
