"""The wide residual encoder and decoder of foreign-patch interpolation (Tan et al. 2020)."""

from __future__ import annotations

import itertools
from typing import Literal

from torch import Tensor, nn
from torch.nn import functional as F

from normscan.networks.blocks import layer, pad_to_multiple
from normscan.networks.reverse import with_momentum

Step = Literal["keep", "half", "double"]


def _norm(dims: int, channels: int) -> nn.Module:
    return layer("batch_norm", dims, channels, eps=1e-3)  # as Keras


class _Conv(nn.Module):
    """Convolution without bias that pads as TensorFlow does: with stride 2 at the ends alone."""

    def __init__(self, dims: int, a: int, b: int, kernel: int, stride: int = 1) -> None:
        super().__init__()
        ends = stride == 2 and kernel == 3
        self.pad = (0, 1) * dims if ends else ()
        self.conv = layer(
            "conv",
            dims,
            a,
            b,
            kernel,
            stride=stride,
            padding=0 if ends else kernel // 2,
            bias=False,
        )
        nn.init.kaiming_normal_(self.conv.weight, nonlinearity="relu")  # type: ignore[arg-type]

    def forward(self, x: Tensor) -> Tensor:
        result: Tensor = self.conv(F.pad(x, self.pad) if self.pad else x)
        return result


class WideBlock(nn.Module):
    """Norm, ReLU, convolution, twice, beside a shortcut (He et al. 2016, pre-activation).

    A shortcut that changes the channels is a 1x1 convolution of what is normed already; else it
    averages, keeps or enlarges the input itself. Enlarging follows the first convolution.

    Args:
        dims: 2 or 3.
        a: channels of the input.
        b: channels of the output.
        step: how the grid changes.
    """

    def __init__(self, dims: int, a: int, b: int, step: Step) -> None:
        super().__init__()
        stride = 2 if step == "half" else 1
        self.first = nn.Sequential(_norm(dims, a), nn.ReLU())
        self.conv = _Conv(dims, a, b, 3, stride)
        self.second = nn.Sequential(_norm(dims, b), nn.ReLU(), _Conv(dims, b, b, 3))
        self.shortcut = _Conv(dims, a, b, 1, stride) if a != b else None
        self.pool = layer("avg_pool", dims, 2) if step == "half" else nn.Identity()
        self.up = nn.Upsample(scale_factor=2) if step == "double" else nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        normed = self.first(x)
        side = self.pool(x) if self.shortcut is None else self.shortcut(normed)
        result: Tensor = self.second(self.up(self.conv(normed))) + self.up(side)
        return result


class WideResidual(nn.Module):
    """Pre-activation residual blocks down and up, without skips; linear output.

    A 3x3 convolution to ``width`` channels; blocks of 4, 8, 16, 16, 16 times as many, of which the
    first keeps the grid; up to 8, 4, 1 times as many and the outputs. Further levels have 16 on the
    way down and 8 on the way up (five of them for slices of 512).

    Args:
        dims: 2 or 3.
        channels: of the input.
        outputs: channels of the output.
        width: channels of the first convolution.
        levels: how often the grid is halved, 2 or more.
        momentum: share of a batch in the running statistics; 0.01 in Keras.
    """

    def __init__(
        self,
        dims: int,
        channels: int,
        outputs: int = 1,
        width: int = 16,
        levels: int = 4,
        momentum: float = 0.01,
    ) -> None:
        super().__init__()
        down = [1, 4, 8, *[16] * (levels - 1)]
        up = [16, *([*[8] * (levels - 3), 4, 1][-(levels - 1) :])]
        pairs = list(itertools.pairwise(down))
        steps: list[Step] = ["keep", *["half"] * levels]  # type: ignore[list-item]
        blocks = [
            WideBlock(dims, width * a, width * b, step)
            for (a, b), step in zip(pairs, steps, strict=True)
        ]
        ups = [*(width * u for u in up), outputs]
        blocks += [WideBlock(dims, a, b, "double") for a, b in itertools.pairwise(ups)]
        self.stem = _Conv(dims, channels, width, 3)
        self.blocks = nn.Sequential(*blocks)
        self.multiple = 2**levels
        with_momentum(self, momentum)

    def forward(self, x: Tensor) -> Tensor:
        x, cut = pad_to_multiple(x, self.multiple)
        result: Tensor = self.blocks(self.stem(x))
        return result[cut]
