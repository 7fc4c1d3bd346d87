"""Which healthy images look most like one: histograms of visual words in blocks."""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from normscan.errors import ArgumentError
from normscan.rng import Rng

NEGLIGIBLE = 1e-8


class BlockWords(nn.Module):
    """A codebook of feature vectors, and the histograms of its words in blocks of an image.

    Args:
        dim: of the vectors.
        words: of the codebook.
        blocks: along each axis.
        kept: share of the blocks, the most alike, that a divergence is summed over.
    """

    words: Tensor
    bank: Tensor

    def __init__(self, dim: int, words: int = 12, blocks: int = 5, kept: float = 0.8) -> None:
        super().__init__()
        self.blocks, self.kept = blocks, kept
        self.register_buffer("words", torch.zeros(words, dim))
        self.register_buffer("bank", torch.zeros(0, blocks**2, words))

    def learn(self, maps: Iterable[Tensor], rng: Rng, most: int = 50_000) -> None:
        """Find the words among the vectors of feature maps (B, dim, h, w) by k-means.

        Args:
            maps: batch by batch.
            rng: source of randomness.
            most: vectors that they are found among, drawn at random.

        Raises:
            ArgumentError: there are fewer vectors than words.
        """
        from sklearn.cluster import KMeans

        vectors, keys = self.words.new_zeros(0, self.words.shape[1]), torch.zeros(0)
        for found in maps:
            rows = found.movedim(1, -1).flatten(0, -2)
            draws = rng.uniform((len(found), rows.shape[0] // len(found))).flatten()
            vectors, keys = torch.cat([vectors, rows]), torch.cat([keys, draws])
            chosen = keys.topk(min(most, len(keys)), largest=False).indices.sort().values
            vectors, keys = vectors[chosen.to(vectors.device)], keys[chosen]
        if len(vectors) < len(self.words):
            raise ArgumentError(
                f"{len(self.words)} visual words need as many feature vectors at least; there are "
                f"{len(vectors)}. Add training images."
            )
        points = vectors.double().cpu().numpy()
        found_words = KMeans(len(self.words), n_init=10, random_state=66).fit(points)
        self.words = torch.from_numpy(found_words.cluster_centers_).to(self.words)

    def histograms(self, maps: Tensor) -> Tensor:
        """Shares of the words (B, blocks**2, words) in the blocks of feature maps (B, dim, h, w).

        Blocks are squares; what is beyond the map counts as none of the words, so that the shares of
        a block at the end may sum to less than 1.
        """
        n, _, *grid = maps.shape
        rows = maps.movedim(1, -1).flatten(0, -2)
        nearest = torch.cdist(rows, self.words.to(rows)).argmin(1)
        code = F.one_hot(nearest, len(self.words)).to(maps)
        code = code.unflatten(0, (n, *grid)).movedim(-1, 1)
        side = -(-max(grid) // self.blocks)
        over = [side * self.blocks - size for size in grid]
        padded = F.pad(code, (0, over[1], 0, over[0]))
        return F.avg_pool2d(padded, side).flatten(2).transpose(1, 2)

    def nearest(self, maps: Tensor, count: int) -> Tensor:
        """Numbers (B, count) of the bank's images most like feature maps (B, dim, h, w)."""
        own = self.histograms(maps)[:, None] + NEGLIGIBLE
        others = self.bank.to(own)[None] + NEGLIGIBLE
        divergence = (own * (own / others).log()).sum(3).sort(2).values
        total = divergence[..., : int(self.blocks**2 * self.kept)].sum(2)
        return total.topk(min(count, total.shape[1]), dim=1, largest=False).indices


def local_distance(own: Tensor, references: Tensor, side: int) -> Tensor:
    """The least cosine distance (h, w) of unit features to those around their place in references.

    Args:
        own: (C, h, w).
        references: (n, C, h, w).
        side: of the square around a place, in cells, odd.
    """
    reach = side // 2
    h, w = own.shape[1:]
    best = own.new_full((h, w), float("inf"))
    for row in range(-reach, reach + 1):
        for column in range(-reach, reach + 1):
            rows = slice(max(0, -row), h - max(0, row))
            columns = slice(max(0, -column), w - max(0, column))
            there = references[
                :, :, max(0, row) : h + min(0, row), max(0, column) : w + min(0, column)
            ]
            found = 1 - torch.einsum("chw,nchw->nhw", own[:, rows, columns], there)
            best[rows, columns] = torch.minimum(best[rows, columns], found.amin(0))
    return best
