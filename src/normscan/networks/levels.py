"""Two levels of a variational autoencoder: a coarse image, and what is finer given it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from normscan.networks.blocks import layer
from normscan.networks.convolutional import PointCode


class Gaussian(NamedTuple):
    """Mean and log deviation of a code, of one shape."""

    mean: Tensor
    log_std: Tensor


class TwoLevels(nn.Module):
    """A ``PointCode`` of the image averaged over blocks, and codes of the details of each block.

    Args:
        dims: 2 or 3.
        channels: of input and output.
        size: pixels along each axis.
        latent: numbers in the code of the coarse image.
        widths: channels behind each convolution of stride 2, two or more; the first half lie
            between the image and the coarse one.
        low_latent: channels of the code of the details.
    """

    def __init__(
        self, dims: int, channels: int, size: int, latent: int, widths: Sequence[int],
        low_latent: int,
    ) -> None:  # fmt: skip
        super().__init__()
        fine, rest = widths[: len(widths) // 2], widths[len(widths) // 2 :]
        self.block = 2 ** len(fine)
        self.high = PointCode(dims, channels, size // self.block, latent, rest)
        down: list[nn.Module] = []
        for a, b in zip([2 * channels, *fine], fine, strict=False):
            down += [layer("conv", dims, a, b, 4, 2, 1), nn.LeakyReLU()]
        self.low = nn.Sequential(*down, layer("conv", dims, fine[-1], 2 * low_latent, 1))
        self.prior = nn.Sequential(
            layer("conv", dims, channels, fine[-1], 3, padding=1), nn.LeakyReLU(),
            layer("conv", dims, fine[-1], 2 * low_latent, 1),
        )  # fmt: skip
        up = [layer("conv", dims, low_latent + channels, fine[-1], 3, padding=1)]
        for a, b in zip(fine[::-1], [*fine[-2::-1], channels], strict=True):
            up += [nn.LeakyReLU(), layer("conv_transpose", dims, a, b, 4, 2, 1)]
        self.decoder = nn.Sequential(*up)

    def coarse(self, x: Tensor) -> Tensor:
        """Images averaged over blocks."""
        return (F.avg_pool2d if x.ndim == 4 else F.avg_pool3d)(x, self.block)

    def details(self, x: Tensor, coarse: Tensor) -> Gaussian:
        """The code of an image's details given a coarse image, (B, low_latent, *blocks)."""
        spread = F.interpolate(coarse, scale_factor=float(self.block))
        return Gaussian(*self.low(torch.cat([x, spread], dim=1)).chunk(2, dim=1))

    def expected(self, coarse: Tensor) -> Gaussian:
        """What that code should be by the coarse image alone."""
        return Gaussian(*self.prior(coarse).chunk(2, dim=1))

    def decode(self, code: Tensor, coarse: Tensor) -> Tensor:
        """The image (B, C, *spatial) from the code of its details and a coarse image."""
        restored: Tensor = self.decoder(torch.cat([code, coarse], dim=1))
        return restored
