"""Residual generator and critic of improved WGAN training (Gulrajani et al. 2017)."""

from __future__ import annotations

from typing import Literal

from torch import Tensor, nn
from torch.nn import functional as F

from normscan.networks.blocks import doublings, layer

SMALLEST = 4
Norm = Literal["batch", "layer"]


def _widths(size: int, width: int) -> list[int]:
    """Channels from 4x4 outwards: 8, 8, 4, 2, 1 times the width for 64 pixels."""
    n = doublings(size, SMALLEST)
    factors = [8] * max(1, n - 2) + [4, 2, 1]
    return [width * f for f in factors[-(n + 1) :]]


def _norm(kind: Norm, dims: int, channels: int) -> nn.Module:
    """Batch norm, or layer norm over a sample with a scale and shift for each channel."""
    return layer("batch_norm", dims, channels) if kind == "batch" else nn.GroupNorm(1, channels)


class ResidualBlock(nn.Module):
    """Pre-activation residual block that doubles or halves the size."""

    def __init__(self, dims: int, a: int, b: int, up: bool, norm: Norm) -> None:
        super().__init__()
        self.up = up
        mid = b if up else a
        self.norm1, self.norm2 = _norm(norm, dims, a), _norm(norm, dims, mid)
        self.conv1 = layer("conv", dims, a, mid, 3, padding=1, bias=False)
        self.conv2 = layer("conv", dims, mid, b, 3, padding=1)
        self.shortcut = layer("conv", dims, a, b, 1)
        self.pool = layer("avg_pool", dims, 2)

    def _resize(self, x: Tensor) -> Tensor:
        return F.interpolate(x, scale_factor=2.0) if self.up else self.pool(x)

    def forward(self, x: Tensor) -> Tensor:
        h = F.relu(self.norm1(x))
        h = self.conv1(self._resize(h) if self.up else h)
        h = self.conv2(F.relu(self.norm2(h)))
        shortcut: Tensor = self.shortcut(self._resize(x))
        return shortcut + (h if self.up else self._resize(h))


class Generator(nn.Module):
    """Code (B, latent) to image (B, channels, size...) in [-1, 1]."""

    def __init__(self, dims: int, channels: int, size: int, latent: int, width: int) -> None:
        super().__init__()
        widths = _widths(size, width)
        self.start = nn.Sequential(
            nn.Linear(latent, widths[0] * SMALLEST**dims),
            nn.Unflatten(1, (widths[0], *[SMALLEST] * dims)),
        )
        self.blocks = nn.Sequential(
            *(
                ResidualBlock(dims, a, b, up=True, norm="batch")
                for a, b in zip(widths, widths[1:], strict=False)
            )
        )
        self.out = nn.Sequential(
            layer("batch_norm", dims, widths[-1]),
            nn.ReLU(),
            layer("conv", dims, widths[-1], channels, 3, padding=1),
            nn.Tanh(),
        )

    def forward(self, z: Tensor) -> Tensor:
        x: Tensor = self.out(self.blocks(self.start(z)))
        return x


class Critic(nn.Module):
    """Image to ``outputs`` numbers; ``features`` gives the last block's, flattened.

    Args:
        dims: 2 or 3.
        channels: of the image.
        size: pixels along each axis; 4 times a power of two.
        outputs: 1 for a critic, the code's length for an encoder.
        width: channels of the first layer (64 in the article).
        norm: ``layer`` for a critic, whose gradient penalty is per sample as well; ``batch`` for an
            encoder.
    """

    def __init__(
        self, dims: int, channels: int, size: int, outputs: int, width: int, norm: Norm = "layer"
    ) -> None:
        super().__init__()
        widths = _widths(size, width)[::-1]
        self.start = layer("conv", dims, channels, widths[0], 3, padding=1)
        self.blocks = nn.Sequential(
            *(
                ResidualBlock(dims, a, b, up=False, norm=norm)
                for a, b in zip(widths, widths[1:], strict=False)
            ),
            nn.Flatten(),
        )
        self.out = nn.Linear(widths[-1] * SMALLEST**dims, outputs)

    def features(self, x: Tensor) -> Tensor:
        """Last block's features, (B, n)."""
        features: Tensor = self.blocks(self.start(x))
        return features

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.out(self.features(x))
        return out
