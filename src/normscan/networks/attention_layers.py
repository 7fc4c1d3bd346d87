"""Transformers that restore tokens: linear attention, and attention blind to the neighbours."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from normscan.errors import ArgumentError


class LinearAttention(nn.Module):
    """Attention without softmax: phi(q) (phi(k)^T v) / (phi(q) sum phi(k)), phi = ELU + 1.

    Katharopoulos et al., ICML 2020. Its cost grows linearly with the tokens, and it can't look
    sharply at one of them.

    Args:
        dim: numbers in a token, a multiple of ``heads``.
        heads: attended apart.
    """

    def __init__(self, dim: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.qkv = nn.Linear(dim, 3 * dim)
        self.proj = nn.Linear(dim, dim)

    def forward(self, x: Tensor) -> Tensor:
        """(B, N, dim) to the same."""
        # (3, B, heads, N, dim / heads)
        q, k, v = self.qkv(x).unflatten(2, (3, self.heads, -1)).permute(2, 0, 3, 1, 4)
        q, k = F.elu(q) + 1, F.elu(k) + 1
        total = q @ k.sum(2).unsqueeze(-1)
        return self.proj((q @ (k.mT @ v) / total).transpose(1, 2).flatten(2))


class LinearBlock(nn.Module):
    """Block of a vision transformer (norm first, GELU) with linear attention.

    Args:
        dim: numbers in a token.
        heads: of the attention.
    """

    def __init__(self, dim: int, heads: int) -> None:
        super().__init__()
        self.norm1, self.norm2 = nn.LayerNorm(dim, eps=1e-8), nn.LayerNorm(dim, eps=1e-8)
        self.attention = LinearAttention(dim, heads)
        self.mlp = nn.Sequential(nn.Linear(dim, 4 * dim), nn.GELU(), nn.Linear(4 * dim, dim))

    def forward(self, x: Tensor) -> Tensor:
        """(B, N, dim) to the same."""
        x = x + self.attention(self.norm1(x))
        return x + self.mlp(self.norm2(x))


class TokenDecoder(nn.Module):
    """Dinomaly's noisy bottleneck and its decoder of blocks with linear attention.

    Args:
        dim: numbers in a token.
        depth: blocks.
        dropout: before, between and behind the two layers of the bottleneck, nowhere else.
    """

    def __init__(self, dim: int, depth: int, dropout: float) -> None:
        super().__init__()
        self.bottleneck = nn.Sequential(
            nn.Dropout(dropout), nn.Linear(dim, 4 * dim), nn.GELU(),
            nn.Dropout(dropout), nn.Linear(4 * dim, dim), nn.Dropout(dropout),
        )  # fmt: skip
        heads = max(1, dim // 64)
        self.blocks = nn.ModuleList(LinearBlock(dim, heads) for _ in range(depth))
        for module in self.modules():
            if isinstance(module, nn.Linear):
                nn.init.trunc_normal_(module.weight, std=0.01, a=-0.03, b=0.03)
                nn.init.zeros_(module.bias)

    def forward(self, x: Tensor) -> list[Tensor]:
        """Tokens (B, N, dim) to the output of each block, the last block's first."""
        x = self.bottleneck(x)
        outputs = []
        for block in self.blocks:
            x = block(x)
            outputs.append(x)
        return outputs[::-1]


def neighbour_mask(height: int, width: int, side: int) -> Tensor:
    """Which tokens of a grid lie in the square window around each other: (h w, h w) bool.

    Args:
        height: rows of the grid.
        width: its columns.
        side: of the window, odd; 0 for none at all.

    Raises:
        ArgumentError: a token has all tokens for neighbours, so that nothing is left to look at.
    """
    rows = torch.arange(height).repeat_interleave(width)
    columns = torch.arange(width).repeat(height)
    apart = torch.stack([(a[:, None] - a).abs() for a in (rows, columns)]).amax(0)
    mask = 2 * apart < side
    if mask.all(1).any():
        raise ArgumentError(
            f"a window of {side} x {side} covers the whole grid of {height} x {width} features for "
            "some of them. Take fewer neighbours, a larger size or earlier stages."
        )
    return mask


@dataclass(frozen=True)
class Tokens:
    """Sizes that all layers of a transformer share.

    Attributes:
        dim: numbers in a token, an even multiple of ``heads``.
        hidden: width of the feed-forward parts.
        heads: of each attention.
        dropout: share of the values dropped in all of it.
    """

    dim: int
    hidden: int
    heads: int
    dropout: float


class _Attend(nn.Module):
    """Attention, added to its query, then normalised; places count for what is compared only."""

    def __init__(self, tokens: Tokens) -> None:
        super().__init__()
        dim, dropout = tokens.dim, tokens.dropout
        self.attention = nn.MultiheadAttention(dim, tokens.heads, dropout, batch_first=True)
        self.dropout, self.norm = nn.Dropout(dropout), nn.LayerNorm(dim)

    def forward(self, query: Tensor, source: Tensor, place: Tensor, mask: Tensor) -> Tensor:
        found, _ = self.attention(
            query + place, source + place, source, attn_mask=mask, need_weights=False
        )
        return self.norm(query + self.dropout(found))


class _Feed(nn.Module):
    def __init__(self, tokens: Tokens) -> None:
        super().__init__()
        dim, hidden, dropout = tokens.dim, tokens.hidden, tokens.dropout
        self.layers = nn.Sequential(
            nn.Linear(dim, hidden), nn.ReLU(), nn.Dropout(dropout),
            nn.Linear(hidden, dim), nn.Dropout(dropout),
        )  # fmt: skip
        self.norm = nn.LayerNorm(dim)

    def forward(self, x: Tensor) -> Tensor:
        return self.norm(x + self.layers(x))


class MaskedTransformer(nn.Module):
    """UniAD's restorer of features: no token sees its neighbours, each layer has its own queries.

    Encoder layers attend to themselves. A decoder layer attends from learnt queries to what the
    encoder made, and from that to what the layer before it made. Norms come last in each part.

    Args:
        channels: of the features.
        grid: their rows and columns.
        layers: of the encoder, and as many of the decoder.
        tokens: sizes of the layers.
        neighbours: side of the window that a token can't attend to; 0 hides nothing.
    """

    def __init__(
        self, channels: int, grid: tuple[int, int], layers: int, tokens: Tokens, neighbours: int
    ) -> None:
        super().__init__()
        dim = tokens.dim
        self.grid = grid
        self.mask: Tensor
        self.register_buffer("mask", neighbour_mask(*grid, neighbours), persistent=False)
        self.inward, self.outward = nn.Linear(channels, dim), nn.Linear(dim, channels)
        self.rows = nn.Parameter(torch.rand(grid[0], dim // 2))
        self.columns = nn.Parameter(torch.rand(grid[1], dim // 2))
        self.queries = nn.Parameter(torch.randn(layers, grid[0] * grid[1], dim))

        def attends() -> nn.ModuleList:
            return nn.ModuleList(_Attend(tokens) for _ in range(layers))

        def feeds() -> nn.ModuleList:
            return nn.ModuleList(_Feed(tokens) for _ in range(layers))

        self.encoder = nn.ModuleList([attends(), feeds()])
        self.decoder = nn.ModuleList([attends(), attends(), feeds()])
        self.norm = nn.LayerNorm(dim)
        for module in self.modules():
            if isinstance(module, nn.Linear):
                nn.init.xavier_uniform_(module.weight)
                nn.init.zeros_(module.bias)

    def forward(self, features: Tensor) -> Tensor:
        """Restore features (B, channels, *grid)."""
        rows, columns = self.grid
        place = torch.cat(
            [self.columns.repeat(rows, 1), self.rows.repeat_interleave(columns, 0)], dim=1
        )
        memory = self.inward(features.flatten(2).mT)
        for attend, feed in zip(*self.encoder, strict=True):
            memory = feed(attend(memory, memory, place, self.mask))
        out = memory
        for query, first, second, feed in zip(self.queries, *self.decoder, strict=True):
            tokens = first(query.expand_as(memory), memory, place, self.mask)
            out = feed(second(tokens, out, place, self.mask))
        restored: Tensor = self.outward(self.norm(out))
        return restored.mT.unflatten(2, self.grid)
