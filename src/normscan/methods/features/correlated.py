"""Correlations of features within an image and between images of the same anatomy."""

from __future__ import annotations

from typing import Any, Unpack

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from normscan.methods.base import Batch, Method
from normscan.methods.features.cfa import (
    CentreBank,
    CoordConv,
    CoupledHyperspheres,
    Radius,
    Spheres,
)
from normscan.methods.features.common import (
    LAPTOP,
    SMOOTH,
    TINY_SMOOTH,
    Trained,
    backbone_of,
    tapped,
)
from normscan.methods.schedule import schedule
from normscan.objectives.contrastive import nt_xent
from normscan.registry import register


class PyramidFusion(nn.Module):
    """Stages joined from the coarsest to the finest, channels weighted by what the image shows.

    Args:
        channels: of each stage, the finest first.
        dim: channels of the result.
    """

    def __init__(self, channels: list[int], dim: int) -> None:
        super().__init__()
        self.lateral = nn.ModuleList(nn.Conv2d(n, dim, 1) for n in channels)
        self.smooth = nn.Conv2d(dim, dim, 3, padding=1)
        self.attention = nn.Sequential(
            nn.Linear(dim, max(1, dim // 4)), nn.ReLU(), nn.Linear(max(1, dim // 4), dim)
        )

    def forward(self, stages: list[Tensor]) -> Tensor:
        """(B, dim, h, w) on the grid of the first stage."""
        joined: Tensor | None = None
        for conv, stage in reversed(list(zip(self.lateral, stages, strict=True))):
            own = conv(stage)
            if joined is not None:
                size = own.shape[2:]
                own = own + F.interpolate(joined, size, mode="bilinear", align_corners=False)
            joined = own
        assert joined is not None
        joined = self.smooth(joined)
        return joined * self.attention(joined.mean((2, 3))).sigmoid()[:, :, None, None]


class Correlated(CoupledHyperspheres):
    """Spheres around centres, and places that agree across images; see the registered method.

    Args:
        *parts: of ``CoupledHyperspheres``.
        inter: weight of the agreement between images.
        places: drawn in each image for it.
        temperature: that its cosines are divided by.
    """

    def __init__(self, *parts: Any, inter: float, places: int, temperature: float) -> None:
        super().__init__(*parts)
        self.inter, self.places, self.temperature = inter, places, temperature

    def joined(self, stages: list[Tensor]) -> list[Tensor]:
        return stages

    def adapted(self, points: Tensor, batch: Batch) -> dict[str, Tensor]:
        terms = super().adapted(points, batch)
        return {**terms, "inter": self.inter * self.agreement(points, batch)}

    def agreement(self, points: Tensor, batch: Batch) -> Tensor:
        """How badly a place is told from others by the same place in the next image."""
        n, total, _ = points.shape
        count = min(self.places, total)
        drawn = batch.rng.uniform((n, total))[0].argsort()[:count].to(points.device)
        pairs = [
            nt_xent(points[i, drawn], points[(i + 1) % n, drawn], self.temperature)
            for i in range(n)
        ]
        return torch.stack(pairs).mean()


@register(
    "intra_inter_correlation",
    paper="Xu 2025",
    dims=(2,),
    presets={"laptop": {**LAPTOP, "dim": 128, "steps": 200}},
    postprocess=SMOOTH,
    reduction="max",
    preprocess={"scaling": "file", "crop": "none", "fit": "stretch"},
    tiny={**TINY_SMOOTH, "dim": 32, "places": 32, "steps": 30},
    options=tapped(size=224) | schedule(lr=1e-3, weight_decay=5e-4, batch_size=4, epochs=30),
)
def intra_inter_correlation(
    dims: int = 2,
    channels: int = 1,
    dim: int = 512,
    neighbours: int = 3,
    negatives: int = 3,
    nu: float = 1e-3,
    margin: float = 0.1,
    inter_weight: float = 1.0,
    places: int = 64,
    temperature: float = 0.1,
    **options: Unpack[Trained],
) -> Method:
    """Features near healthy centres whose places agree across radiographs (FDS).

    Xu et al., IEEE TMI 2025 ("Facing differences of similarity"), on three sets of chest X-rays: the
    stages of a frozen network are fused from coarse to fine, so that a feature knows its anatomy; a
    mapper, whose first outputs over the healthy images are the semantic centres, learns to bring each
    feature to its nearest centres and away from the next ones (correlation within an image), and to
    tell each place by the same place in another image (correlation between images). The map is the
    distance to the nearest centres, the image score its largest value.

    Departures:
        everything but the two correlations: no code was released, and of the article the abstract was
            known. Mapper, centres, the first correlation, score and training are those of ``cfa``;
            the fusion, and the second correlation as a contrast of places between two images of the
            batch, are ours.

    Args:
        dim: numbers of a feature, behind the fusion and behind the mapper.
        neighbours: nearest centres that pull, and that the softmin of the score runs over.
        negatives: next centres that push.
        nu: divides the first correlation.
        margin: of the push, in squared distance.
        inter_weight: of the second correlation.
        places: drawn in each image for it.
        temperature: that its cosines are divided by.
        lr: learning rate of AdamW with AMSGrad.
        beta1: its first momentum.
        weight_decay: of AdamW.
        epochs: passes over the training images, after one for the centres.
    """
    backbone = backbone_of(options, channels)
    positions = (-(-options["size"] // backbone.strides[0])) ** 2
    return Correlated(
        backbone,
        nn.Sequential(PyramidFusion(backbone.channels, dim), CoordConv(dim, dim)),
        CentreBank(positions, dim),
        Radius(Spheres(neighbours, negatives, nu, margin)),
        options,
        inter=inter_weight, places=places, temperature=temperature,
    )  # fmt: skip
