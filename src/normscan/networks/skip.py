"""Autoencoders whose code is spatial and whose dropout lies where information passes."""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor, nn

from normscan.networks.blocks import doublings, layer

Dropping = Literal["element", "channel"]


def dropout_layer(kind: Dropping, dims: int, p: float) -> nn.Module:
    """Dropout of single elements, or of whole channels."""
    return nn.Dropout(p) if kind == "element" else (nn.Dropout2d, nn.Dropout3d)[dims - 2](p)


def zero_biases(module: nn.Module) -> None:
    """Start every bias at zero, as Keras does: an untrained net then restores about nothing."""
    for name, parameter in module.named_parameters():
        if name.endswith("bias"):
            nn.init.zeros_(parameter)


class SkipAutoencoder(nn.Module):
    """Fully convolutional autoencoder with dropout on its code and on every skip (Baur et al. 2020).

    The encoder and decoder of Baur et al. 2021 without a linear layer: stride-2 5x5 convolutions of
    32, 64, 128, ... 128 channels down to the code, batch norm, Leaky ReLU with slope 0.3, mirrored
    up. The features of each size between the code's and the image's are concatenated to the decoder's.

    Args:
        dims: 2 or 3.
        channels: of input and output.
        size: pixels along each axis; ``code`` times a power of two.
        width: channels of the first convolution; the widest has four times as many.
        dropout: rate on the code and the skips.
        dropping: ``element`` or ``channel``.
        code: pixels of the code along each axis.
        slope: of the Leaky ReLUs.
    """

    def __init__(
        self, dims: int = 2, channels: int = 1, size: int = 256, *, width: int = 32,
        dropout: float = 0.2, dropping: Dropping = "element", code: int = 8, slope: float = 0.3,
    ) -> None:  # fmt: skip
        super().__init__()
        n = doublings(size, code)
        down = [width * min(2**i, 4) for i in range(n)]
        up = [max(width, 4 * width // 2**i) for i in range(n)]
        # What each transposed convolution sees: the code, then features of both sides.
        seen = [down[-1], *(a + b for a, b in zip(up, reversed(down[:-1]), strict=False))]

        def block(kind: str, a: int, b: int, **options: int) -> nn.Sequential:
            conv = layer(kind, dims, a, b, 5, stride=2, padding=2, **options)
            return nn.Sequential(conv, layer("batch_norm", dims, b), nn.LeakyReLU(slope))

        pairs = zip([channels, *down], down, strict=False)
        self.down = nn.ModuleList(block("conv", a, b) for a, b in pairs)
        self.drop = nn.ModuleList(dropout_layer(dropping, dims, dropout) for _ in down)
        self.start = nn.Sequential(layer("batch_norm", dims, down[-1]), nn.ReLU())
        self.up = nn.ModuleList(
            block("conv_transpose", a, b, output_padding=1) for a, b in zip(seen, up, strict=True)
        )
        self.out = layer("conv", dims, up[-1], channels, 1)
        zero_biases(self)

    def forward(self, x: Tensor) -> Tensor:
        kept: list[Tensor] = []
        for block, drop in zip(self.down, self.drop, strict=True):
            x = block(x)
            kept.append(drop(x))
        x = self.up[0](self.start(kept.pop()))
        for block in list(self.up)[1:]:
            x = block(torch.cat([x, kept.pop()], dim=1))
        return self.out(x)


class ResidualUnit(nn.Module):
    """Pre-activation residual unit (He et al. 2016); the shortcut is projected where shapes differ."""

    def __init__(self, dims: int, a: int, b: int, stride: int = 1, slope: float = 0.1) -> None:
        super().__init__()
        self.body = nn.Sequential(
            layer("batch_norm", dims, a), nn.LeakyReLU(slope),
            layer("conv", dims, a, b, 3, stride=stride, padding=1),
            layer("batch_norm", dims, b), nn.LeakyReLU(slope),
            layer("conv", dims, b, b, 3, padding=1),
        )  # fmt: skip
        same = a == b and stride == 1
        self.shortcut = nn.Identity() if same else layer("conv", dims, a, b, 1, stride=stride)

    def forward(self, x: Tensor) -> Tensor:
        shortcut: Tensor = self.shortcut(x)
        return shortcut + self.body(x)


class ResidualConvAutoencoder(nn.Module):
    """Fully convolutional autoencoder of residual units with a spatial code.

    A convolution, then in each stage a unit of stride 2 and one of stride 1 in the encoder, and a
    transposed convolution with one unit in the decoder; dropout after each stage of both.

    Args:
        dims: 2 or 3.
        channels: of the input.
        outputs: channels of the output.
        width: channels of the first stage; each further stage doubles them.
        stages: halvings of the image, whose size is a multiple of 2**stages.
        dropout: rate after each stage.
    """

    def __init__(
        self, dims: int = 2, channels: int = 1, outputs: int = 1, width: int = 16, stages: int = 4,
        dropout: float = 0.3,
    ) -> None:  # fmt: skip
        super().__init__()
        widths = [width * 2**i for i in range(stages)]
        parts = [layer("conv", dims, channels, width, 3, padding=1)]
        for a, b in zip([width, *widths], widths, strict=False):
            parts += [ResidualUnit(dims, a, b, 2), ResidualUnit(dims, b, b), nn.Dropout(dropout)]
        widths.reverse()
        for a, b in zip(widths, [*widths[1:], width], strict=True):
            parts.append(layer("conv_transpose", dims, a, b, 4, stride=2, padding=1))
            parts += [ResidualUnit(dims, b, b), nn.Dropout(dropout)]
        # No dropout right before the output: it would be noise in every pixel.
        parts[-1] = layer("conv", dims, width, outputs, 1)
        self.layers = nn.Sequential(*parts)
        zero_biases(self)

    def forward(self, x: Tensor) -> Tensor:
        result: Tensor = self.layers(x)
        return result
