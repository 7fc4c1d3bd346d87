"""The U-Net of the denoising autoencoder."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from normscan.networks.blocks import WeightStandardizedConv, layer, pad_to_multiple


def middle_divisor(n: int) -> int:
    """Return the middle one of the divisors of n, the number of groups of a group norm."""
    divisors = [d for d in range(1, n + 1) if n % d == 0]
    return divisors[len(divisors) // 2]


def _block(dims: int, channels_in: int, channels_out: int) -> nn.Sequential:
    parts: list[nn.Module] = []
    for c in (channels_in, channels_out):
        parts += [
            WeightStandardizedConv(dims, c, channels_out),
            nn.SiLU(),
            nn.GroupNorm(middle_divisor(channels_out), channels_out),
        ]
    return nn.Sequential(*parts)


class UNet(nn.Module):
    """U-Net of Kascenas et al. 2022: weight-standardised 3x3 convolutions, Swish, group norm.

    Average pooling down, transposed convolution up, skips kept, linear output. Any input size is
    padded to what the depth asks for and cut again.

    Args:
        dims: 2 or 3 spatial axes.
        channels: of the input.
        width: channels of the first level; each level doubles them.
        depth: number of levels.
        outputs: channels of the output; those of the input by default.
    """

    def __init__(
        self,
        dims: int = 2,
        channels: int = 1,
        width: int = 64,
        depth: int = 4,
        outputs: int | None = None,
    ) -> None:
        super().__init__()
        widths = [width * 2**i for i in range(depth)]
        self.down = nn.ModuleList(
            _block(dims, c, w) for c, w in zip([channels, *widths], widths, strict=False)
        )
        self.pool = layer("avg_pool", dims, 2)
        pairs = list(zip(reversed(widths[1:]), reversed(widths[:-1]), strict=True))
        self.up = nn.ModuleList(layer("conv_transpose", dims, a, b, 2, stride=2) for a, b in pairs)
        self.merge = nn.ModuleList(_block(dims, 2 * b, b) for _, b in pairs)
        self.out = layer("conv", dims, widths[0], outputs or channels, 1)
        self.multiple = 2 ** (depth - 1)

    def forward(self, x: Tensor) -> Tensor:
        # The deepest level needs two voxels for reflection padding.
        x, cut = pad_to_multiple(x, self.multiple, 2 * self.multiple)
        skips: list[Tensor] = []
        for block in self.down:
            x = block(x if not skips else self.pool(x))
            skips.append(x)
        skips.pop()
        for up, merge in zip(self.up, self.merge, strict=True):
            x = merge(torch.cat([skips.pop(), up(x)], dim=1))
        return self.out(x)[cut]
