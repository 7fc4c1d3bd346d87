"""Encoder whose convolutions have no padding, and the decoder beside it."""

from __future__ import annotations

from torch import Tensor, nn

from normscan.networks.blocks import doublings

SMALLEST = 8


def _normed(conv: nn.Module, channels: int) -> list[nn.Module]:
    # By the statistics of each image, also at test.
    return [conv, nn.InstanceNorm2d(channels, affine=True), nn.ReLU()]


class UnpaddedEncoder(nn.Module):
    """Image (B, channels, size, size) to code (B, latent, 1, 1).

    A 7x7 convolution with padding 1, then 4x4 ones of stride 2 without padding, whose channels double;
    instance norm and ReLU behind all but the last.

    Args:
        channels: of the image.
        size: pixels along each axis, 8 times a power of two.
        latent: channels of the code.
        width: channels of the first convolution.

    Raises:
        ArgumentError: the size is no such product.
    """

    def __init__(self, channels: int, size: int, latent: int, width: int) -> None:
        super().__init__()
        n = doublings(size, SMALLEST)
        parts = _normed(nn.Conv2d(channels, width, 7, padding=1, bias=False), width)
        for a in (width * 2**i for i in range(n)):
            parts += _normed(nn.Conv2d(a, 2 * a, 4, 2, bias=False), 2 * a)
        self.layers = nn.Sequential(*parts, nn.Conv2d(width * 2**n, latent, 4, 2, bias=False))

    def forward(self, x: Tensor) -> Tensor:
        code: Tensor = self.layers(x)
        return code


class CodeDecoder(nn.Module):
    """Code (B, latent, 1, 1) to image (B, channels, size, size) in -1..1.

    Transposed 4x4 convolutions, the first to 4x4 pixels, the others of stride 2; instance norm and ReLU
    between them.

    Args:
        channels: of the image.
        size: pixels along each axis, 8 times a power of two.
        latent: channels of the code.
        width: channels before the last convolution; they double towards the code.

    Raises:
        ArgumentError: the size is no such product.
    """

    def __init__(self, channels: int, size: int, latent: int, width: int) -> None:
        super().__init__()
        n = doublings(size, SMALLEST)
        widest = width * 2**n
        parts = _normed(nn.ConvTranspose2d(latent, widest, 4, bias=False), widest)
        for a in (widest // 2**i for i in range(n)):
            parts += _normed(nn.ConvTranspose2d(a, a // 2, 4, 2, 1, bias=False), a // 2)
        last = nn.ConvTranspose2d(width, channels, 4, 2, 1, bias=False)
        self.layers = nn.Sequential(*parts, last, nn.Tanh())

    def forward(self, z: Tensor) -> Tensor:
        image: Tensor = self.layers(z)
        return image
