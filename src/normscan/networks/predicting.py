"""U-Net and critic with self-attention that tell some slices from others."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn.utils.parametrizations import spectral_norm

from normscan.networks.attention import SelfAttention
from normscan.networks.blocks import doublings
from normscan.networks.dcgan import SMALLEST, Leaky


def _widths(size: int, width: int) -> list[int]:
    return [width * min(2**i, 8) for i in range(doublings(size, SMALLEST))]


class SkipTranslator(nn.Module):
    """Images to images in -1..1 by 4x4 convolutions of stride 2 with skips (Isola et al. 2017).

    Batch norm on all but the first and the last, Leaky ReLU down and ReLU up.

    Args:
        channels: of the input.
        outputs: channels of the output.
        size: pixels along each axis, 4 times a power of two.
        width: channels of the first convolution; they double up to 8 times as many.
        attention: levels with self-attention on the way up, the deepest first.

    Raises:
        ArgumentError: the size is no such product.
    """

    def __init__(self, channels: int, outputs: int, size: int, width: int, attention: int) -> None:
        super().__init__()
        widths = _widths(size, width)
        self.down, self.up, self.attention = nn.ModuleList(), nn.ModuleList(), nn.ModuleList()
        for i, (a, b) in enumerate(zip([channels, *widths], widths, strict=False)):
            norm = [nn.BatchNorm2d(b)] if i else []
            self.down.append(nn.Sequential(nn.Conv2d(a, b, 4, 2, 1, bias=not i), *norm, Leaky()))
        back = widths[::-1]
        for i, (a, b) in enumerate(zip(back, back[1:], strict=False)):
            conv = nn.ConvTranspose2d(2 * a if i else a, b, 4, 2, 1, bias=False)
            self.up.append(nn.Sequential(conv, nn.BatchNorm2d(b), nn.ReLU()))
            self.attention.append(SelfAttention(b) if i < attention else nn.Identity())
        last = nn.ConvTranspose2d(2 * width if self.up else width, outputs, 4, 2, 1)
        self.last = nn.Sequential(last, nn.Tanh())

    def forward(self, x: Tensor) -> Tensor:
        skips: list[Tensor] = []
        for stage in self.down:
            x = stage(x)
            skips.append(x)
        x = skips.pop()
        for stage, attend in zip(self.up, self.attention, strict=True):
            x = torch.cat([attend(stage(x)), skips.pop()], 1)
        image: Tensor = self.last(x)
        return image


class AttentiveCritic(nn.Module):
    """Images to a number each, by 4x4 convolutions of stride 2 with spectral norm and attention.

    Args:
        channels: of the images.
        size: pixels along each axis, 4 times a power of two.
        width: channels of the first convolution; they double up to 8 times as many.
        attention: levels with self-attention, the deepest first.

    Raises:
        ArgumentError: the size is no such product.
    """

    def __init__(self, channels: int, size: int, width: int, attention: int) -> None:
        super().__init__()
        widths, parts = _widths(size, width), list[nn.Module]()
        for i, (a, b) in enumerate(zip([channels, *widths], widths, strict=False)):
            parts += [spectral_norm(nn.Conv2d(a, b, 4, 2, 1)), Leaky()]
            if i >= len(widths) - attention:
                parts.append(SelfAttention(b))
        last = spectral_norm(nn.Linear(widths[-1] * SMALLEST**2, 1))
        self.layers = nn.Sequential(*parts, nn.Flatten(), last)

    def forward(self, x: Tensor) -> Tensor:
        number: Tensor = self.layers(x)
        return number
