"""The Laplacian pyramid and an autoencoder for each of its bands."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from normscan.networks.blocks import doublings, layer
from normscan.networks.skip import zero_biases

_BINOMIAL = (1 / 16, 4 / 16, 6 / 16, 4 / 16, 1 / 16)


def blur(x: Tensor, border: str = "reflect") -> Tensor:
    """Binomial filter of 5 pixels along each spatial axis, close to a Gaussian.

    Args:
        x: (B, C, *spatial), at least 3 pixels along each axis where the border reflects.
        border: what lies beyond the image: ``reflect``, or ``constant`` for 0.
    """
    channels, dims = x.shape[1], x.ndim - 2
    convolve = (F.conv2d, F.conv3d)[dims - 2]
    for axis in range(dims):
        shape = [1] * dims
        shape[axis] = 5
        kernel = x.new_tensor(_BINOMIAL).reshape(1, 1, *shape).expand(channels, 1, *shape)
        # F.pad counts from the last axis.
        pads = [0] * (2 * dims)
        pads[2 * (dims - 1 - axis) : 2 * (dims - axis)] = [2, 2]
        x = convolve(F.pad(x, pads, mode=border), kernel, groups=channels)
    return x


def resized(x: Tensor, size: Sequence[int]) -> Tensor:
    """Linear interpolation to a size."""
    return F.interpolate(x, tuple(size), mode="bilinear" if x.ndim == 4 else "trilinear")


def levels(x: Tensor, bands: int) -> list[Tensor]:
    """Gaussian pyramid: the image and ``bands`` times blurred and halved (Burt and Adelson 1983).

    Args:
        x: (B, C, *spatial), each axis a multiple of 2**bands.
        bands: halvings.
    """
    result = [x]
    for _ in range(bands):
        result.append(resized(blur(result[-1]), [n // 2 for n in result[-1].shape[2:]]))
    return result


def detail(pyramid: Sequence[Tensor]) -> list[Tensor]:
    """Bands of the Laplacian pyramid: each level less the next one enlarged."""
    pairs = zip(pyramid, pyramid[1:], strict=False)
    return [fine - resized(coarse, fine.shape[2:]) for fine, coarse in pairs]


def assemble(
    bands: Sequence[Tensor], low_pass: Tensor, restore: Sequence[Callable[[Tensor], Tensor]] = ()
) -> list[Tensor]:
    """Levels of the pyramid from its bands and the low-pass image, finest first.

    Args:
        bands: finest first.
        low_pass: what is left below them.
        restore: what is applied to each band first; nothing by default, which gives back the
            levels that the bands came from.
    """
    result: list[Tensor] = []
    below = low_pass
    for i in reversed(range(len(bands))):
        band = restore[i](bands[i]) if restore else bands[i]
        below = band + resized(below, band.shape[2:])
        result.insert(0, below)
    return result


class BandAutoencoder(nn.Module):
    """Stride-2 3x3 convolutions down to the code that double their channels, and mirrored up.

    Leaky ReLU, then batch norm; a linear 3x3 convolution at the end.

    Args:
        dims: 2 or 3.
        channels: of input and output.
        size: pixels along each axis; ``code`` times a power of two.
        width: channels of the first convolution.
        code: pixels of the code along each axis.
        slope: of the Leaky ReLUs.
    """

    def __init__(
        self, dims: int, channels: int, size: int, width: int, code: int, slope: float = 0.2
    ) -> None:
        super().__init__()
        widths = [width * 2**i for i in range(doublings(size, code))]
        up = [*reversed(widths[:-1]), width]
        parts: list[nn.Module] = []

        def finish(module: nn.Module, b: int) -> None:
            parts.extend([module, nn.LeakyReLU(slope), layer("batch_norm", dims, b)])

        for a, b in zip([channels, *widths], widths, strict=False):
            finish(layer("conv", dims, a, b, 3, stride=2, padding=1), b)
        for a, b in zip([widths[-1], *up], up, strict=False):
            conv = layer("conv_transpose", dims, a, b, 3, stride=2, padding=1, output_padding=1)
            finish(conv, b)
        self.layers = nn.Sequential(*parts, layer("conv", dims, width, channels, 3, padding=1))
        zero_biases(self)

    def forward(self, x: Tensor) -> Tensor:
        result: Tensor = self.layers(x)
        return result


class ScaleSpaceAutoencoder(nn.Module):
    """A ``BandAutoencoder`` for each band of the Laplacian pyramid; the low-pass image passes by.

    Args:
        dims: 2 or 3.
        channels: of input and output.
        size: pixels along each axis; ``code`` times a power of two, at least the code doubled once for
            each band.
        bands: of the pyramid.
        width: channels of the first convolution of each autoencoder.
        code: pixels of each code along each axis.
    """

    def __init__(
        self, dims: int, channels: int, size: int, bands: int, width: int, code: int
    ) -> None:
        super().__init__()
        doublings(size, code * 2 ** (bands - 1))  # refuses a size that the smallest band can't take
        sizes = [size >> i for i in range(bands)]
        self.bands = nn.ModuleList(BandAutoencoder(dims, channels, s, width, code) for s in sizes)

    def forward(self, x: Tensor) -> tuple[list[Tensor], list[Tensor]]:
        """Levels of the pyramid and their restorations, finest first, without the low-pass image."""
        pyramid = levels(x, len(self.bands))
        return pyramid[:-1], assemble(detail(pyramid), pyramid[-1], list(self.bands))


def mean_residual(pyramid: Sequence[Tensor], restored: Sequence[Tensor]) -> Tensor:
    """Residual x - x^ of each level, enlarged to the finest, averaged: (B, C, *spatial)."""
    size = pyramid[0].shape[2:]
    pairs = zip(pyramid, restored, strict=True)
    return torch.stack([resized(x - y, size) for x, y in pairs]).mean(0)
