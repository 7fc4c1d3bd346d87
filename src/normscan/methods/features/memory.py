"""Memory banks of healthy patches."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal, Unpack

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from normscan.errors import ArgumentError
from normscan.methods.base import Batch, Maps, Method
from normscan.methods.features.common import (
    LAPTOP,
    LITE0_STAGES,
    SMOOTH,
    TINY_SMOOTH,
    Tapped,
    backbone_of,
    lite0,
    middle,
    tapped,
)
from normscan.networks.aggregation import concatenated, patch_features, vectors
from normscan.networks.backbones import Backbone
from normscan.registry import register
from normscan.rng import Rng
from normscan.scores.coreset import Coreset, k_center_greedy
from normscan.scores.counted import APART
from normscan.scores.inverted_lists import InvertedLists, has_faiss
from normscan.scores.neighbours import Joined, Neighbours, Search
from normscan.scores.reservoir import Reservoir

Pooling = Literal["windows", "average"]

GIB = 2**30
PROJECTION = 128  # numbers of a patch that the choice of the coreset looks at


class Bank(nn.Module):
    """Vectors of healthy patches, and how far others are from the nearest of them.

    Args:
        dim: of the vectors.
        search: see ``Neighbours``; ``faiss`` by inverted lists, which ``auto`` takes where the
            vectors need more than ``memory`` and FAISS is installed.
        memory: GiB; more vectors lie on disk.
    """

    def __init__(self, dim: int, search: Search = "auto", memory: float = float("inf")) -> None:
        super().__init__()
        self.search, self.memory = search, memory
        self.vectors: Tensor
        self.sizes: Tensor
        self.register_buffer("vectors", torch.zeros(0, dim))
        # Vectors of each fold of the training scans, one after the other, where they are told apart.
        self.register_buffer("sizes", torch.zeros(0, dtype=torch.long))
        self.lists = InvertedLists(dim)
        self._index: Neighbours | None = None
        self._folds: dict[int, Neighbours] | None = None
        self.register_load_state_dict_post_hook(Bank._forget)

    def _forget(self, *_: object) -> None:
        self._index = self._folds = None

    def stays_mapped(self, name: str, value: Tensor) -> bool:
        """Vectors that are more than the memory allowed, so that they lie on disk."""
        return name == "vectors" and value.nbytes > self.memory * GIB

    def reservoir(self, largest: int) -> Reservoir:
        """For vectors that come in parts; ``keep`` takes what it holds in the end."""
        return Reservoir(min(largest, self.largest), self.memory * GIB)

    @property
    def largest(self) -> int:
        """Vectors whose codes of 4 bits a number still fit into the memory."""
        dim = self.vectors.shape[1]
        return int(min(self.memory * GIB / (dim / 2 + 8), 2**40))

    def keep(self, vectors: Tensor) -> None:
        """Take these vectors (n, dim), and part them into lists where FAISS will search them."""
        self.vectors, self.lists = vectors, InvertedLists(vectors.shape[1])
        self.sizes = self.sizes.new_zeros(0)
        large = self.stays_mapped("vectors", vectors)
        if self.search == "faiss" or (self.search == "auto" and large and has_faiss()):
            fit = len(vectors) * (vectors.shape[1] + 8) <= self.memory * GIB
            self.lists.build(vectors.cpu(), 8 if fit else 4)

    @property
    def index(self) -> Neighbours:
        """What finds the nearest of the vectors."""
        if self._index is None or self._index.bank is not self.vectors:
            # An accelerator that holds the vectors compares them all in less time.
            listed = len(self.lists.rows) > 0 and self.vectors.device.type == "cpu"
            # A detector made with FAISS also works where it is missing, unless it was asked for.
            listed = listed and (self.search == "faiss" or has_faiss())
            # A coarse copy would bring half of what lies on disk into memory.
            coarse = self.search != "auto" or not self.stays_mapped("vectors", self.vectors)
            self._index = Neighbours(
                self.vectors, self.search if coarse else "float32", self.lists if listed else None
            )
        return self._index

    def extend(self, vectors: Tensor, largest: int) -> None:
        """Take these vectors (n, dim) beside those that it holds, at most ``largest`` in all.

        Where folds are told apart, the new vectors belong to none of them.

        Raises:
            ArgumentError: there is no room for them.
        """
        total, sizes = len(self.vectors) + len(vectors), self.sizes
        joined = torch.cat([self.vectors, vectors.to(self.vectors)])
        if total > largest or self.stays_mapped("vectors", joined):
            raise ArgumentError(
                f"the bank has no room for {len(vectors):,} patches beside its "
                f"{len(self.vectors):,}: it may keep {largest:,} (largest) in {self.memory:g} GiB "
                "(memory). Fit anew with more, or add fewer scans."
            )
        self.keep(joined)
        self.sizes = sizes
        self._folds = None

    def merge(self, others: Sequence[Tensor], largest: int, rng: Rng, chosen: bool) -> None:
        """Take the vectors of other banks (n, dim) beside its own, at most ``largest`` in all.

        Where these are fewer, a greedy k-center chooses among all. What a bank covers within a radius
        is then within that radius and the one of the choice; without a choice within the first alone.

        Args:
            others: of each its vectors.
            largest: vectors in all.
            rng: source of randomness.
            chosen: whether the banks are coresets; else ``largest`` are drawn at random.

        Raises:
            ArgumentError: a bank tells folds apart.
        """
        if len(self.sizes):
            raise ArgumentError(APART)
        joined = torch.cat([self.vectors, *(o.to(self.vectors) for o in others)])
        if len(joined) > largest:
            drawn = rng.uniform((len(joined),)).argsort()[:largest]
            rows = k_center_greedy(joined, largest, rng, PROJECTION) if chosen else drawn
            joined = joined[rows.sort().values.to(joined.device)]
        self.keep(joined)

    def keep_folds(self, folds: Sequence[Tensor]) -> None:
        """Take the vectors of each fold of the training scans, so that one can be left out."""
        self.keep(torch.cat(list(folds)))
        self.sizes = torch.tensor([len(fold) for fold in folds], device=self.vectors.device)
        self._folds = None

    @property
    def folds(self) -> dict[int, Neighbours]:
        """What finds the nearest vectors of each fold, by the number of its first vector.

        What came later and belongs to no fold is the last one; see ``turns``.
        """
        if self._folds is None:
            sizes = self.sizes.tolist()
            if later := len(self.vectors) - sum(sizes):
                sizes.append(later)
            search: Search = "auto" if self.search == "faiss" else self.search
            starts = [sum(sizes[:k]) for k in range(len(sizes))]
            parts = self.vectors.split(sizes)
            self._folds = {s: Neighbours(p, search) for s, p in zip(starts, parts, strict=True)}
        return self._folds

    @property
    def turns(self) -> list[int]:
        """Those of ``folds`` that are left out in turn."""
        return list(self.folds)[: len(self.sizes)]

    def nearest(self, queries: Tensor, k: int = 1) -> Tensor:
        """Squared distances (n, k) of (n, dim) to the k nearest vectors, in order."""
        return self.index(queries, k)

    def need(self, total: int, largest: int) -> str:
        """Where so many patches will lie, and what the search holds."""
        dim = self.vectors.shape[1]
        kept = min(total, largest, self.largest)
        gib = kept * dim * 4 / GIB
        if gib <= self.memory:
            return f"the bank keeps {kept:,} of {total:,} training patches in {gib:.2g} GiB"
        bits = 8 if kept * (dim + 8) <= self.memory * GIB else 4
        text = (
            f"the bank keeps {kept:,} of {total:,} training patches; their {gib:.2g} GiB are more "
            f"than the {self.memory:g} GiB allowed (memory) and lie on disk (TMPDIR, then the "
            "detector's folder)"
        )
        if self.search == "faiss" or (self.search == "auto" and has_faiss()):
            return (
                f"{text}; FAISS finds them by {kept * (dim * bits / 8 + 8) / GIB:.2g} GiB of codes"
            )
        return f"{text}; each prediction reads all of them (pip install normscan[faiss] mends that)"


def vectors_of(others: Sequence[Mapping[str, Tensor]]) -> list[Tensor]:
    """Return the vectors of the banks of fitted methods, by the names of their buffers.

    Raises:
        ArgumentError: a bank tells folds apart.
    """
    if any(len(other["bank.sizes"]) for other in others):
        raise ArgumentError(APART)
    return [other["bank.vectors"] for other in others]


def check_room(method: str, memory: float, largest: int) -> None:
    """Refuse a bank that can hold nothing."""
    if not memory > 0 or largest < 1:
        raise ArgumentError(
            f"{method} can't keep its bank with memory={memory} and largest={largest}: memory is in "
            "GiB, above 0, and largest is 1 or more."
        )


@dataclass(frozen=True)
class Patch:
    """How a patch becomes a vector.

    Attributes:
        neighbourhood: side of a patch in cells of the stage.
        dim: numbers in the vector, where windows are pooled.
        pooling: ``windows`` pools windows over cells and channels, ``average`` averages each channel.
    """

    neighbourhood: int = 3
    dim: int = 1024
    pooling: Pooling = "windows"

    def numbers(self, channels: Sequence[int]) -> int:
        """Numbers in a vector, for so many channels of the taps."""
        return self.dim if self.pooling == "windows" else sum(channels)

    def __call__(self, features: Sequence[Tensor]) -> Tensor:
        """Vectors (B, h * w, numbers) of stages (B, C, h, w), on the grid of the first."""
        if self.pooling == "average":
            return vectors(concatenated(features, pooled=self.neighbourhood))
        return patch_features(features, self.neighbourhood, self.dim, self.dim)


@dataclass(frozen=True)
class Kept:
    """What of the training patches a bank keeps; see ``patchcore``."""

    coreset: float = 0.1
    memory: float = 4.0
    largest: int = 50_000


@dataclass(frozen=True)
class Scoring:
    """How distances to a bank become scores; see ``patchcore``."""

    neighbours: int = 1
    reweighted: int = 9
    squared: bool = False


class PatchCore(Method):
    """Nearest neighbour in a bank of healthy patch features."""

    fitted = ("bank.vectors", "bank.sizes")

    def __init__(
        self,
        backbone: Backbone,
        size: int,
        patch: Patch,
        kept: Kept,
        scoring: Scoring,
        search: Search = "auto",
    ) -> None:
        super().__init__()
        self.backbone, self.size = backbone, size
        self.patch, self.scoring = patch, scoring
        self.coreset, self.memory = kept.coreset, kept.memory
        self.dim = dim = patch.numbers(backbone.channels)
        # A vector is held with its projection, which is joined with others from time to time.
        self.capacity = int(kept.memory * GIB / (4 * (dim + 2 * min(dim, PROJECTION))))
        self.bank = Bank(dim, search, kept.memory)
        self.whole = kept.coreset >= 1
        self.largest = kept.largest if self.whole else max(1, min(kept.largest, self.capacity // 2))

    def patches(self, x: Tensor) -> tuple[Tensor, tuple[int, int]]:
        """Patch features (B, h * w, dim) and the grid (h, w)."""
        features = list(self.backbone(x).values())
        return self.patch(features), (features[0].shape[-2], features[0].shape[-1])

    def need(self, samples: int) -> str:
        """Memory of the bank and of the choice of its vectors."""
        total = samples * (-(-self.size // self.backbone.strides[0])) ** 2
        if self.whole:
            return self.bank.need(total, self.largest)
        bank = min(max(1, round(self.coreset * total)), self.largest)
        gib = self.memory / max(1, self.capacity)
        text = f"{total:,} training patches of {self.dim} numbers need {total * gib:.2g} GiB"
        if total > self.capacity:
            held = 2 * self.largest
            text += (
                f", more than the {self.memory:g} GiB allowed (memory): after {self.capacity:,} "
                f"of them a stream keeps {held:,} in {held * gib:.2g} GiB"
            )
        return f"{text}; the bank keeps {bank:,} in {bank * self.dim * 4 / GIB:.2g} GiB"

    def fit(self, batches: Iterable[Batch]) -> None:
        self.bank.keep(self._vectors(batches, self.largest))

    def merge(self, others: Sequence[Mapping[str, Tensor]], rng: Rng) -> None:
        # A coreset of each site's images: together they hold the same share of all patches.
        self.bank.merge(vectors_of(others), self.largest, rng, chosen=not self.whole)

    def update(self, batches: Iterable[Batch]) -> None:
        # A coreset of the new images, as of a fold: what was kept before doesn't depend on it.
        self.bank.extend(self._vectors(batches, self.largest), self.largest)

    @property
    def leaves_out(self) -> bool:
        return not self.whole

    def fit_folds(self, folds: Sequence[Iterable[Batch]]) -> None:
        # A coreset of each fold: what is kept of one doesn't depend on the others.
        largest = max(1, self.largest // len(folds))
        self.bank.keep_folds([self._vectors(fold, largest) for fold in folds])

    @torch.no_grad()
    def _vectors(self, batches: Iterable[Batch], largest: int) -> Tensor:
        """What the bank keeps of some images, at most ``largest`` vectors."""
        every = self.bank.reservoir(largest)
        chosen: Coreset | None = None
        for batch in batches:
            found = self.patches(batch.image)[0].flatten(0, 1).float()
            if self.whole:
                every.add(found, batch.rng)
            else:
                chosen = chosen or Coreset(largest, self.capacity, batch.rng, PROJECTION)
                chosen.add(found)
        if chosen is not None:
            return chosen.finish(max(1, round(self.coreset * chosen.seen)))
        if every.seen:
            return every.finish()
        raise ArgumentError("patchcore needs at least one training image.")

    @torch.no_grad()
    def maps(self, batch: Batch) -> Maps:
        patches, grid = self.patches(batch.image)
        distances = self.bank.nearest(patches.flatten(0, 1), self.scoring.neighbours)
        return self._scored(batch, patches, grid, distances, self.bank.index)

    @torch.no_grad()
    def each(self, batch: Batch) -> list[Maps]:
        if not len(self.bank.sizes):
            return [self.maps(batch)]
        patches, grid = self.patches(batch.image)
        k, folds = self.scoring.neighbours, self.bank.folds
        found = {first: index(patches.flatten(0, 1), k) for first, index in folds.items()}
        members = []
        for left_out in self.bank.turns:
            others = torch.cat([d for first, d in found.items() if first != left_out], 1)
            distances = others.topk(min(k, others.shape[1]), largest=False).values
            index = Joined({f: i for f, i in folds.items() if f != left_out}, self.bank.vectors)
            members.append(self._scored(batch, patches, grid, distances, index))
        return members

    def _scored(
        self,
        batch: Batch,
        patches: Tensor,
        grid: tuple[int, int],
        distances: Tensor,
        index: Neighbours | Joined,
    ) -> Maps:
        """Maps by the squared distances (B * h * w, k) of patches (B, h * w, dim)."""
        if not self.scoring.squared:
            distances = distances.clamp_min(0).sqrt()
        scores = distances.mean(1).reshape(len(batch), 1, *grid)
        worst, place = scores.flatten(1).max(1)
        if self.scoring.reweighted:
            farthest = patches[torch.arange(len(batch)), place].float()
            worst = worst * novelty(farthest, index, self.scoring.reweighted)
        shape = batch.image.shape[2:]
        enlarged = F.interpolate(scores, shape, mode="bilinear", align_corners=False)
        return Maps(map=enlarged, score=worst)


def novelty(patches: Tensor, index: Neighbours | Joined, k: int) -> Tensor:
    """How little a patch is explained by the surroundings of its nearest neighbour (Roth, eq. 7).

    Args:
        patches: (B, dim).
        index: of the bank's vectors (n, dim).
        k: rows around the nearest one, itself among them.

    Returns:
        (B,) 1 - softmax of the distances to these rows, at the nearest: small where the nearest is
        as far as the others, which are then near it.
    """
    nearest = index.rows(patches)
    around = index.rows(index.bank[nearest[:, 0]], k)
    rows = index.bank[around].to(patches)
    shares = (patches[:, None] - rows).norm(dim=2).softmax(1)
    return 1 - (shares * (around == nearest).to(shares)).sum(1)


_LAPTOP = {**LAPTOP, "pooling": "average", "largest": 10_000}


@register(
    "patchcore",
    paper="Roth 2022",
    dims=(2,),
    presets={
        "code": {"reweighted": 0, "squared": True},
        "laptop": _LAPTOP,
        "lite0": lite0(_LAPTOP, LITE0_STAGES[2:]),
    },
    postprocess=SMOOTH,
    reduction="max",
    # The backbone knows 0..1. A median at 0.5 stretches dark scans to its limit of 3, and distances
    # grow with contrast: the score would follow how dark a scan is.
    preprocess=middle(224, 256),
    tiny={**TINY_SMOOTH, "dim": 32, "coreset": 0.25},
    options=tapped(size=224, taps=("layer2", "layer3")),
)
def patchcore(
    dims: int = 2,
    channels: int = 1,
    neighbourhood: int = 3,
    dim: int = 1024,
    coreset: float = 0.1,
    memory: float = 4.0,
    largest: int = 50_000,
    neighbours: int = 1,
    reweighted: int = 9,
    squared: bool = False,
    pooling: Pooling = "windows",
    search: Search = "auto",
    **options: Unpack[Tapped],
) -> Method:
    """Nearest neighbour in a coreset of healthy patch features (PatchCore).

    Roth et al., CVPR 2022: features of a frozen WideResNet-50-2 in 3 x 3 windows, pooled to 1024
    numbers a patch; a tenth of them is kept by greedy k-center; the distance to the nearest is the
    patch's score, the image's that of its worst patch, weighted by how near the neighbours of its
    nearest one are. The map is smoothed by a Gaussian of 4 pixels. Pictures are resized to 256 and
    cropped to 224 pixels, over the range of the file. The released code has no weight and squares the
    distances, as ``code`` does.

    Departures:
        bank: 50,000 vectors at most (``largest``), chosen from a stream where the training patches
            don't fit into the memory; the release holds all of them.

    Args:
        channels: of the image; grey is repeated.
        neighbourhood: side of a patch in cells of the stage.
        dim: numbers in a patch's vector, where windows are pooled.
        coreset: share of all training patches that the bank keeps; 1 keeps all, or ``largest`` of
            them at random.
        memory: GiB for the training patches among which the coreset is chosen. Where they need
            more, it is chosen from a stream, and what is held is bounded. With ``coreset=1`` they
            lie on disk then.
        largest: vectors in the bank at most; the time of a prediction grows with them.
        neighbours: patches of the bank whose distances are averaged.
        reweighted: patches of the bank, around the nearest one, that weight the image score; 0 for
            none.
        squared: take squared distances.
        pooling: ``windows`` pools windows over cells and channels to ``dim`` numbers, as the
            released code does; ``average`` averages each channel over the window, so that a vector
            has as many numbers as the taps have channels.
        search: ``float32``; ``bfloat16`` for rounded products that propose neighbours, whose
            distances are then computed in float32; ``faiss`` for inverted lists that propose them;
            or ``auto``, FAISS where the bank lies on disk, else bfloat16 where the machine is
            faster by it.
    """
    check_room("patchcore", memory, largest)
    return PatchCore(
        backbone_of(options, channels),
        options["size"],
        Patch(neighbourhood, dim, pooling),
        Kept(coreset, memory, largest),
        Scoring(neighbours, reweighted, squared),
        search,
    )
