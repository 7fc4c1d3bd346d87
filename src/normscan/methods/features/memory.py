"""Memory banks of healthy patches."""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor
from torch.nn import functional as F

from normscan.errors import ArgumentError
from normscan.methods.base import Batch, Maps, Method
from normscan.networks.aggregation import patch_features
from normscan.networks.backbones import Backbone
from normscan.registry import register
from normscan.rng import Rng


def squared_distances(a: Tensor, b: Tensor, b_norms: Tensor | None = None) -> Tensor:
    """Squared Euclidean distances (n, m) of the rows of a (n, d) and b (m, d)."""
    norms = b.square().sum(1) if b_norms is None else b_norms
    return (a.square().sum(1, keepdim=True) + norms - 2 * a @ b.T).clamp_min(0)


def k_center_greedy(
    vectors: Tensor, n: int, rng: Rng, projection: int = 128, starts: int = 10
) -> Tensor:
    """Choose n rows that cover the others (approximate greedy k-center of PatchCore's code).

    Distances are taken after a random linear projection; the first score of a row is its mean
    distance to a few random rows; then the row farthest from all chosen ones is taken, again and
    again. Holds one number per row.

    Args:
        vectors: (N, d).
        n: rows to choose.
        rng: source of randomness.
        projection: dimensions of the projection; not applied to shorter vectors.
        starts: number of random rows.

    Returns:
        (n,) indices.
    """
    total, d = vectors.shape
    if n >= total:
        return torch.arange(total)
    if d > projection:
        bound = d**-0.5
        matrix = (2 * rng.uniform((d, projection)) - 1) * bound
        vectors = vectors @ matrix.to(vectors)
    norms = vectors.square().sum(1)
    first = rng.uniform((total,)).argsort()[:starts]
    nearest = squared_distances(vectors, vectors[first]).sqrt().mean(1)
    chosen = torch.empty(n, dtype=torch.long)
    for i in range(n):
        row = int(nearest.argmax())
        chosen[i] = row
        distance = (norms + norms[row] - 2 * (vectors @ vectors[row])).clamp_min(0).sqrt()
        torch.minimum(nearest, distance, out=nearest)
        nearest[row] = -1
    return chosen


class PatchCore(Method):
    """Nearest neighbour in a bank of healthy patch features."""

    def __init__(
        self, backbone: Backbone, neighbourhood: int, dim: int, coreset: float, candidates: int,
        neighbours: int, chunk: int = 4096,
    ) -> None:  # fmt: skip
        super().__init__()
        self.backbone = backbone
        self.neighbourhood, self.dim = neighbourhood, dim
        self.coreset, self.candidates, self.neighbours = coreset, candidates, neighbours
        self.chunk = chunk
        self.register_buffer("bank", torch.zeros(0, dim))

    def patches(self, x: Tensor) -> tuple[Tensor, tuple[int, int]]:
        """Patch features (B, h * w, dim) and the grid (h, w)."""
        features = list(self.backbone(x).values())
        grid = (features[0].shape[-2], features[0].shape[-1])
        return patch_features(features, self.neighbourhood, self.dim, self.dim), grid

    @torch.no_grad()
    def fit(self, batches: Iterable[Batch]) -> None:
        kept: list[Tensor] = []
        # The candidates are the patches with the smallest of random keys, so that each training
        # patch has the same chance, whenever it comes.
        keys: list[Tensor] = []
        total = 0
        rng = None
        for batch in batches:
            rng = rng or batch.rng
            vectors = self.patches(batch.image)[0].flatten(0, 1)
            kept.append(vectors)
            keys.append(rng.uniform((len(vectors),)))
            total += len(vectors)
            if sum(map(len, kept)) > 2 * self.candidates:
                kept, keys = self._thin(kept, keys)
        if rng is None:
            raise ArgumentError("patchcore needs at least one training image.")
        vectors = self._thin(kept, keys)[0][0]
        n = max(1, round(self.coreset * total))
        chosen = k_center_greedy(vectors, min(n, len(vectors)), rng)
        self.bank = vectors[chosen.to(vectors.device)].clone()

    def _thin(self, kept: list[Tensor], keys: list[Tensor]) -> tuple[list[Tensor], list[Tensor]]:
        vectors, key = torch.cat(kept), torch.cat(keys)
        if len(vectors) > self.candidates:
            lowest = key.argsort()[: self.candidates]
            vectors, key = vectors[lowest.to(vectors.device)], key[lowest]
        return [vectors], [key]

    @torch.no_grad()
    def maps(self, batch: Batch) -> Maps:
        vectors, grid = self.patches(batch.image)
        bank = self.bank
        assert isinstance(bank, Tensor)
        norms = bank.square().sum(1)
        k = min(self.neighbours, len(bank))
        scores = torch.cat(
            [
                squared_distances(part, bank, norms).topk(k, largest=False).values.mean(1)
                for part in vectors.flatten(0, 1).split(self.chunk)
            ]
        ).reshape(len(batch), 1, *grid)
        shape = batch.image.shape[2:]
        enlarged = F.interpolate(scores, shape, mode="bilinear", align_corners=False)
        return Maps(map=enlarged, score=scores.flatten(1).amax(1))


@register(
    "patchcore",
    paper="Roth 2022",
    dims=(2,),
    presets={
        "laptop": {
            "backbone": "resnet18.tv_in1k", "size": 128, "dim": 384, "candidates": 30_000,
            "coreset": 0.1,
        },
    },
    postprocess=("smooth=4",),
    reduction="max",
    # The backbone knows 0..1. A median at 0.5 stretches dark scans to its limit of 3, and distances
    # grow with contrast: the score would follow how dark a scan is.
    preprocess={"scaling": "percentile"},
    tiny={
        "backbone": "resnet18.tv_in1k", "weights": "random", "size": 64, "dim": 32,
        "coreset": 0.25, "taps": ("layer1", "layer2"), "postprocess": ("smooth=1",),
    },
)  # fmt: skip
def patchcore(
    dims: int = 2,
    channels: int = 1,
    size: int = 224,
    backbone: str = "wide_resnet50_2.tv_in1k",
    taps: tuple[str, ...] = ("layer2", "layer3"),
    weights: str = "hub",
    neighbourhood: int = 3,
    dim: int = 1024,
    coreset: float = 0.1,
    candidates: int = 200_000,
    neighbours: int = 1,
) -> Method:
    """Nearest neighbour in a coreset of healthy patch features (PatchCore).

    Features of a frozen network in 3 x 3 windows, pooled to one vector a patch; a tenth of them is
    kept by greedy k-center; the squared distance to the nearest is the patch's score, the largest
    one the image's. Roth et al., CVPR 2022, without the article's re-weighting of the image score,
    which its released code leaves out too. The article resizes to 256 and crops to 224 pixels;
    here the foreground fills 224. The article takes values over the file's range; here each scan's
    99th percentile becomes 1, which works for every format. Where the grey values of pictures can
    be compared, ``full_range`` with ``"scaling": "none"`` keeps what brightness says.

    Args:
        dims: spatial axes, 2.
        channels: of the image, 1 or 3; grey is repeated.
        size: pixels along each axis.
        backbone: timm name with the tag of its weights.
        taps: stages whose features are used, the finest first.
        weights: ``hub``, ``random``, or the path of a state dict.
        neighbourhood: side of a patch in cells of the stage.
        dim: numbers in a patch's vector.
        coreset: share of all training patches that the bank keeps.
        candidates: the coreset is chosen among so many random patches at most, which bounds memory
            and time on large cohorts.
        neighbours: patches of the bank whose distances are averaged.
    """
    return PatchCore(
        Backbone(backbone, taps, weights), neighbourhood, dim, coreset, candidates, neighbours
    )
