"""Orders in which a grid of codes becomes a sequence, and sequences that a transformer completes."""

from __future__ import annotations

import itertools
from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F


def raster_orders(grid: Sequence[int], count: int) -> Tensor:
    """Raster scans of a grid, by permuted and reflected axes: (count, cells) flat places.

    The plain scan is the first; a plane of equal sides has 8, a cube 48.

    Args:
        grid: cells along each axis.
        count: how many; if there are fewer, those.
    """
    places = torch.arange(int(torch.tensor(grid).prod())).reshape(*grid)
    axes = range(len(grid))
    turned = [
        places.permute(order).flip(flipped).flatten()
        for flipped in itertools.chain.from_iterable(
            itertools.combinations(axes, k) for k in range(len(grid) + 1)
        )
        for order in itertools.permutations(axes)
    ]
    return torch.stack(turned[:count])


class OrderedCodes(nn.Module):
    """An autoregressive transformer for each order of a grid of codes.

    Args:
        codes: in the codebook; one token more begins a sequence.
        grid: cells along each axis.
        orders: number of orders, each with a transformer of its own.
        dim: numbers in a token, a multiple of ``heads``.
        layers: of a transformer.
        heads: of its attention.
    """

    orders: Tensor

    def __init__(
        self, codes: int, grid: Sequence[int], orders: int, dim: int, layers: int, heads: int
    ) -> None:
        super().__init__()
        from monai.networks.nets import DecoderOnlyTransformer

        self.codes, self.grid = codes, tuple(grid)
        self.register_buffer("orders", raster_orders(grid, orders), persistent=False)
        self.transformers = nn.ModuleList(
            DecoderOnlyTransformer(codes + 1, self.orders.shape[1], dim, layers, heads)
            for _ in self.orders
        )

    def sequence(self, numbers: Tensor, order: int) -> Tensor:
        """Codes (B, *grid) as sequences (B, cells)."""
        return numbers.flatten(1)[:, self.orders[order]]

    def placed(self, values: Tensor, order: int) -> Tensor:
        """Values of a sequence (B, cells) back on the grid, (B, *grid)."""
        back = values[:, self.orders[order].argsort()]
        return back.reshape(len(values), *self.grid)

    def logits(self, sequence: Tensor, order: int) -> Tensor:
        """Of every code and the beginning, each cell given those before it: (B, cells, codes + 1)."""
        begun = F.pad(sequence, (1, 0), value=self.codes)[:, :-1]
        result: Tensor = self.transformers[order](begun)
        return result

    def log_likelihood(self, sequence: Tensor, order: int) -> Tensor:
        """Of each cell given those before it, (B, cells)."""
        found = self.logits(sequence, order).log_softmax(-1)
        return found.gather(2, sequence[..., None])[..., 0]

    def healed(
        self, sequence: Tensor, unlikely: Tensor, order: int, chance: Tensor | None = None
    ) -> Tensor:
        """Replace unlikely codes one after the other, each given those before it as they are then.

        Args:
            sequence: (B, cells).
            unlikely: (B, cells) bool.
            order: of the sequence.
            chance: (B, cells) uniform numbers that draw the new codes; the likeliest ones if None.
        """
        sequence = sequence.clone()
        for i in torch.nonzero(unlikely.any(0))[:, 0].tolist():
            begun = F.pad(sequence[:, :i], (1, 0), value=self.codes)
            chances = self.transformers[order](begun)[:, -1, : self.codes].softmax(-1)
            if chance is None:
                new = chances.argmax(-1)
            else:
                total = chances.cumsum(-1)
                # A sum that rounding leaves below 1 must not lead beyond the last code.
                new = (total < chance[:, i, None]).sum(-1).clamp_max(self.codes - 1)
            sequence[:, i] = torch.where(unlikely[:, i], new, sequence[:, i])
        return sequence
