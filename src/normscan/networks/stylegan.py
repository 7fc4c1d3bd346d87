"""A small StyleGAN2 (Karras et al., CVPR 2020): generator, critic, and an encoder to its codes."""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from normscan.networks.blocks import doublings

SMALLEST = 4
Noise = Callable[[tuple[int, ...]], Tensor]


class Scaled(nn.Module):
    """Linear layer whose weights are drawn with variance 1 and scaled when used.

    Args:
        a: numbers in.
        b: numbers out.
        bias: initial value of the biases.
        rate: factor on the learning rate of this layer.
    """

    def __init__(self, a: int, b: int, bias: float = 0.0, rate: float = 1.0) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(b, a) / rate)
        self.bias = nn.Parameter(torch.full((b,), bias / rate))
        self.rate, self.scale = rate, rate / math.sqrt(a)

    def forward(self, x: Tensor) -> Tensor:
        return F.linear(x, self.weight * self.scale, self.bias * self.rate)


class ScaledConv(nn.Module):
    """Convolution whose weights are drawn with variance 1 and scaled when used."""

    def __init__(self, a: int, b: int, kernel: int, bias: bool = True) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(b, a, kernel, kernel))
        self.bias = nn.Parameter(torch.zeros(b)) if bias else None
        self.scale = 1 / math.sqrt(a * kernel**2)

    def forward(self, x: Tensor) -> Tensor:
        weight = self.weight * self.scale
        return F.conv2d(x, weight, self.bias, padding=weight.shape[-1] // 2)


def activated(x: Tensor) -> Tensor:
    """Leaky ReLU that keeps the variance."""
    return F.leaky_relu(x, 0.2) * math.sqrt(2)


def enlarged(x: Tensor) -> Tensor:
    """Twice as large, smoothed by [1, 3, 3, 1]."""
    return F.interpolate(x, scale_factor=2, mode="bilinear", align_corners=False)


class Modulated(nn.Module):
    """Convolution whose input channels are scaled by a code, and its output brought to variance 1.

    Args:
        a: channels in.
        b: channels out.
        kernel: side in pixels, odd.
        latent: numbers in the code.
        demodulate: bring the output to variance 1.
    """

    def __init__(self, a: int, b: int, kernel: int, latent: int, demodulate: bool = True) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(b, a, kernel, kernel))
        self.style = Scaled(latent, a, bias=1.0)
        self.scale, self.demodulate = 1 / math.sqrt(a * kernel**2), demodulate

    def filters(self, code: Tensor) -> Tensor:
        """The filters of each code (B, latent), (B, out, in, k, k)."""
        weight = self.scale * self.weight * self.style(code)[:, None, :, None, None]
        if self.demodulate:
            weight = weight * torch.rsqrt(weight.square().sum((2, 3, 4), keepdim=True) + 1e-8)
        return weight

    def forward(self, x: Tensor, code: Tensor) -> Tensor:
        filters = self.filters(code)
        result = F.conv2d(
            x.reshape(1, -1, *x.shape[2:]), filters.flatten(0, 1), padding=filters.shape[-1] // 2,
            groups=len(x),
        )  # fmt: skip
        return result.reshape(len(x), -1, *x.shape[2:])


class StyledLayer(nn.Module):
    """Modulated 3x3 convolution, noise of a learnt strength, bias and activation."""

    def __init__(self, a: int, b: int, latent: int) -> None:
        super().__init__()
        self.conv = Modulated(a, b, 3, latent)
        self.strength, self.bias = nn.Parameter(torch.zeros(())), nn.Parameter(torch.zeros(b))

    def forward(self, x: Tensor, code: Tensor, noise: Noise | None) -> Tensor:
        x = self.conv(x, code)
        if noise is not None:
            x = x + self.strength * noise((len(x), 1, *x.shape[2:])).to(x)
        return activated(x + self.bias[:, None, None])


def widths_of(size: int, width: int, most: int) -> list[int]:
    """Channels at 4 pixels and after each doubling up to the size."""
    return [min(most, width * 2 ** (doublings(size, SMALLEST) - i)) for i in
            range(doublings(size, SMALLEST) + 1)]  # fmt: skip


class StyleGenerator(nn.Module):
    """Codes to images: a mapping of drawn numbers, and layers that each take a code of their own.

    Args:
        channels: of the images.
        size: pixels along each axis, 4 times a power of two.
        latent: numbers in a code.
        width: channels of the last level; they double towards 4 pixels.
        most: channels at most.
        depth: layers of the mapping.

    Attributes:
        layers: codes that an image takes.
    """

    def __init__(
        self, channels: int, size: int, latent: int, width: int, most: int, depth: int
    ) -> None:
        super().__init__()
        n = widths_of(size, width, most)
        self.mapping = nn.ModuleList(Scaled(latent, latent, rate=0.01) for _ in range(depth))
        self.begin = nn.Parameter(torch.randn(1, n[0], SMALLEST, SMALLEST))
        pairs = [
            (n[0], n[0]),
            *(p for a, b in zip(n, n[1:], strict=False) for p in ((a, b), (b, b))),
        ]
        self.convs = nn.ModuleList(StyledLayer(a, b, latent) for a, b in pairs)
        self.shown = nn.ModuleList(Modulated(a, channels, 1, latent, demodulate=False) for a in n)
        self.shift = nn.Parameter(torch.zeros(channels))
        self.layers, self.latent = 2 * len(n), latent

    def mapped(self, z: Tensor) -> Tensor:
        """Codes (B, latent) of drawn numbers of the same shape."""
        z = z * torch.rsqrt(z.square().mean(1, keepdim=True) + 1e-8)
        for linear in self.mapping:
            z = activated(linear(z))
        return z

    def forward(self, codes: Tensor, noise: Noise | None = None) -> Tensor:
        """Images (B, C, size, size) of codes (B, layers, latent)."""
        x = self.begin.expand(len(codes), -1, -1, -1)
        x = self.convs[0](x, codes[:, 0], noise)
        image = self.shown[0](x, codes[:, 1])
        for level in range(1, len(self.shown)):
            at = 2 * level - 1
            x = self.convs[at](enlarged(x), codes[:, at], noise)
            x = self.convs[at + 1](x, codes[:, at + 1], noise)
            image = enlarged(image) + self.shown[level](x, codes[:, at + 2])
        return image + self.shift[:, None, None]


class _Halved(nn.Module):
    """Two 3x3 convolutions and average pooling beside a 1x1 one."""

    def __init__(self, a: int, b: int) -> None:
        super().__init__()
        self.first, self.second = ScaledConv(a, a, 3), ScaledConv(a, b, 3)
        self.beside = ScaledConv(a, b, 1, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        y = activated(self.second(activated(self.first(x))))
        return (F.avg_pool2d(y, 2) + self.beside(F.avg_pool2d(x, 2))) / math.sqrt(2)


class StyleCritic(nn.Module):
    """Images to numbers: residual blocks down to 4 pixels, and linear layers.

    Args:
        channels: of the images.
        size: pixels along each axis, 4 times a power of two.
        outputs: numbers for an image.
        width: channels of the first level; they double.
        most: channels at most.
        spread: add the batch's mean deviation as a channel, as a critic should.
    """

    def __init__(
        self, channels: int, size: int, outputs: int, width: int, most: int, spread: bool
    ) -> None:
        super().__init__()
        n = widths_of(size, width, most)[::-1]
        self.begin, self.spread = ScaledConv(channels, n[0], 1), spread
        self.down = nn.Sequential(*(_Halved(a, b) for a, b in zip(n, n[1:], strict=False)))
        self.last = ScaledConv(n[-1] + spread, n[-1], 3)
        self.hidden = Scaled(n[-1] * SMALLEST**2, n[-1])
        self.end = Scaled(n[-1], outputs)

    def forward(self, x: Tensor) -> Tensor:
        x = self.down(activated(self.begin(x)))
        if self.spread:
            apart = (x.var(0, unbiased=False) + 1e-8).sqrt().mean()
            x = torch.cat([x, apart.expand(len(x), 1, *x.shape[2:])], 1)
        x = activated(self.hidden(activated(self.last(x)).flatten(1)))
        result: Tensor = self.end(x)
        return result


def path_lengths(generator: StyleGenerator, codes: Tensor, directions: Tensor) -> Tensor:
    """How far images move with their codes, (B,): root mean square over layers of |J^T y|.

    Args:
        generator: codes to images.
        codes: (B, layers, latent) that need gradients.
        directions: y, normal numbers of the images' shape.
    """
    image = generator(codes)
    weighed = (image * directions).sum() / math.sqrt(image.shape[2] * image.shape[3])
    (gradient,) = torch.autograd.grad(weighed, codes, create_graph=True)
    return gradient.square().sum(2).mean(1).sqrt()


def mixed(first: Tensor, second: Tensor, layers: int, cross: Tensor) -> Tensor:
    """Codes (B, layers, latent): the first one's up to a layer ``cross`` (B,), then the second's."""
    coarse = torch.arange(layers, device=first.device) < cross[:, None]
    return torch.where(coarse[:, :, None], first[:, None], second[:, None])
