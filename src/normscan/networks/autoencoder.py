"""Encoders and decoders with a narrow code: the two that the comparative studies share."""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import partial
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from normscan.errors import ArgumentError
from normscan.networks.blocks import doublings, layer

Norm = Literal["batch", "affine"]
AnyNorm = Literal["batch", "affine", "plane"]
Head = Literal["dense", "spatial"]


class ChannelAffine(nn.Module):
    """A learned scale and shift per channel: batch normalisation that never normalises."""

    def __init__(self, dims: int, channels: int) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.ones(1, channels, *[1] * dims))
        self.shift = nn.Parameter(torch.zeros(1, channels, *[1] * dims))

    def forward(self, x: Tensor) -> Tensor:
        return x * self.scale + self.shift


class PlaneNorm(nn.Module):
    """Each channel of a sample less its mean over its deviation; scale and shift for each pixel.

    Args:
        dims: 2 or 3.
        side: pixels along each axis.
    """

    def __init__(self, dims: int, side: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones([side] * dims))
        self.bias = nn.Parameter(torch.zeros([side] * dims))

    def forward(self, x: Tensor) -> Tensor:
        return F.layer_norm(x, self.weight.shape, self.weight, self.bias, 1e-3)


@dataclass(frozen=True)
class Code:
    """What a narrow network is narrow by.

    Attributes:
        length: numbers of a dense code, channels of a spatial one.
        heads: 1 for an autoencoder, 2 for mean and spread of a variational one.
        head: ``dense``, or ``spatial`` without linear layers.
    """

    length: int = 128
    heads: int = 1
    head: Head = "dense"


@dataclass(frozen=True)
class Levels:
    """The convolutions between the image and the bottleneck.

    Attributes:
        width: channels of the first convolution.
        widest: channels of the widest one where they aren't four times ``width``.
        smallest: pixels along each axis at the bottleneck.
        norm: ``batch``, or ``affine`` for the released code, whose batch norm is never in
            training mode.
        restoring: of the decoder, where it isn't ``norm``; ``plane`` normalises the pixels of each
            channel of a sample.
        slope: of the Leaky ReLUs.
        final: whether a 1x1 convolution to the channels of the input ends the decoder.
    """

    width: int = 32
    widest: int | None = None
    smallest: int = 8
    norm: Norm = "batch"
    restoring: AnyNorm | None = None
    slope: float = 0.3
    final: bool = True


def _norm(kind: AnyNorm, dims: int, channels: int, side: int) -> nn.Module:
    if kind == "plane":
        return PlaneNorm(dims, side)
    return layer("batch_norm", dims, channels) if kind == "batch" else ChannelAffine(dims, channels)


def _halved(
    dims: int, size: int, widths: list[int], norm: AnyNorm, slope: float
) -> list[nn.Module]:
    """5x5 convolutions of stride 2 with norms and Leaky ReLUs, ``widths[0]`` the image's channels."""
    parts: list[nn.Module] = []
    for i, (a, b) in enumerate(zip(widths, widths[1:], strict=False)):
        conv = layer("conv", dims, a, b, 5, stride=2, padding=2)
        parts += [conv, _norm(norm, dims, b, size // 2 ** (i + 1)), nn.LeakyReLU(slope)]
    return parts


class CodedNetwork(nn.Module):
    """Encoder, code of ``latent`` numbers, decoder; variational if ``heads`` is 2.

    ``encode`` returns the code, or mean and raw spread for two heads.
    """

    encoder: nn.Module
    heads: nn.ModuleList
    decoder: nn.Module

    def encode(self, x: Tensor) -> list[Tensor]:
        features = self.encoder(x)
        return [head(features) for head in self.heads]

    def decode(self, z: Tensor) -> Tensor:
        x: Tensor = self.decoder(z)
        return x

    def forward(self, x: Tensor) -> Tensor:
        return self.decode(self.encode(x)[0])


class BaurAutoencoder(CodedNetwork):
    """Unified encoder and decoder of Baur et al. 2021 with a dense or a spatial code.

    Stride-2 5x5 convolutions of 32, 64, 128, 128 channels down to 8x8 (Leaky ReLU with slope 0.3,
    the Keras default), 1x1 convolution to an eighth of the channels, linear layer to the code;
    mirrored up; linear output. With a spatial code the 8x8x128 features are the code.

    Args:
        dims: 2 or 3.
        channels: of input and output.
        size: pixels along each axis; ``levels.smallest`` times a power of two.
        code: 128 numbers; the features at the bottleneck if it is spatial.
        levels: 32 channels that double to 128, down to 8 pixels.
        dropout: after the linear layers, or on the spatial code.
        restoring_dropout: after the decoder's linear layer where it isn't ``dropout``.
    """

    def __init__(
        self,
        dims: int = 2,
        channels: int = 1,
        size: int = 128,
        code: Code = Code(),
        levels: Levels = Levels(),
        *,
        dropout: float = 0.2,
        restoring_dropout: float | None = None,
    ) -> None:
        super().__init__()
        n = doublings(size, levels.smallest)
        widest = levels.widest or 4 * levels.width
        down = [min(widest, levels.width * 2**i) for i in range(n)]
        up = [max(levels.width, widest // 2**i) for i in range(n)]
        norm, slope = levels.norm, levels.slope
        parts = _halved(dims, size, [channels, *down], norm, slope)
        narrow = max(1, down[-1] // 8)
        shape = (narrow, *[levels.smallest] * dims)
        flat = narrow * levels.smallest**dims
        out: list[nn.Module] = []
        codes: list[nn.Module]
        if code.head == "spatial":
            codes = [nn.Dropout(dropout) for _ in range(code.heads)]
        else:
            parts += [layer("conv", dims, down[-1], narrow, 1), nn.Flatten()]
            codes = [
                nn.Sequential(nn.Linear(flat, code.length), nn.Dropout(dropout))
                for _ in range(code.heads)
            ]
            dropped = dropout if restoring_dropout is None else restoring_dropout
            out += [nn.Linear(code.length, flat), nn.Dropout(dropped), nn.Unflatten(1, shape)]
            out.append(layer("conv", dims, narrow, down[-1], 1))
        self.encoder = nn.Sequential(*parts)
        self.heads = nn.ModuleList(codes)
        again, side = levels.restoring or norm, levels.smallest
        out += [_norm(again, dims, down[-1], side), nn.ReLU()]
        for a, b in zip([down[-1], *up], up, strict=False):
            side *= 2
            out.append(
                layer("conv_transpose", dims, a, b, 5, stride=2, padding=2, output_padding=1)
            )
            out += [_norm(again, dims, b, side), nn.LeakyReLU(slope)]
        if levels.final:
            out.append(layer("conv", dims, up[-1], channels, 1))
        self.decoder = nn.Sequential(*out)


def baur_critic(dims: int, channels: int, size: int, levels: Levels) -> nn.Sequential:
    """Return a critic of that encoder's form, an image to a number for each cell of its last level.

    Args:
        dims: 2 or 3.
        channels: of the image.
        size: pixels along each axis; ``levels.smallest`` times a power of two.
        levels: of the convolutions; its norms are ``plane``, so that no sample sees another.
    """
    n, widest = doublings(size, levels.smallest), levels.widest or 4 * levels.width
    widths = [channels, *(min(widest, levels.width * 2**i) for i in range(n))]
    body = _halved(dims, size, widths, "plane", levels.slope)
    return nn.Sequential(*body, layer("conv", dims, widths[-1], 1, 1))


class CompactAutoencoder(CodedNetwork):
    """Autoencoder of Mao et al. 2020, shared by MedIAnomaly (Cai et al. 2025).

    Four stride-2 4x4 convolutions of 16, 32, 64, 64 channels, a hidden linear layer, a code of 16
    numbers; mirrored; the last layer has neither norm nor activation. With a spatial code the
    linear layers are 1x1 convolutions without bias, and the code has 4x4 positions.

    Args:
        dims: 2 or 3.
        channels: of input and output.
        size: pixels along each axis; 4 times a power of two (64 in the article).
        code: 16 numbers, or as many channels of 4x4 positions.
        width: channels of the first convolution.
        hidden: width of the hidden layer.
        outputs: channels of the output where they aren't the input's.
    """

    def __init__(
        self,
        dims: int = 2,
        channels: int = 1,
        size: int = 64,
        code: Code = Code(16),
        *,
        width: int = 16,
        hidden: int = 1024,
        outputs: int | None = None,
    ) -> None:
        super().__init__()
        smallest = 4
        n = doublings(size, smallest)
        down = [width * min(2**i, 4) for i in range(n)]
        options = {"stride": 2, "padding": 1, "bias": False}
        parts: list[nn.Module] = []
        for a, b in zip([channels, *down], down, strict=False):
            parts += [
                layer("conv", dims, a, b, 4, **options),
                layer("batch_norm", dims, b),
                nn.ReLU(),
            ]
        wide = down[-1]
        out: list[nn.Module]
        codes: list[nn.Module]
        latent, heads = code.length, code.heads
        if code.head == "spatial":
            conv = partial(layer, "conv", dims, kernel_size=1, bias=False)
            parts += [conv(wide, hidden), layer("batch_norm", dims, hidden), nn.ReLU()]
            codes = [conv(hidden, latent) for _ in range(heads)]
            out = [conv(latent, hidden), layer("batch_norm", dims, hidden), nn.ReLU()]
            out.append(conv(hidden, wide))
        else:
            flat = wide * smallest**dims
            parts += [nn.Flatten(), nn.Linear(flat, hidden), nn.BatchNorm1d(hidden), nn.ReLU()]
            codes = [nn.Linear(hidden, latent) for _ in range(heads)]
            out = [nn.Linear(latent, hidden), nn.BatchNorm1d(hidden), nn.ReLU()]
            out += [nn.Linear(hidden, flat), nn.Unflatten(1, (wide, *[smallest] * dims))]
        self.encoder = nn.Sequential(*parts)
        self.heads = nn.ModuleList(codes)
        up = [*reversed(down[:-1])]
        for a, b in zip([wide, *up], up, strict=False):
            out.append(layer("conv_transpose", dims, a, b, 4, **options))
            out += [layer("batch_norm", dims, b), nn.ReLU()]
        last = up[-1] if up else wide
        self.decoder = nn.Sequential(
            *out, layer("conv_transpose", dims, last, outputs or channels, 4, **options)
        )


class PerceptronHeads(CodedNetwork):
    """5x5 convolutions of stride 2, a hidden layer before each head of the code; tanh at the end.

    Convolutions of 64, 128 and 256 channels, for each head a linear layer of 2048 and one to the
    code; a linear layer back, transposed convolutions of 256, 128 and 32 channels and one of stride
    1; batch norms and ReLUs between (Larsen et al. 2016, Akrami et al. 2022).

    Args:
        dims: 2 or 3.
        channels: of input and output.
        size: pixels along each axis, a multiple of 8.
        latent: numbers in the code.
        width: channels of the first convolution.
        hidden: width of the heads' hidden layers.
        heads: 2 for mean and spread of a variational code.

    Raises:
        ArgumentError: the size can't be halved three times.
    """

    def __init__(
        self, dims: int, channels: int, size: int, latent: int, width: int = 64,
        hidden: int = 2048, heads: int = 2,
    ) -> None:  # fmt: skip
        super().__init__()
        if size % 8:
            raise ArgumentError(f"size={size} is no multiple of 8. Use size={size // 8 * 8 or 8}.")
        widths = [width, 2 * width, 4 * width]
        shape = (widths[-1], *[size // 8] * dims)
        flat = math.prod(shape)

        def normed(kind: str, a: int, b: int, **options: int) -> list[nn.Module]:
            conv = layer(kind, dims, a, b, 5, stride=2, padding=2, **options)
            return [conv, layer("batch_norm", dims, b), nn.ReLU()]

        down = [
            part
            for a, b in zip([channels, *widths], widths, strict=False)
            for part in normed("conv", a, b)
        ]
        self.encoder = nn.Sequential(*down, nn.Flatten())
        self.heads = nn.ModuleList(
            nn.Sequential(
                nn.Linear(flat, hidden), nn.BatchNorm1d(hidden), nn.ReLU(),
                nn.Linear(hidden, latent),
            )
            for _ in range(heads)
        )  # fmt: skip
        widths = [4 * width, 4 * width, 2 * width, width // 2]
        up = [
            part
            for a, b in zip(widths, widths[1:], strict=False)
            for part in normed("conv_transpose", a, b, output_padding=1)
        ]
        self.decoder = nn.Sequential(
            nn.Linear(latent, flat), nn.BatchNorm1d(flat), nn.ReLU(), nn.Unflatten(1, shape), *up,
            layer("conv_transpose", dims, widths[-1], channels, 5, padding=2), nn.Tanh(),
        )  # fmt: skip
