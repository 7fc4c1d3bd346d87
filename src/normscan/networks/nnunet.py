"""The plain U-Net of nnU-Net, and channels that tell a network where it looks."""

from __future__ import annotations

import itertools
import math
from typing import Literal

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from normscan.networks.blocks import layer, pad_to_multiple

WIDEST = {2: 512, 3: 320}


def _unit(dims: int, a: int, b: int, stride: int = 1) -> nn.Sequential:
    """3x3 convolution, instance norm with scale and shift, GELU."""
    norm = (nn.InstanceNorm2d, nn.InstanceNorm3d)[dims - 2](b, affine=True)
    return nn.Sequential(layer("conv", dims, a, b, 3, stride=stride, padding=1), norm, nn.GELU())


class PlainUNet(nn.Module):
    """Two units a level, strided convolutions down, linear enlargement up, linear output.

    Each level doubles the channels, up to 512 in the plane and 320 in space. Where features are
    enlarged, the unit before has narrowed them to what the next level has.

    Args:
        dims: 2 or 3.
        channels: of the input.
        width: channels of the first level.
        levels: their number, 2 or more.
    """

    def __init__(self, dims: int, channels: int, width: int = 32, levels: int = 5) -> None:
        super().__init__()
        widths = [min(width * 2**i, WIDEST[dims]) for i in range(levels)]
        self.down = nn.ModuleList(
            nn.Sequential(
                _unit(dims, a, b, 2 if i else 1),
                _unit(dims, b, widths[i - 1] if i == levels - 1 else b),
            )
            for i, (a, b) in enumerate(itertools.pairwise([channels, *widths]))
        )
        skips = list(reversed(widths[:-1]))
        self.up = nn.ModuleList(
            nn.Sequential(_unit(dims, 2 * b, b), _unit(dims, b, following))
            for b, following in itertools.pairwise([*skips, skips[-1]])
        )
        self.out = layer("conv", dims, widths[0], 1, 1, bias=False)
        self.multiple = 2 ** (levels - 1)
        self.mode: Literal["bilinear", "trilinear"] = "bilinear" if dims == 2 else "trilinear"
        for part in self.modules():
            if isinstance(part, nn.Conv2d | nn.Conv3d):
                nn.init.kaiming_normal_(part.weight, a=1e-2)
                if part.bias is not None:
                    nn.init.zeros_(part.bias)

    def forward(self, x: Tensor) -> Tensor:
        # An instance norm needs two values at the deepest level.
        x, cut = pad_to_multiple(x, self.multiple, 2 * self.multiple)
        skips: list[Tensor] = []
        for level in self.down:
            x = level(x)
            skips.append(x)
        skips.pop()
        for level in self.up:
            x = F.interpolate(x, scale_factor=2, mode=self.mode)
            x = level(torch.cat([x, skips.pop()], 1))
        result: Tensor = self.out(x)
        return result[cut]


class Placed(nn.Module):
    """A network that is told where it looks: further channels say each pixel's place.

    They are the coordinates from -1 to 1, then sine and cosine of 2 pi b.u for fixed normal vectors b
    and the coordinates u from 0 to below 1 (Tancik et al., NeurIPS 2020).

    Args:
        network: of channels + ``Placed.extra(dims, features)`` channels.
        dims: 2 or 3.
        features: number of vectors.
        scale: their deviation.
    """

    def __init__(
        self, network: nn.Module, dims: int, features: int = 32, scale: float = 12
    ) -> None:
        super().__init__()
        self.network = network
        # The release draws them with this generator and seed, so they are the same numbers.
        drawn = scale * np.random.default_rng(seed=42).standard_normal((features, dims))
        self.vectors: Tensor
        self.register_buffer("vectors", torch.from_numpy(drawn).float(), persistent=False)

    @staticmethod
    def extra(dims: int, features: int = 32) -> int:
        """Channels beside those of the image."""
        return dims + 2 * features

    def places(self, spatial: tuple[int, ...]) -> Tensor:
        """(1, extra, *spatial)."""
        lines = [torch.linspace(-1, 1, n).to(self.vectors) for n in spatial]
        shares = [torch.arange(n).to(self.vectors) / n for n in spatial]
        ends = torch.stack(torch.meshgrid(*lines, indexing="ij"))
        inside = torch.stack(torch.meshgrid(*shares, indexing="ij"))
        turns = 2 * math.pi * torch.einsum("ci,i...->c...", self.vectors, inside)
        return torch.cat([ends, turns.sin(), turns.cos()])[None]

    def forward(self, x: Tensor) -> Tensor:
        places = self.places(tuple(x.shape[2:])).to(x).expand(len(x), *[-1] * (x.ndim - 1))
        result: Tensor = self.network(torch.cat([x, places], 1))
        return result
