"""U-Net whose skips fade out while it trains."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from normscan.networks.skip import zero_biases


def double_conv(a: int, between: int, b: int, bias: bool = False) -> nn.Sequential:
    """Two 3x3 convolutions, each with batch norm and ReLU."""
    parts: list[nn.Module] = []
    for c, d in ((a, between), (between, b)):
        parts += [nn.Conv2d(c, d, 3, padding=1, bias=bias), nn.BatchNorm2d(d), nn.ReLU()]
    return nn.Sequential(*parts)


class GatedUNet(nn.Module):
    """U-Net with a gate on each skip (Zhang et al. 2024).

    Five levels, max pooling down, bilinear up. A skip is a e + (1 - a) u with the encoder's
    features e, the enlarged ones u and the level's gate a; it is concatenated to u without its
    gradient. The gates, deepest first, are a buffer: at 1 the net is a U-Net, at 0 nothing passes
    beside the deepest features.

    Args:
        channels: of the input.
        outputs: channels of the output.
        width: channels of the first level; 2, 4, 8 and 8 times as many in the others.
    """

    gates: Tensor
    halvings = 4

    def __init__(self, channels: int = 1, outputs: int = 2, width: int = 64) -> None:
        super().__init__()
        widths = [width * f for f in (1, 2, 4, 8, 8)]
        pairs = zip([channels, *widths], widths, strict=False)
        self.down = nn.ModuleList(double_conv(a, b, b) for a, b in pairs)
        self.up = nn.ModuleList(
            double_conv(2 * a, a, b)
            for a, b in zip(widths[-2::-1], [*widths[-3::-1], width], strict=True)
        )
        self.out = nn.Conv2d(width, outputs, 1)
        self.register_buffer("gates", torch.ones(self.halvings))
        zero_biases(self)

    def fade(self, share: float, rates: Sequence[float]) -> None:
        """Set the gates to 1 - rate * share, at least 0.

        Args:
            share: of training that is over, 0 to 1.
            rates: one for each gate, deepest first.
        """
        self.gates.copy_((1 - share * self.gates.new_tensor(rates)).clamp_min(0))

    def encode(self, x: Tensor) -> list[Tensor]:
        """Features of each level, the deepest last."""
        features: list[Tensor] = []
        for i, block in enumerate(self.down):
            x = block(F.max_pool2d(x, 2) if i else x)
            features.append(x)
        return features

    def forward(self, x: Tensor) -> Tensor:
        features = self.encode(x)
        x = features.pop()
        for block, gate in zip(self.up, self.gates, strict=True):
            up = F.interpolate(x, scale_factor=2.0, mode="bilinear", align_corners=True)
            skip = gate * features.pop() + (1 - gate) * up
            x = block(torch.cat([skip, up.detach()], dim=1))
        return self.out(x)
