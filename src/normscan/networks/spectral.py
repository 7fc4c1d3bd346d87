"""Translator and judge of MetaAD (Huang et al., MICCAI 2024): all weights spectrally normalised."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn.utils.parametrizations import spectral_norm

from normscan.networks.blocks import layer


def _conv(dims: int, a: int, b: int, kernel: int, stride: int = 1, bias: bool = True) -> nn.Module:
    conv = layer("conv", dims, a, b, kernel, stride, padding=(kernel - 1) // 2, bias=bias)
    if bias:
        nn.init.zeros_(conv.get_parameter("bias"))
    return spectral_norm(conv, eps=1e-4)


def _normed(dims: int, channels: int) -> list[nn.Module]:
    norm = (nn.InstanceNorm2d, nn.InstanceNorm3d)[dims - 2]
    return [norm(channels, eps=1e-6), nn.LeakyReLU(0.2)]


def _halved(dims: int, a: int, b: int) -> nn.Sequential:
    return nn.Sequential(_conv(dims, a, b, 4, 2, bias=False), *_normed(dims, b))


class SpectralResidual(nn.Module):
    """Two 3x3 convolutions with instance norm, and a 1x1 one beside them where widths differ."""

    def __init__(self, dims: int, a: int, b: int) -> None:
        super().__init__()
        self.layers = nn.Sequential(
            _conv(dims, a, b, 3), *_normed(dims, b), _conv(dims, b, b, 3), *_normed(dims, b)
        )
        self.shortcut = _conv(dims, a, b, 1) if a != b else nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        result: Tensor = self.shortcut(x) + self.layers(x)
        return result


class SpectralUNet(nn.Module):
    """Images of one modality to those of another, in -1..1, each block with a skip of its own.

    Args:
        dims: 2 or 3.
        channels: of the input.
        outputs: channels of the output.
        width: channels of the first level.
        multipliers: of the width, for each level.
        blocks: residual blocks of a level, on either way.
    """

    def __init__(
        self, dims: int, channels: int, outputs: int, width: int, multipliers: Sequence[int],
        blocks: int,
    ) -> None:  # fmt: skip
        super().__init__()
        widths = [width * m for m in multipliers]
        self.begin = _conv(dims, channels, widths[0], 3)
        self.down, self.up = nn.ModuleList(), nn.ModuleList()
        at, passed = widths[0], list[int]()
        for i, n in enumerate(widths):
            for j in range(blocks):
                parts: list[nn.Module] = [_halved(dims, at, at)] if i and not j else []
                self.down.append(nn.Sequential(*parts, SpectralResidual(dims, at, n)))
                at = n
                passed.append(n)
        self.middle = nn.Sequential(*(SpectralResidual(dims, at, at) for _ in range(2)))
        mode = "bilinear" if dims == 2 else "trilinear"
        for i, n in reversed(list(enumerate(widths))):
            for j in range(blocks):
                parts = [SpectralResidual(dims, at + passed.pop(), n)]
                if i and j == blocks - 1:
                    enlarge = nn.Upsample(scale_factor=2, mode=mode)
                    parts += [nn.LeakyReLU(0.2), enlarge, _conv(dims, n, n, 3, bias=False)]
                self.up.append(nn.Sequential(*parts))
                at = n
        self.end = nn.Sequential(_conv(dims, at, outputs, 3), nn.Tanh())
        self.multiple = 2 ** (len(widths) - 1)

    def forward(self, x: Tensor) -> Tensor:
        """Translate (B, C, *spatial), sides multiples of ``multiple``."""
        x = self.begin(x)
        skips: list[Tensor] = []
        for block in self.down:
            x = block(x)
            skips.append(x)
        x = self.middle(x)
        for block in self.up:
            x = block(torch.cat([x, skips.pop()], dim=1))
        translated: Tensor = self.end(x)
        return translated


class SpectralJudge(nn.Module):
    """A number for each patch on an eighth of the grid, high for real images.

    Args:
        dims: 2 or 3.
        channels: of the image.
        width: channels of the first convolution; they double three times.
    """

    def __init__(self, dims: int, channels: int, width: int) -> None:
        super().__init__()
        n = [width * 2**i for i in range(4)]
        self.layers = nn.Sequential(
            _conv(dims, channels, n[0], 3, bias=False),
            *(_halved(dims, a, b) for a, b in zip(n, n[1:], strict=False)),
            _conv(dims, n[-1], 1, 1, bias=False),
        )

    def forward(self, x: Tensor) -> Tensor:
        judged: Tensor = self.layers(x)
        return judged
