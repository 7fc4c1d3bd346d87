"""Invertible networks: affine couplings with their log-determinants, and a code of places.

FrEIA (last release in 2022) has the same block, but draws its rotations from numpy's global random
state and its clamp means different things in different versions; zuko (kept) has couplings of vectors
only, under one mask for all elements. What the systems here need of either is this file.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from normscan.networks.blocks import layer

# What couplings multiply the output of their networks by, so that a fresh one hardly moves anything.
DAMPING = 0.1
# Softplus with this sharpness, times the damping, is the scale of ``ActNorm``.
SHARPNESS = 0.5

# Channels in and out to a network of that many.
Subnet = Callable[[int, int], nn.Module]


class Flowed(NamedTuple):
    """Where a flow leads.

    Attributes:
        z: of the shape of the input.
        log_det: (B,) log absolute determinant of the Jacobian of each sample.
    """

    z: Tensor
    log_det: Tensor


class Invertible(nn.Module):
    """What can be gone back: ``inverse`` undoes ``forward``."""

    def forward(self, x: Tensor, condition: Tensor | None = None) -> Flowed:
        """Map (B, C, *spatial), or (B, C), and say how it stretches space."""
        raise NotImplementedError

    def inverse(self, z: Tensor, condition: Tensor | None = None) -> Tensor:
        """What ``forward`` maps to ``z`` under the same condition."""
        raise NotImplementedError


class Coupling(Invertible):
    """Scales and shifts the last half of the channels by what a network makes of the first half.

    Real NVP (Dinh et al., ICLR 2017): y2 = x2 exp(clamp tanh(0.1 s)) + 0.1 t with (s, t) the
    network's output for x1 and the condition.

    Args:
        channels: of the input, 2 or more; of an odd number the first half has one more.
        subnet: builds the network.
        clamp: largest log scale.
        condition: channels of the condition.
    """

    def __init__(self, channels: int, subnet: Subnet, clamp: float = 2.0, condition: int = 0):
        super().__init__()
        self.kept, self.moved = channels - channels // 2, channels // 2
        self.clamp = clamp
        self.subnet = subnet(self.kept + condition, 2 * self.moved)

    def _parts(self, x: Tensor, condition: Tensor | None) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Both halves, and log scale and shift of the second."""
        kept, moved = x.split([self.kept, self.moved], dim=1)
        seen = kept if condition is None else torch.cat([kept, condition], dim=1)
        scale, shift = (DAMPING * self.subnet(seen)).chunk(2, dim=1)
        return kept, moved, self.clamp * torch.tanh(scale), shift

    def forward(self, x: Tensor, condition: Tensor | None = None) -> Flowed:
        kept, moved, scale, shift = self._parts(x, condition)
        return Flowed(torch.cat([kept, moved * scale.exp() + shift], 1), scale.flatten(1).sum(1))

    def inverse(self, z: Tensor, condition: Tensor | None = None) -> Tensor:
        kept, moved, scale, shift = self._parts(z, condition)
        return torch.cat([kept, (moved - shift) * (-scale).exp()], dim=1)


class ActNorm(Invertible):
    """A learnt scale, kept positive by a softplus, and an offset for each channel.

    Args:
        channels: of the input.
        axes: of each channel, 0 for vectors.
    """

    def __init__(self, channels: int, axes: int):
        super().__init__()
        shape = (1, channels, *[1] * axes)
        one = math.log(math.exp(SHARPNESS / DAMPING) - 1) / SHARPNESS  # at which the scale is 1
        self.scale = nn.Parameter(torch.full(shape, one))
        self.offset = nn.Parameter(torch.zeros(shape))

    def _factor(self) -> Tensor:
        return DAMPING * F.softplus(self.scale, beta=SHARPNESS)

    def forward(self, x: Tensor, condition: Tensor | None = None) -> Flowed:
        factor = self._factor()
        log_det = factor.log().sum() * math.prod(x.shape[2:])
        return Flowed(x * factor + self.offset, log_det.expand(len(x)))

    def inverse(self, z: Tensor, condition: Tensor | None = None) -> Tensor:
        return (z - self.offset) / self._factor()


class Permutation(Invertible):
    """The channels in another, fixed order, drawn when it is built."""

    order: Tensor

    def __init__(self, channels: int):
        super().__init__()
        self.register_buffer("order", torch.randperm(channels))

    def forward(self, x: Tensor, condition: Tensor | None = None) -> Flowed:
        return Flowed(x[:, self.order], x.new_zeros(len(x)))

    def inverse(self, z: Tensor, condition: Tensor | None = None) -> Tensor:
        return z[:, self.order.argsort()]


class Rotation(Invertible):
    """The channels of vectors under a fixed rotation, drawn from all of them when it is built."""

    matrix: Tensor

    def __init__(self, channels: int):
        super().__init__()
        q, r = torch.linalg.qr(torch.randn(channels, channels))
        q = q * r.diagonal().sign()  # else not uniform (Mezzadri 2007)
        q[0] *= torch.linalg.det(q.double()).sign()
        self.register_buffer("matrix", q)

    def forward(self, x: Tensor, condition: Tensor | None = None) -> Flowed:
        return Flowed(x @ self.matrix.T, x.new_zeros(len(x)))

    def inverse(self, z: Tensor, condition: Tensor | None = None) -> Tensor:
        return z @ self.matrix


class Flow(Invertible):
    """Invertible parts one after the other."""

    def __init__(self, *parts: Invertible):
        super().__init__()
        self.parts = nn.ModuleList(parts)

    def forward(self, x: Tensor, condition: Tensor | None = None) -> Flowed:
        log_det = x.new_zeros(len(x))
        for part in self.parts:
            x, change = part(x, condition)
            log_det = log_det + change
        return Flowed(x, log_det)

    def inverse(self, z: Tensor, condition: Tensor | None = None) -> Tensor:
        for part in reversed(self.parts):
            assert isinstance(part, Invertible)
            z = part.inverse(z, condition)
        return z


def coupled(
    channels: int, subnets: list[Subnet], axes: int = 2, clamp: float = 2.0, condition: int = 0,
    rotated: bool = False,
) -> Flow:  # fmt: skip
    """Return a flow of blocks, each a ``Coupling``, an ``ActNorm`` and a mixing of the channels.

    Args:
        channels: of the input.
        subnets: builds the coupling's network, one for each block.
        axes: of each channel, 0 for vectors.
        clamp: largest log scale of a coupling.
        condition: channels of the condition.
        rotated: mix by a ``Rotation`` of vectors in place of a ``Permutation``.
    """
    parts: list[Invertible] = []
    for subnet in subnets:
        parts += [Coupling(channels, subnet, clamp, condition), ActNorm(channels, axes)]
        parts += [Rotation(channels) if rotated else Permutation(channels)]
    return Flow(*parts)


def convolutions(first: int, last: int, share: float = 1.0) -> Subnet:
    """Return what builds two convolutions of these sides, a ReLU between.

    Args:
        first: side of the first kernel.
        last: side of the last one.
        share: of the input's channels that lie between them.
    """

    def build(a: int, b: int) -> nn.Module:
        hidden = int(a * share)
        return nn.Sequential(
            layer("conv", 2, a, hidden, first, padding=first // 2),
            nn.ReLU(),
            layer("conv", 2, hidden, b, last, padding=last // 2),
        )

    return build


def perceptron(a: int, b: int) -> nn.Module:
    """Two linear layers, twice the input's width and a ReLU between."""
    return nn.Sequential(nn.Linear(a, 2 * a), nn.ReLU(), nn.Linear(2 * a, b))


def surprise(flowed: Flowed, mean: bool = False) -> Tensor:
    """-log p(x), (B,), where z is standard normal.

    Args:
        flowed: what a flow made of x.
        mean: per number of z.
    """
    numbers = flowed.z[0].numel()
    squares = 0.5 * flowed.z.square().flatten(1).sum(1)
    value = squares + numbers * math.log(2 * math.pi) / 2 - flowed.log_det
    return value / numbers if mean else value


def place_code(numbers: int, height: int, width: int) -> Tensor:
    """Sines and cosines of the places of a grid, (numbers, height, width).

    The first half tells the column, the second the row, each with wavelengths from 2 pi to 10000
    times that, sines and cosines by turns.

    Args:
        numbers: of each place, a multiple of 4.
        height: rows.
        width: columns.
    """
    half = numbers // 2
    rates = torch.exp(torch.arange(0.0, half, 2) * -(math.log(1e4) / half))

    def along(length: int) -> Tensor:
        angles = rates[:, None] * torch.arange(float(length))
        return torch.stack([angles.sin(), angles.cos()], dim=1).flatten(0, 1)

    columns, rows = along(width), along(height)
    return torch.cat(
        [columns[:, None].expand(-1, height, -1), rows[:, :, None].expand(-1, -1, width)]
    )
