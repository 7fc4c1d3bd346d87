"""Images as functions of a place: a network that is told a code and coordinates."""

from __future__ import annotations

import itertools
import math

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.utils.parametrizations import weight_norm

from normscan.errors import ArgumentError

DEPTH, AGAIN = 8, 4  # layers of the full width, and the one that sees the input again
BINS = 256


def fourier(places: Tensor, octaves: int) -> Tensor:
    """Sines, then cosines, of places (..., dims) in -1..1 times pi, 2 pi, 4 pi, ..., flat."""
    rates = math.pi * 2.0 ** torch.arange(octaves, device=places.device, dtype=places.dtype)
    angles = places[..., None] * rates
    return torch.cat([angles.sin(), angles.cos()], dim=-2).flatten(-2)


class Field(nn.Module):
    """Code and place to logits (DeepSDF, Park et al. 2019, with Fourier features).

    Eight linear layers with weight norm, ReLU and dropout; the fifth sees the input again; then a
    linear one.

    Args:
        dims: numbers in a place.
        latent: numbers in a code.
        out: logits of a place.
        width: of the layers, more than the input has numbers.
        octaves: of the Fourier features.
        dropout: share that is dropped behind each of the eight.

    Raises:
        ArgumentError: the layers are too narrow.
    """

    def __init__(
        self, dims: int, latent: int, out: int, width: int = 512, octaves: int = 10,
        dropout: float = 0.2,
    ) -> None:  # fmt: skip
        super().__init__()
        given = latent + 2 * dims * octaves
        if width <= given:
            raise ArgumentError(
                f"the field's input has {given} numbers, of which its fifth layer needs fewer than "
                f"width={width}. Give a larger width, a shorter code or fewer octaves."
            )
        self.octaves, self.dropout = octaves, dropout
        widths = [width] * DEPTH
        widths[AGAIN - 1] -= given
        self.layers = nn.ModuleList(
            weight_norm(nn.Linear(a + given * (i == AGAIN), b))
            for i, (a, b) in enumerate(zip([given, *widths], widths, strict=False))
        )
        self.out = nn.Linear(width, out)

    def forward(self, code: Tensor, places: Tensor) -> Tensor:
        """Logits (B, P, out) of places (B, P, dims) in -1..1 under codes (B, latent)."""
        spread = code[:, None].expand(-1, places.shape[1], -1)
        given = x = torch.cat([spread, fourier(places, self.octaves)], dim=-1)
        for i, layer in enumerate(self.layers):
            x = F.relu(layer(torch.cat([x, given], dim=-1) if i == AGAIN else x))
            x = F.dropout(x, self.dropout, self.training)
        logits: Tensor = self.out(x)
        return logits


class Codes(nn.Module):
    """A code for each training sample; there are as many as were met.

    Args:
        latent: numbers in a code.
        largest: Euclidean norm to which a code is cut when it is used.
    """

    alone = "it learns a code for each sample as the samples come"  # not in several processes

    def __init__(self, latent: int, largest: float = 1.0) -> None:
        super().__init__()
        self.largest = largest
        self.weight = nn.Parameter(torch.zeros(0, latent))

    def __len__(self) -> int:
        return len(self.weight)

    def grow(self, fresh: Tensor) -> None:
        """Put codes behind those that are there."""
        self.weight.data = torch.cat([self.weight.data, fresh.to(self.weight)])

    def forward(self, index: Tensor) -> Tensor:
        """Codes (B, latent) by the numbers of their samples."""
        return F.embedding(index, self.weight, max_norm=self.largest)


def grey_levels(counts: Tensor, levels: int) -> Tensor:
    """Grey values to which a histogram over 0..1 is brought with the least squared error, ascending.

    Exact one-dimensional k-means by dynamic programming over the bins (Wang and Song 2011).

    Args:
        counts: (bins,) of equal width.
        levels: how many.
    """
    bins = len(counts)
    weight = counts.double().cpu() + 1e-12  # an empty part of the range still has a middle
    value = (torch.arange(bins, dtype=torch.float64) + 0.5) / bins
    zero = torch.zeros(1, dtype=torch.float64)
    sums = [torch.cat([zero, (weight * value**k).cumsum(0)]) for k in range(3)]
    # Of bins i to j - 1 together, [i, j].
    mass, first, second = (s[None] - s[:, None] for s in sums)
    cost = torch.where(mass > 0, second - first**2 / mass.clamp_min(1e-300), torch.inf)
    best, cuts = cost[0], []
    for _ in range(levels - 1):
        best, cut = (best[:, None] + cost).min(0)
        cuts.append(cut)
    edges = [bins]
    for cut in reversed(cuts):
        edges.append(int(cut[edges[-1]]))
    edges = [*edges, 0][::-1]
    parts = [(first[a, b] / mass[a, b]) for a, b in itertools.pairwise(edges)]
    return torch.stack(parts).to(counts.device)


def nearest_level(x: Tensor, levels: Tensor) -> Tensor:
    """Numbers of the nearest levels of each channel.

    Args:
        x: (B, C, *spatial).
        levels: (C, K), ascending.
    """
    middles = (levels[:, 1:] + levels[:, :-1]) / 2
    each = [torch.bucketize(x[:, c].contiguous(), m) for c, m in enumerate(middles)]
    return torch.stack(each, dim=1)


def most_common(labels: Tensor, flat: Tensor, side: int, classes: int) -> Tensor:
    """The label that most neighbours of a place have, the smallest of several.

    A window of side 2 holds the place and the one before along each axis. Beyond the border lies 0.

    Args:
        labels: (B, C, *spatial).
        flat: (B, P) places, counted along the last axis first.
        side: of the window, 1, 2 or 3.
        classes: number of labels.

    Returns:
        (B, C, P).
    """
    shape = labels.shape[2:]
    where = torch.stack(torch.unravel_index(flat, tuple(shape)), dim=-1)
    size = torch.tensor(shape, device=flat.device)
    flattened = labels.flatten(2)
    counts = torch.zeros(
        *labels.shape[:2], flat.shape[1], classes, dtype=torch.uint8, device=flat.device
    )
    strides = torch.tensor([math.prod(shape[i + 1 :]) for i in range(len(shape))])
    strides = strides.to(flat.device)
    first = 0 if side == 1 else -1
    for offset in itertools.product(range(first, first + side), repeat=len(shape)):
        there = where + torch.tensor(offset, device=flat.device)
        inside = ((there >= 0) & (there < size)).all(-1)
        index = torch.where(inside, (there * strides).sum(-1), 0)
        found = flattened.gather(2, index[:, None].expand(-1, labels.shape[1], -1))
        found = torch.where(inside[:, None], found, 0)
        counts.scatter_add_(3, found[..., None], torch.ones_like(counts[..., :1]))
    return counts.argmax(-1)


def coordinates(flat: Tensor, shape: tuple[int, ...]) -> Tensor:
    """Places (..., dims) in -1..1 of numbers of pixels, the first pixel at -1."""
    where = torch.stack(torch.unravel_index(flat, shape), dim=-1)
    return 2 * where / torch.tensor(shape, device=flat.device) - 1
