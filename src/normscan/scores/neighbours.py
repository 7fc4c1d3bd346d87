"""Distances to the nearest rows of a bank, in one fused product."""

from __future__ import annotations

from collections.abc import Mapping
from functools import cache, cached_property
from typing import Literal

import torch
from torch import Tensor

from normscan.errors import ArgumentError
from normscan.scores.inverted_lists import InvertedLists

Search = Literal["auto", "float32", "bfloat16", "faiss"]

ROWS = 512  # queries at a time
BLOCK = 2**22  # products at a time: 16 MB stay near the processor's cache
SMALL = 4096  # rows of a bank below which coarse products gain nothing
CANDIDATES = 8  # neighbours that coarse products propose
GROUP = 16  # rows whose nearest is compared first
FAR = 1e30  # squared distance of the rows that fill up the last group


def squared_distances(a: Tensor, b: Tensor, b_norms: Tensor | None = None) -> Tensor:
    """Squared Euclidean distances (n, m) of the rows of a (n, d) and b (m, d)."""
    norms = b.square().sum(1) if b_norms is None else b_norms
    products = torch.addmm(norms, a, b.T, alpha=-2)
    return products.add_(a.square().sum(1, keepdim=True)).clamp_min(0)


@cache
def bfloat16_gains(device: str) -> bool:
    """Whether the processor (``cpu``) or accelerator multiplies bfloat16 faster than float32."""
    if device == "cuda":
        return torch.cuda.is_bf16_supported(including_emulation=False)
    if device != "cpu":
        return False
    able = torch.cpu.get_capabilities()
    return any(able.get(name) for name in ("avx512_bf16", "amx_bf16", "bf16"))


class Neighbours:
    """The nearest rows of a bank; what depends on the bank alone is computed once.

    Distances are |q|² + |b|² - 2 q·b with the norms of the bank stored, block by block, and nothing
    of the size of all distances is held. Where the machine multiplies bfloat16 faster, one coarse
    product of centred rows, their norms among the factors, proposes ``CANDIDATES`` neighbours, and
    their distances are then computed in float32 from the rows themselves: what is returned is exact
    for them. Another row is missed only where rounding (1 part in 250 of the coordinates) puts so
    many others before it, which then are about as near. Inverted lists, where there are some,
    propose in the place of the product.

    Args:
        bank: (m, d).
        search: ``float32``, ``bfloat16`` with the second look in float32, or ``auto``: the second
            where the device gains by it and the bank has at least ``SMALL`` rows.
        lists: of the same bank, whose proposals are taken whatever ``search`` says.
    """

    def __init__(
        self, bank: Tensor, search: Search = "auto", lists: InvertedLists | None = None
    ) -> None:
        if lists is not None and len(lists.rows) != len(bank):
            raise ArgumentError("the inverted lists are not those of this memory bank. Fit again.")
        self.bank, self.lists = bank, lists
        gains = len(bank) >= SMALL and bfloat16_gains(bank.device.type)
        self.coarse: Tensor | None = None
        if lists is None and (search == "bfloat16" or (search == "auto" and gains)):
            self.mean = bank.mean(0)
            rows, dim = bank.shape
            self.coarse = bank.new_zeros(rows + -rows % GROUP, dim + 4, dtype=torch.bfloat16)
            self.coarse[rows:, dim] = FAR
            for part, factors in zip(bank.split(ROWS), self.coarse.split(ROWS), strict=True):
                centred = part - self.mean
                ones = torch.ones_like(centred[:, :2])
                factors[: len(part)] = torch.cat([centred, _parts(centred), ones], 1)

    @cached_property
    def norms(self) -> Tensor:
        """Squared norms (m,) of the rows."""
        return torch.cat([part.square().sum(1) for part in self.bank.split(2**14)])

    def __call__(self, queries: Tensor, k: int = 1) -> Tensor:
        """Squared distances (n, k) of queries (n, d) to the k nearest rows, in order."""
        k = min(k, len(self.bank))
        look = self._exact if self.coarse is None else self._proposed
        look = look if self.lists is None else self._listed
        with torch.autocast(queries.device.type, enabled=False):
            found = [look(part, k) for part in queries.to(self.bank).split(ROWS)]
        return torch.cat(found).to(queries.device)

    def rows(self, queries: Tensor, k: int = 1) -> Tensor:
        """The k nearest rows (n, k) of few queries (n, d), in order."""
        k, queries = min(k, len(self.bank)), queries.to(self.bank)
        if self.lists is None:
            distances = squared_distances(queries, self.bank, self.norms)
            return distances.topk(k, largest=False).indices
        rows = self.lists.propose(queries, max(CANDIDATES, 4 * k))
        return rows.gather(1, self._second(queries, rows).topk(k, largest=False).indices)

    def _exact(self, queries: Tensor, k: int) -> Tensor:
        step = max(k, BLOCK // len(queries))
        best = []
        for rows, norms in zip(self.bank.split(step), self.norms.split(step), strict=True):
            distances = torch.addmm(norms, queries, rows.T, alpha=-2)
            few = min(k, len(rows))
            best.append(
                distances.amin(1, keepdim=True)
                if k == 1
                else distances.topk(few, largest=False, sorted=False).values
            )
        nearest = torch.cat(best, 1).topk(k, largest=False).values
        return (nearest + queries.square().sum(1, keepdim=True)).clamp_min(0)

    def _proposed(self, queries: Tensor, k: int) -> Tensor:
        assert self.coarse is not None
        few = min(max(CANDIDATES, 4 * k), len(self.bank))
        step = max(few, BLOCK // len(queries) // GROUP) * GROUP
        centred = queries - self.mean
        ones = torch.ones_like(centred[:, :2])
        factors = torch.cat([-2 * centred, ones, _parts(centred)], 1).bfloat16()
        values, rows = [], []
        for start, part in zip(
            range(0, len(self.coarse), step), self.coarse.split(step), strict=True
        ):
            groups = (factors @ part.T).unflatten(1, (GROUP, -1))
            # The few nearest rows are in the few groups that hold the nearest of all groups.
            n = groups.shape[2]
            place = groups.amin(1).topk(min(few, n), largest=False, sorted=False).indices
            members = groups.gather(2, place[:, None].expand(-1, GROUP, -1)).flatten(1)
            numbers = torch.arange(GROUP, device=place.device)[:, None] * n + place[:, None]
            near, chosen = members.topk(few, largest=False, sorted=False)
            values.append(near)
            rows.append(start + numbers.flatten(1).gather(1, chosen))
        best = torch.cat(values, 1).topk(few, largest=False, sorted=False).indices
        found = torch.cat(rows, 1).gather(1, best).clamp_max_(len(self.bank) - 1)
        return self._second(queries, found).topk(k, largest=False).values

    def _listed(self, queries: Tensor, k: int) -> Tensor:
        assert self.lists is not None
        rows = self.lists.propose(queries, max(CANDIDATES, 4 * k))
        nearest = self._second(queries, rows).topk(k, largest=False).values
        short = ~nearest[:, -1].isfinite()  # the lists looked into hold too few
        if short.any():
            nearest = nearest.index_put((short,), self._exact(queries[short], k))
        return nearest

    def _second(self, queries: Tensor, rows: Tensor) -> Tensor:
        """Squared distances (n, few) of queries to rows (n, few); infinite to the row -1."""
        distances = [
            (self.bank[r] - q[:, None]).square().sum(2).masked_fill(r < 0, torch.inf)
            for r, q in zip(rows.split(128), queries.split(128), strict=True)
        ]
        return torch.cat(distances)


class Joined:
    """The nearest rows of some parts of a bank, with their numbers in all of it.

    Args:
        parts: of the bank, by the number of each one's first row.
        bank: (m, d), all of it.
    """

    def __init__(self, parts: Mapping[int, Neighbours], bank: Tensor) -> None:
        self.parts, self.bank = parts, bank

    def rows(self, queries: Tensor, k: int = 1) -> Tensor:
        """The k nearest rows (n, k) of few queries (n, d), in order."""
        found = [part.rows(queries, k) + first for first, part in self.parts.items()]
        rows = torch.cat(found, 1)
        distances = (self.bank[rows] - queries.to(self.bank)[:, None]).square().sum(2)
        k = min(k, rows.shape[1])
        return rows.gather(1, distances.topk(k, largest=False).indices)


def _parts(vectors: Tensor) -> Tensor:
    """Squared norms as two numbers, whose sum survives the rounding to bfloat16."""
    norms = vectors.square().sum(1, keepdim=True)
    rough = norms.bfloat16().to(norms)
    return torch.cat([rough, norms - rough], 1)
