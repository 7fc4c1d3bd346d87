"""Autoencoder of patches that know their place and are inpainted from a memory (SQUID)."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass
from itertools import pairwise

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from normscan.errors import ArgumentError
from normscan.networks.memory import MemoryQueue, StrongestMemory

PATCHES = 2  # along each axis
LEVELS = 4
APART = 2  # of the levels, the deepest, in which patches have not yet been put together


def cut(x: Tensor, n: int = PATCHES) -> Tensor:
    """Images (B, C, H, W) to patches (B * n * n, C, H / n, W / n), row by row."""
    b, c, h, w = x.shape
    x = x.reshape(b, c, n, h // n, n, w // n).permute(0, 2, 4, 1, 3, 5)
    return x.reshape(b * n * n, c, h // n, w // n)


def joined(x: Tensor, n: int = PATCHES) -> Tensor:
    """The images of such patches."""
    c, h, w = x.shape[1:]
    x = x.reshape(-1, n, n, c, h, w).permute(0, 3, 1, 4, 2, 5)
    return x.reshape(-1, c, n * h, n * w)


def shortcut(x: Tensor, before: Tensor, kept: float) -> Tensor:
    """At each place what is kept of x with a probability, else what was there before."""
    mask = torch.bernoulli(torch.full_like(x[:, :1], kept))
    return mask * x + (1 - mask) * before


def _conv(a: int, b: int, stride: int = 1) -> list[nn.Module]:
    return [nn.Conv2d(a, b, 3, stride, 1), nn.BatchNorm2d(b)]


class Stage(nn.Module):
    """A convolution, then two beside the identity; batch norm and ReLU."""

    def __init__(self, a: int, b: int, stride: int = 1) -> None:
        super().__init__()
        self.first = nn.Sequential(*_conv(a, b, stride), nn.ReLU())
        self.rest = nn.Sequential(*_conv(b, b), nn.ReLU(), *_conv(b, b))

    def forward(self, x: Tensor) -> Tensor:
        x = self.first(x)
        return F.relu(x + self.rest(x))


@dataclass(frozen=True)
class Remembered:
    """How memories are made.

    Attributes:
        slots: vectors in each.
        count: the weights above the so-manyth largest are used.
        kept: probability in training that a place holds what was read, see ``shortcut``.
        queue: the bottleneck's are queues of training codes; else they are learned.
    """

    slots: int = 200
    count: int = 5
    kept: float = 0.95
    queue: bool = True


class MemoryMatrices(nn.Module):
    """Features read window by window from learned memories, each place its own.

    Args:
        features: numbers in a window of a quarter of the features.
        memory: how the memories are made.
        kept: see ``shortcut``.
    """

    def __init__(self, features: int, memory: Remembered, kept: float) -> None:
        super().__init__()
        self.kept = kept
        self.memories = nn.ModuleList(
            StrongestMemory(memory.slots, features, memory.count) for _ in range(PATCHES**2)
        )

    def forward(self, x: Tensor) -> Tensor:
        windows = cut(x)
        z = windows.reshape(len(x), PATCHES**2, -1)
        read = torch.stack([m(z[:, i]) for i, m in enumerate(self.memories)], 1)
        found = joined(read.reshape(windows.shape))
        return shortcut(found, x, self.kept) if self.training else found


class Inpainting(nn.Module):
    """The deepest features of a patch, told from a memory of its place and from its neighbours.

    Args:
        channels: of the features.
        cells: along each axis of a patch's features.
        memory: how the memories are made.
    """

    def __init__(self, channels: int, cells: int, memory: Remembered) -> None:
        super().__init__()
        inner, places = channels // 4, PATCHES**2
        self.features = features = inner * cells**2
        self.kept = memory.kept
        self.narrow = nn.Sequential(
            nn.Conv2d(channels, inner, 1, bias=False), nn.BatchNorm2d(inner), nn.ReLU()
        )
        kind = MemoryQueue if memory.queue else StrongestMemory
        self.memories = nn.ModuleList(
            kind(memory.slots, features, memory.count) for _ in range(places)
        )
        self.attention = nn.MultiheadAttention(features, 8)
        self.features = features
        self.norms = nn.ModuleList(nn.LayerNorm(features) for _ in range(2))
        self.perceptron = nn.Sequential(
            nn.Linear(features, features // 4), nn.ReLU(), nn.Linear(features // 4, features)
        )
        bits = int(math.log2(places)) + 1
        self.wide = nn.Sequential(
            nn.Conv2d(inner + bits, channels, 1), nn.BatchNorm2d(channels), nn.ReLU()
        )
        self.place: Tensor
        digits = torch.arange(places)[:, None] >> torch.arange(bits - 1, -1, -1) & 1
        self.register_buffer("place", digits.float(), persistent=False)

    def codes(self, x: Tensor) -> Tensor:
        """Codes (B, places, features) of the deepest features (B * places, C, h, w)."""
        return self.narrow(x).reshape(-1, PATCHES**2, self.features)

    def enqueue(self, codes: Tensor) -> None:
        """Put codes into the queues, where there are any."""
        for i, memory in enumerate(self.memories):
            if isinstance(memory, MemoryQueue):
                memory.enqueue(codes[:, i])

    def forward(self, x: Tensor, codes: Tensor) -> Tensor:
        """Features like the deepest ones (B * places, C, h, w), told from their codes."""
        read = torch.stack([m(codes[:, i]) for i, m in enumerate(self.memories)], 1)
        grid = read.transpose(1, 2).unflatten(2, (PATCHES, PATCHES))
        # (9, B * places, features): each place's neighbours, zeros beyond the image.
        around = (
            F.unfold(grid, 3, padding=1).unflatten(1, (-1, 9)).permute(2, 0, 3, 1).flatten(1, 2)
        )
        around = torch.cat([around[:4], around[5:]])
        own, asked = read.flatten(0, 1)[None], codes.flatten(0, 1)[None]
        told = F.relu(self.norms[0](self.attention(asked, around, around)[0]) + own)
        told = F.relu(self.norms[1](self.perceptron(told)) + told)
        told = told.reshape(len(x), -1, *x.shape[2:])
        place = self.place.repeat(len(codes), 1)[..., None, None].expand(-1, -1, *x.shape[2:])
        found: Tensor = self.wide(torch.cat([told, place], 1))
        return shortcut(found, x, self.kept) if self.training else found


class Upward(nn.Module):
    """Twice the size, beside what was met on the way down, through a stage."""

    def __init__(self, a: int, beside: int, b: int) -> None:
        super().__init__()
        self.stage = Stage(a + beside, b)

    def forward(self, x: Tensor, beside: Tensor | None) -> Tensor:
        x = F.interpolate(x, scale_factor=2.0, mode="bilinear", align_corners=False)
        found: Tensor = self.stage(x if beside is None else torch.cat([beside, x], 1))
        return found


def _ways(widths: list[int]) -> nn.ModuleList:
    pairs = list(pairwise(widths))[::-1]
    return nn.ModuleList(Upward(b, a if i < APART else 0, a) for i, (a, b) in enumerate(pairs))


@dataclass
class Restored:
    """Attributes: image, the teacher's, how far their features are apart, codes of the patches."""

    image: Tensor
    taught: Tensor
    apart: Tensor
    codes: Tensor


class SpaceAware(nn.Module):
    """Encoder of four patches, inpainting in the bottleneck, decoder with memories, and a teacher.

    The two deepest levels of the decoder work on patches and have skips; then the patches are put
    together. The teacher is a second decoder, of the features that were not inpainted, without
    memories.

    Args:
        channels: of the image.
        size: pixels along each axis, a multiple of 32.
        width: channels of the first level; 2, 4, 8 and 16 times as many in the others.
        memory: how the memories are made.
        matrices: probability in training that a place of the decoder's features is a memory's.
        end: what bounds the output.

    Raises:
        ArgumentError: the size is no such multiple.
    """

    def __init__(
        self, channels: int, size: int, width: int, memory: Remembered, matrices: float,
        end: type[nn.Module] = nn.Sigmoid,
    ) -> None:  # fmt: skip
        super().__init__()
        cells, rest = divmod(size, PATCHES * 2**LEVELS)
        if rest:
            raise ArgumentError(
                f"size={size} can't be cut into {PATCHES} x {PATCHES} patches and halved {LEVELS} "
                f"times: give a multiple of {PATCHES * 2**LEVELS}."
            )
        widths = [width * 2**i for i in range(LEVELS + 1)]
        self.start = Stage(channels, width)
        self.down = nn.ModuleList(Stage(a, b, 2) for a, b in pairwise(widths))
        self.inpaint = Inpainting(widths[-1], cells, memory)
        self.up, self.teacher = _ways(widths), _ways(widths)
        self.matrices = nn.ModuleList(
            # A window is a quarter of what a patch has at that level.
            MemoryMatrices(widths[LEVELS - 1 - i] * (cells * 2**i) ** 2, memory, matrices)
            for i in range(APART)
        )
        self.out, self.teacher_out = (nn.Conv2d(width, channels, 1) for _ in range(2))
        self.end = end()

    def encoded(self, x: Tensor) -> tuple[Tensor, list[Tensor]]:
        """Deepest features of the patches, and those of the skips, the deepest first."""
        x = self.start(cut(x))
        skips: list[Tensor] = []
        for stage in self.down:
            skips = [x, *skips]
            x = stage(x)
        return x, skips[:APART]

    def _decoded(
        self, x: Tensor, skips: list[Tensor], up: Iterable[nn.Module], remember: bool
    ) -> list[Tensor]:
        """Features of each level on the way up."""
        found = []
        for i, way in enumerate(up):
            x = way(joined(x) if i == APART else x, skips[i] if i < APART else None)
            if remember and i < APART:
                x = self.matrices[i](x)
            found.append(x)
        return found

    def restored(self, x: Tensor) -> Restored:
        """All that is learnt from."""
        deepest, skips = self.encoded(x)
        codes = self.inpaint.codes(deepest)
        mine = self._decoded(self.inpaint(deepest, codes), skips, self.up, True)
        fixed = [s.detach() for s in skips]
        theirs = self._decoded(deepest.detach(), fixed, self.teacher, False)
        apart = torch.stack([F.mse_loss(a, b) for a, b in zip(mine, theirs, strict=True)]).sum()
        taught = self.end(self.teacher_out(theirs[-1]))
        return Restored(self.end(self.out(mine[-1])), taught, apart, codes)

    def forward(self, x: Tensor) -> Tensor:
        deepest, skips = self.encoded(x)
        told = self.inpaint(deepest, self.inpaint.codes(deepest))
        image: Tensor = self.end(self.out(self._decoded(told, skips, self.up, True)[-1]))
        return image
