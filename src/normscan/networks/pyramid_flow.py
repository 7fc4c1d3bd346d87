"""A flow between the levels of a Laplacian pyramid that keeps volumes (Lei et al. 2023)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from normscan.networks.flows import Flowed, Invertible
from normscan.networks.pyramid import blur

# Over what the log scales of a coupling are made to sum to 0: the channels of each pixel, or the
# pixels of each channel; over the batch as well.
Over = Literal["channels", "pixels"]
CLAMP, SLOPE, MOMENTUM = 2.0, 0.636, 0.1


def _nearest(x: Tensor, size: Sequence[int]) -> Tensor:
    return F.interpolate(x, tuple(size), mode="nearest")


def enlarged(x: Tensor, size: Sequence[int]) -> Tensor:
    """Nearest neighbours, smoothed; beyond the border lies 0."""
    return blur(_nearest(x, size), "constant")


def laplacian(x: Tensor, levels: int) -> list[Tensor]:
    """Details of an image and, last, what is left: smoothed, then the maximum of 2 x 2 pixels.

    Args:
        x: (B, C, H, W), sides multiples of 2**(levels - 1).
        levels: how many.
    """
    found = []
    for _ in range(levels - 1):
        coarse = F.max_pool2d(blur(x, "constant"), 2)
        found.append(x - enlarged(coarse, x.shape[2:]))
        x = coarse
    return [*found, x]


def composed(levels: Sequence[Tensor]) -> Tensor:
    """The image whose ``laplacian`` this is; for any others what adds up alike."""
    *details, x = levels
    for detail in reversed(details):
        x = enlarged(x, detail.shape[2:]) + detail
    return x


class VolumeNorm(nn.Module):
    """Log scales less their mean: of the batch while training, else the running one."""

    running_mean: Tensor

    def __init__(self, over: Over) -> None:
        super().__init__()
        self.axes = (0, 1) if over == "channels" else (0, 2, 3)
        self.register_buffer("running_mean", torch.zeros(1, 1, 1, 1))

    def forward(self, x: Tensor) -> Tensor:
        if not self.training:
            return x - self.running_mean
        mean = x.mean(self.axes, keepdim=True)
        self.running_mean = (1 - MOMENTUM) * self.running_mean + MOMENTUM * mean.detach()
        return x - mean


class ChannelMixing(Invertible):
    """A learnt mixing of the channels, P L U as in Glow, that keeps volumes.

    Its determinant is 1 or -1: the logarithms of U's diagonal are taken less their mean.
    """

    order: Tensor
    sign: Tensor

    def __init__(self, channels: int) -> None:
        super().__init__()
        q, _ = torch.linalg.qr(torch.randn(channels, channels, dtype=torch.float64))
        order, lower, upper = (m.float() for m in torch.linalg.lu(q))
        self.register_buffer("order", order)
        self.register_buffer("sign", upper.diagonal().sign())
        self.lower = nn.Parameter(lower.tril(-1))
        self.size = nn.Parameter(upper.diagonal().abs().log())
        self.upper = nn.Parameter(upper.triu(1))

    def matrix(self) -> Tensor:
        """The mixing (channels, channels)."""
        one = torch.eye(len(self.size)).to(self.size)
        diagonal = self.sign * (self.size - self.size.mean()).exp()
        return self.order @ (self.lower.tril(-1) + one) @ (self.upper.triu(1) + diagonal.diag())

    def forward(self, x: Tensor, condition: Tensor | None = None) -> Flowed:
        return Flowed(F.conv2d(x, self.matrix()[:, :, None, None]), x.new_zeros(len(x)))

    def inverse(self, z: Tensor, condition: Tensor | None = None) -> Tensor:
        back = torch.linalg.inv(self.matrix().double()).to(z)
        return F.conv2d(z, back[:, :, None, None])


class LevelCoupling(nn.Module):
    """Scales and shifts one level by what a network makes of its neighbours, then mixes channels.

    Args:
        channels: of each level.
        moved: number of the level.
        seen: numbers of its neighbours. A single finer one is seen at its own size and what comes out
            made smaller; else neighbours are brought to the level's size first.
        kernel: side of the network's two convolutions.
        over: see ``Over``.
    """

    def __init__(self, channels: int, moved: int, seen: Sequence[int], kernel: int, over: Over):
        super().__init__()
        self.moved, self.seen = moved, tuple(seen)
        self.late = self.seen == (moved - 1,)
        pad = kernel // 2
        self.subnet = nn.Sequential(
            nn.Conv2d(
                len(self.seen) * channels, 2 * channels, kernel, padding=pad, bias=False
            ),
            nn.LeakyReLU(),
            nn.Conv2d(2 * channels, 2 * channels, kernel, padding=pad, bias=False),
        )  # fmt: skip
        nn.init.zeros_(self.subnet[2].weight)
        self.norm = VolumeNorm(over)
        self.mixing = ChannelMixing(channels)

    def _parts(self, levels: Sequence[Tensor]) -> tuple[Tensor, Tensor]:
        """Log scale and shift of the level."""
        size = levels[self.moved].shape[2:]
        around = [levels[i] for i in self.seen]
        if not self.late:
            around = [_nearest(x, size) for x in around]
        raw, shift = self.subnet(torch.cat(around, dim=1)).chunk(2, dim=1)
        scale = self.norm(CLAMP * SLOPE * torch.atan(raw / CLAMP))
        return (_nearest(scale, size), _nearest(shift, size)) if self.late else (scale, shift)

    def forward(self, levels: Sequence[Tensor]) -> list[Tensor]:
        scale, shift = self._parts(levels)
        changed = list(levels)
        changed[self.moved] = self.mixing(levels[self.moved] * scale.exp() + shift).z
        return changed

    def inverse(self, levels: Sequence[Tensor]) -> list[Tensor]:
        """What ``forward`` leads here, in evaluation mode."""
        scale, shift = self._parts(levels)
        changed = list(levels)
        mixed = self.mixing.inverse(levels[self.moved])
        changed[self.moved] = (mixed - shift) * (-scale).exp()
        return changed


class PyramidFlow(nn.Module):
    """Stacks of couplings between the levels of a pyramid, each level moved twice in a stack.

    Args:
        channels: of each level.
        levels: of the pyramid, 2 or more.
        stacks: how many.
        kernel: side of the couplings' convolutions, odd.
        over: see ``Over``.
    """

    def __init__(self, channels: int, levels: int, stacks: int, kernel: int, over: Over) -> None:
        super().__init__()
        order: list[tuple[int, tuple[int, ...]]] = []
        for moved in range(1, levels, 2):
            order.append((moved, (moved - 1, moved + 1)))
        order.append((0, (1,)))
        for moved in range(2, levels, 2):
            order.append((moved, (moved - 1, moved + 1)))
        self.couplings = nn.ModuleList(
            LevelCoupling(channels, moved, [i for i in seen if i < levels], kernel, over)
            for _ in range(stacks)
            for moved, seen in order
        )

    def forward(self, levels: Sequence[Tensor]) -> list[Tensor]:
        """Lead the levels (B, channels, H / 2**i, W / 2**i), the finest first."""
        found = list(levels)
        for coupling in self.couplings:
            found = coupling(found)
        return found

    def inverse(self, levels: Sequence[Tensor]) -> list[Tensor]:
        """What ``forward`` leads here, in evaluation mode."""
        found = list(levels)
        for coupling in reversed(self.couplings):
            assert isinstance(coupling, LevelCoupling)
            found = coupling.inverse(found)
        return found


def fourier_size(x: Tensor) -> Tensor:
    """Mean modulus of the two-dimensional Fourier transform of images (B, H, W), not normalised."""
    return torch.fft.fft2(x).abs().mean()


def pairs(number: int) -> tuple[Tensor, Tensor]:
    """Numbers of the first and of the second of all pairs among so many."""
    first, second = torch.triu_indices(number, number, offset=1)
    return first, second
