"""The unbiased encoder of Deep SVDD and the decoder that pre-trains it."""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn
from torch.nn import functional as F

from normscan.errors import ArgumentError
from normscan.networks.blocks import doublings, layer

_END = 4


def _norm(dims: int, channels: int) -> nn.Module:
    """Without scale and shift, which could map everything to one point."""
    return layer("batch_norm", dims, channels, eps=1e-4, affine=False)


def spread(network: nn.Module) -> None:
    """Xavier's uniform start with the gain of a leaky ReLU for every convolution, as released."""
    gain = nn.init.calculate_gain("leaky_relu")
    for module in network.modules():
        if isinstance(module, nn.modules.conv._ConvNd):
            nn.init.xavier_uniform_(module.weight, gain=gain)


class _Halving(nn.Module):
    """Convolution, batch norm, Leaky ReLU, max-pool."""

    def __init__(self, dims: int, a: int, b: int, options: dict[str, Any]) -> None:
        super().__init__()
        self.conv = layer("conv", dims, a, b, 5, **options)
        self.norm = _norm(dims, b)
        self.pool = F.max_pool2d if dims == 2 else F.max_pool3d

    def forward(self, x: Tensor) -> Tensor:
        return self.pool(F.leaky_relu(self.norm(self.conv(x))), 2)


class UnbiasedEncoder(nn.Sequential):
    """5x5 convolutions, each halving the image, down to a 4x4 grid, and a linear map to the code.

    Nothing has a bias and no batch norm an affine part, so that no weights but zeros map all images
    to one point (Ruff et al. 2018).

    Args:
        dims: 2 or 3.
        channels: of the image.
        size: pixels along each axis, 4 times a power of two.
        latent: numbers in the code.
        width: channels of the first convolution; the widest has four times as many.
    """

    def __init__(self, dims: int, channels: int, size: int, latent: int, width: int = 32) -> None:
        self.widths = [width * min(2**i, 4) for i in range(doublings(size, _END))]
        ends = zip([channels, *self.widths], self.widths, strict=False)
        options = {"padding": 2, "bias": False}
        super().__init__(
            *(_Halving(dims, a, b, options) for a, b in ends),
            nn.Flatten(),
            nn.Linear(self.widths[-1] * _END**dims, latent, bias=False),
        )
        spread(self)


class UnbiasedDecoder(nn.Sequential):
    """The encoder mirrored: code, as a 4x4 grid, to an image in 0..1.

    Args:
        dims: 2 or 3.
        channels: of the image.
        latent: numbers in the code, a multiple of 4**dims.
        widths: channels of the encoder's convolutions.
        normed: the code goes through a batch norm first (Deep SVDD), or not (Deep SAD).

    Raises:
        ArgumentError: a code that doesn't fill the grid.
    """

    def __init__(
        self, dims: int, channels: int, latent: int, widths: list[int], normed: bool = True
    ) -> None:
        if latent % _END**dims:
            raise ArgumentError(
                f"latent={latent}: the code is laid out on {_END**dims} cells, so its length is a "
                f"multiple of that. Use latent={max(1, round(latent / _END**dims)) * _END**dims}."
            )
        cells = latent // _END**dims
        layers: list[nn.Module] = [nn.BatchNorm1d(latent, eps=1e-4, affine=False)] if normed else []
        layers += [nn.Unflatten(1, (cells, *[_END] * dims)), nn.LeakyReLU()]
        options = {"padding": 2, "bias": False}
        for a, b in zip([cells, *reversed(widths)], reversed(widths), strict=False):
            layers += [layer("conv_transpose", dims, a, b, 5, **options), _norm(dims, b)]
            layers += [nn.LeakyReLU(), nn.Upsample(scale_factor=2)]
        layers.append(layer("conv_transpose", dims, widths[0], channels, 5, **options))
        super().__init__(*layers, nn.Sigmoid())
        spread(self)
