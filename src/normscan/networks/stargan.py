"""Translator between domains and critic of StarGAN (Choi et al. 2018)."""

from __future__ import annotations

from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from normscan.errors import ArgumentError
from normscan.networks.cyclegan import Residual, normed


class Translator(nn.Module):
    """Image and wanted domain to what must be added to the image.

    Args:
        channels: of the image.
        domains: numbers that tell a domain.
        width: channels of the first convolution; the widest has four times as many.
        blocks: residual blocks on a quarter of the grid.
    """

    def __init__(self, channels: int, domains: int, width: int, blocks: int) -> None:
        super().__init__()
        learnt = partial(normed, affine=True)
        parts = learnt(nn.Conv2d(channels + domains, width, 7, padding=3, bias=False), width)
        for a in (width, 2 * width):
            parts += learnt(nn.Conv2d(a, 2 * a, 4, 2, 1, bias=False), 2 * a)
        parts += [Residual(4 * width, borders="zeros", affine=True) for _ in range(blocks)]
        for a in (4 * width, 2 * width):
            parts += learnt(nn.ConvTranspose2d(a, a // 2, 4, 2, 1, bias=False), a // 2)
        self.layers = nn.Sequential(*parts, nn.Conv2d(width, channels, 7, padding=3, bias=False))

    def forward(self, x: Tensor, domain: Tensor) -> Tensor:
        """Change (B, C, H, W) of images, sides multiples of 4, to domains (B, domains)."""
        planes = domain[:, :, None, None].expand(-1, -1, *x.shape[2:])
        change: Tensor = self.layers(torch.cat([x, planes], dim=1))
        return change


class PatchCritic(nn.Module):
    """Image to a number for each patch, high for real ones.

    Args:
        channels: of the image.
        size: pixels along each axis.
        width: channels of the first convolution; they double.
        halvings: convolutions of stride 2.

    Raises:
        ArgumentError: the size is no multiple of 2**halvings.
    """

    def __init__(self, channels: int, size: int, width: int, halvings: int) -> None:
        super().__init__()
        self.cells, rest = divmod(size, 2**halvings)
        if rest or not self.cells:
            raise ArgumentError(
                f"size={size} can't be halved {halvings} times: give a multiple of {2**halvings}, or "
                "fewer halvings."
            )
        widths = [channels, *(width * 2**i for i in range(halvings))]
        parts: list[nn.Module] = []
        for a, b in zip(widths, widths[1:], strict=False):
            parts += [nn.Conv2d(a, b, 4, 2, 1), nn.LeakyReLU(0.01)]
        self.features = nn.Sequential(*parts)
        self.real = nn.Conv2d(widths[-1], 1, 3, padding=1, bias=False)

    def forward(self, x: Tensor) -> Any:
        """Numbers (B, 1, h, w)."""
        return self.real(self.features(x))


class DomainCritic(PatchCritic):
    """A critic that also tells an image's domain.

    Args:
        channels: of the image.
        domains: numbers that tell a domain.
        size: pixels along each axis.
        width: channels of the first convolution; they double.
        halvings: convolutions of stride 2.
    """

    def __init__(self, channels: int, domains: int, size: int, width: int, halvings: int) -> None:
        super().__init__(channels, size, width, halvings)
        widest = width * 2 ** (halvings - 1)
        self.domain = nn.Conv2d(widest, domains, self.cells, bias=False)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Numbers (B, 1, h, w) and logits (B, domains)."""
        features = self.features(x)
        return self.real(features), self.domain(features).flatten(1)
