"""Two-stage inpainting with gated convolutions, and the critic of what fills a hole."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn.utils.parametrizations import spectral_norm

from normscan.errors import ArgumentError
from normscan.networks.attention import SelfAttention
from normscan.networks.dcgan import Leaky

SHRUNKEN = 4  # pixels of an image in one of the deepest features
DILATIONS = (2, 4, 8, 16)


class GatedConv(nn.Module):
    """Features times their own gates (Yu et al. 2019): batch norm and Leaky ReLU, times a sigmoid.

    Args:
        a: channels of the input.
        b: channels of the output.
        kernel: side of the filters.
        stride: pixels between them.
        dilation: pixels between their points.
        norm: with batch norm.
        activation: of the features.
    """

    def __init__(
        self, a: int, b: int, kernel: int = 3, stride: int = 1, dilation: int = 1,
        norm: bool = True, activation: type[nn.Module] = Leaky,
    ) -> None:  # fmt: skip
        super().__init__()

        def conv() -> nn.Module:
            padding = dilation * (kernel // 2)
            return nn.Conv2d(a, b, kernel, stride, padding, dilation, padding_mode="reflect")

        self.features, self.gates = conv(), conv()
        self.end = nn.Sequential(*([nn.BatchNorm2d(b)] if norm else []), activation())

    def forward(self, x: Tensor) -> Tensor:
        gated: Tensor = self.end(self.features(x)) * torch.sigmoid(self.gates(x))
        return gated


def _inward(channels: int, width: int, dilations: tuple[int, ...]) -> list[nn.Module]:
    wide = 4 * width
    return [
        GatedConv(channels + 1, width, 5, norm=False),
        GatedConv(width, 2 * width, stride=2),
        GatedConv(2 * width, 2 * width),
        GatedConv(2 * width, wide, stride=2),
        *(GatedConv(wide, wide) for _ in range(2)),
        *(GatedConv(wide, wide, dilation=d) for d in dilations),
    ]


def _outward(channels: int, width: int) -> list[nn.Module]:
    wide = 4 * width
    return [
        *(GatedConv(wide, wide) for _ in range(2)),
        nn.Upsample(scale_factor=2),
        GatedConv(wide, 2 * width),
        GatedConv(2 * width, 2 * width),
        nn.Upsample(scale_factor=2),
        GatedConv(2 * width, width),
        GatedConv(width, width // 2),
        GatedConv(width // 2, channels, norm=False, activation=nn.Sigmoid),
    ]


class Inpainter(nn.Module):
    """Image and hole to what fills the hole, coarsely and, with self-attention, finely.

    Args:
        channels: of the image.
        size: pixels along each axis, a multiple of 4; small images have fewer dilations.
        width: channels of the first convolution, even; the deepest have four times as many.

    Raises:
        ArgumentError: the size is no such multiple, or the width is odd.
    """

    def __init__(self, channels: int, size: int, width: int) -> None:
        super().__init__()
        if size % SHRUNKEN or width % 2:
            raise ArgumentError(
                f"size={size}, width={width}: give a size that is a multiple of {SHRUNKEN} and an "
                "even width."
            )
        fitting = tuple(d for d in DILATIONS if d < size // SHRUNKEN)
        self.coarse = nn.Sequential(*_inward(channels, width, fitting), *_outward(channels, width))
        self.inward = nn.Sequential(*_inward(channels, width, fitting))
        self.attention = nn.Sequential(SelfAttention(4 * width), nn.ReLU())
        self.outward = nn.Sequential(*_outward(channels, width))

    def forward(self, x: Tensor, hole: Tensor) -> tuple[Tensor, Tensor]:
        """Fine and coarse images (B, C, H, W) in 0..1, which beyond the hole are those of x.

        Args:
            x: (B, C, H, W) in 0..1.
            hole: (B, 1, H, W), 1 in it and 0 beyond; what x has there is not looked at.
        """
        known = x * (1 - hole)
        coarse = known + hole * self.coarse(torch.cat([known, hole], 1))
        features = self.attention(self.inward(torch.cat([coarse, hole], 1)))
        return known + hole * self.outward(features), coarse


def hole_critic(channels: int, width: int) -> nn.Sequential:
    """Image with its hole (B, channels + 1, H, W) to a number for each patch, high for real ones.

    Convolutions of 5x5 with spectral norm, of 1, 2, 4, 4, 4 and 4 times the width, all but the first
    of stride 2, Leaky ReLU, and self-attention before the last.
    """
    widths = [channels + 1, *(width * f for f in (1, 2, 4, 4, 4, 4))]
    parts: list[nn.Module] = []
    for i, (a, b) in enumerate(zip(widths, widths[1:], strict=False)):
        parts += [spectral_norm(nn.Conv2d(a, b, 5, 2 if i else 1, 2)), Leaky()]
    return nn.Sequential(*parts[:-2], SelfAttention(widths[-2]), parts[-2])
