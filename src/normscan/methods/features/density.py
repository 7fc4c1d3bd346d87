"""Densities of the features of healthy images."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Unpack

import torch
from torch import Tensor

from normscan.errors import ArgumentError
from normscan.methods.base import Batch, Maps, Method
from normscan.methods.features.common import (
    LAPTOP,
    LITE0_STAGES,
    RESNET18,
    SMOOTH,
    TINY_SMOOTH,
    WIDE_RESNET50,
    Tapped,
    backbone_of,
    lite0,
    middle,
    tapped,
)
from normscan.methods.wrapped import averaged
from normscan.networks.aggregation import concatenated, vectors
from normscan.networks.backbones import Backbone
from normscan.registry import register
from normscan.rng import Rng
from normscan.scores.gaussian import PositionGaussians


class PaDiM(Method):
    """A Gaussian of some feature channels at each position; see ``padim``."""

    fitted = ("gaussians.",)

    def __init__(self, backbone: Backbone, dim: int, ridge: float) -> None:
        super().__init__()
        total = sum(backbone.channels)
        if not 1 <= dim <= total:
            raise ArgumentError(f"dim={dim}: the taps have {total} channels. Use 1 to {total}.")
        self.backbone = backbone
        self.gaussians = PositionGaussians(dim, ridge)
        self.chosen: Tensor
        self.register_buffer("chosen", torch.randperm(total)[:dim].sort().values)

    @torch.no_grad()
    def features(self, x: Tensor) -> Tensor:
        """The chosen channels on the grid of the first stage, (B, dim, h, w)."""
        joined = concatenated(list(self.backbone(x).values()), mode="nearest")
        return joined.index_select(1, self.chosen)

    def fit(self, batches: Iterable[Batch]) -> None:
        self.gaussians.fit(vectors(self.features(batch.image)) for batch in batches)

    def update(self, batches: Iterable[Batch]) -> None:
        self.gaussians.update(vectors(self.features(batch.image)) for batch in batches)

    def merge(self, others: Sequence[Mapping[str, Tensor]], rng: Rng) -> None:
        start = len("gaussians.")
        self.gaussians.merge([{k[start:]: v for k, v in other.items()} for other in others])

    @property
    def leaves_out(self) -> bool:
        return True

    def fit_folds(self, folds: Sequence[Iterable[Batch]]) -> None:
        self.gaussians.fit_folds(
            [(vectors(self.features(batch.image)) for batch in fold) for fold in folds]
        )

    @torch.no_grad()
    def each(self, batch: Batch) -> list[Maps]:
        features = self.features(batch.image)
        x, shape = vectors(features), (len(batch), 1, *features.shape[2:])
        several = self.gaussians.mean.ndim == 3
        distances = self.gaussians.each(x) if several else [self.gaussians(x)]
        return [Maps(map=one.reshape(shape)) for one in distances]

    def maps(self, batch: Batch) -> Maps:
        return averaged(self.each(batch))[0]


@register(
    "padim",
    paper="Defard 2021",
    dims=(2,),
    presets={
        "wide": {"backbone": WIDE_RESNET50, "dim": 550},
        "laptop": LAPTOP,
        "lite0": lite0(LAPTOP, LITE0_STAGES[1:]),
    },
    postprocess=SMOOTH,
    reduction="max",
    preprocess=middle(224, 256),
    tiny={**TINY_SMOOTH, "dim": 30},
    options=tapped(size=224, backbone=RESNET18),
)
def padim(
    dims: int = 2,
    channels: int = 1,
    dim: int = 100,
    ridge: float = 0.01,
    **options: Unpack[Tapped],
) -> Method:
    """Mahalanobis distance to a Gaussian at each position of a feature map (PaDiM).

    Defard et al., ICPR workshops 2021: the stages of a frozen network, enlarged to the first one's
    grid, and a fixed random choice of their channels, 100 of ResNet-18's 448 or 550 of
    WideResNet-50-2's 1792 (``wide``); mean and covariance of the healthy at each position. The map is
    the distance, smoothed, the image score its largest value. Pictures are resized to 256 and cropped
    to 224 pixels. Like positions are compared, so the scans should be aligned; those of varying pose
    suit ``patchcore`` better.

    Memory: size**2 / 16 matrices of dim**2 numbers, in training, in use and in the saved detector.
    That is 125 MB by default, 3.8 GB for ``wide`` and 41 MB for ``laptop``, times the folds where all
    healthy scans calibrate.

    Departures:
        scores: not stretched to 0..1 over the test set, as in the unofficial code that is the only
            one.

    Args:
        dim: feature channels that are kept, chosen at random.
        ridge: added to the diagonal of each covariance.
    """
    return PaDiM(backbone_of(options, channels), dim, ridge)
