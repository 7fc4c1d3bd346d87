"""A U-Net that also says whether there is anything to segment, of the 3D copy-paste."""

from __future__ import annotations

import itertools

import torch
from torch import Tensor, nn

from normscan.networks.blocks import layer, pad_to_multiple


def _double(dims: int, a: int, between: int, b: int) -> nn.Sequential:
    norm = (nn.InstanceNorm2d, nn.InstanceNorm3d)[dims - 2]
    parts: list[nn.Module] = []
    for channels, width in ((a, between), (between, b)):
        parts += [layer("conv", dims, channels, width, 3, padding=1), norm(width), nn.ReLU()]
    return nn.Sequential(*parts)


class ClassifiedUNet(nn.Module):
    """U-Net with a branch from its deepest level to the logit of a class.

    Two convolutions with instance norms (that learn nothing) and ReLU a level, max pooling down,
    transposed 2x2 convolutions up. The branch: twice two convolutions behind each other with a
    pooling between, the maximum of what is left, a line.

    Args:
        dims: 2 or 3.
        channels: of the input.
        width: channels of the first level; each level doubles them.
        depth: how often the grid is halved.
        joined: whether the class's probability is a further channel of the last convolution.
    """

    def __init__(
        self, dims: int, channels: int, width: int = 64, depth: int = 4, joined: bool = True
    ) -> None:
        super().__init__()
        widths = [width * 2**i for i in range(depth)]
        deep = widths[-1]
        self.down = nn.ModuleList(
            _double(dims, a, b, b) for a, b in itertools.pairwise([channels, *widths])
        )
        self.bottom = _double(dims, deep, 2 * deep, deep)
        self.branch = nn.ModuleList(
            [_double(dims, deep, deep // 2, deep // 2), _double(dims, deep // 2, *[deep // 4] * 2)]
        )
        self.line = nn.Linear(deep // 4, 1)
        pairs = list(itertools.pairwise([deep, *reversed(widths)]))
        self.up = nn.ModuleList(layer("conv_transpose", dims, a, b, 2, stride=2) for a, b in pairs)
        self.merge = nn.ModuleList(_double(dims, 2 * b, b, b) for _, b in pairs)
        self.out = layer("conv", dims, width + joined, 1, 3, padding=1)
        self.pool = (nn.MaxPool2d, nn.MaxPool3d)[dims - 2](2)
        self.joined = joined
        self.multiple = 2**depth

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Images to logits (B, 1, *spatial) of the pixels and (B,) of the class."""
        pixels, found, _ = self.seen(x)
        return pixels, found

    def seen(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Like ``forward``, with the deepest features (B, C, *grid)."""
        # The branch halves the deepest level once more, and its norms need two values.
        x, cut = pad_to_multiple(x, self.multiple, 4 * self.multiple)
        skips: list[Tensor] = []
        for level in self.down:
            x = level(self.pool(x) if skips else x)
            skips.append(x)
        x = deepest = self.bottom(self.pool(x))
        wide, narrow = self.branch
        found = self.line(narrow(self.pool(wide(x))).flatten(2).amax(2))[:, 0]
        for up, merge in zip(self.up, self.merge, strict=True):
            x = merge(torch.cat([skips.pop(), up(x)], 1))
        if self.joined:
            shares = found.sigmoid().reshape(-1, *[1] * (x.ndim - 1))
            x = torch.cat([x, shares.expand(-1, 1, *x.shape[2:])], 1)
        result: Tensor = self.out(x)
        return result[cut], found, deepest
