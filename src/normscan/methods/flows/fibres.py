"""Flows over single feature vectors that are told where in the image they come from."""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import Unpack

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from normscan.methods.base import Batch, Maps, Method, Phase
from normscan.methods.features.common import (
    LAPTOP,
    LITE0_STAGES,
    PICTURE,
    TINY,
    Trained,
    backbone_of,
    lite0,
    tapped,
)
from normscan.methods.schedule import phase, schedule
from normscan.networks.backbones import Backbone
from normscan.networks.flows import coupled, perceptron, place_code, surprise
from normscan.registry import register
from normscan.synthesis.augment import turned

# The rate: stages of a cosine down to a thousandth, the first two a rise from a tenth.
STAGES, RISING, FIRST, LAST = 25, 2, 0.1, 1e-3
ROTATION = math.radians(5)


def staged_cosine(step: int, steps: int) -> float:
    """Factor of the learning rate, constant in each of 25 stages behind a linear rise over two."""

    def cosine(stage: float) -> float:
        return LAST + (1 - LAST) * (1 + math.cos(math.pi * stage / STAGES)) / 2

    stage = STAGES * step / max(1, steps)
    if stage < RISING:
        return FIRST + stage / RISING * (cosine(RISING) - FIRST)
    return cosine(math.floor(stage))


class ConditionalFlows(Method):
    """One flow over the vectors of each level of features; see ``cflow``."""

    best: Tensor

    def __init__(
        self, backbone: Backbone, blocks: int, clamp: float, places: int, fibres: int,
        training: Trained,
    ) -> None:  # fmt: skip
        super().__init__()
        self.backbone, self.places, self.fibres = backbone, places, fibres
        self.flows = nn.ModuleList(
            coupled(c, [perceptron] * blocks, 0, clamp, places, rotated=True)
            for c in backbone.channels
        )
        self.register_buffer("best", torch.zeros(len(self.flows)))
        self._training = training

    def phases(self) -> list[Phase]:
        flows: list[nn.Module] = list(self.flows)
        return [phase(flows, self._training, "flow", keep="last", rhythm=staged_cosine)]

    def levels(self, image: Tensor) -> list[tuple[Tensor, Tensor, torch.Size]]:
        """Vectors (B h w, C) of each level, the codes of their places, and the grid (h, w)."""
        found = []
        for features in self.backbone(image).values():
            places = place_code(self.places, *features.shape[2:]).to(features)
            vectors = features.flatten(2).mT.flatten(0, 1)
            found.append((vectors, places.flatten(1).T.repeat(len(image), 1), features.shape[2:]))
        return found

    def log_likelihoods(self, image: Tensor) -> list[Tensor]:
        """Log p per dimension of each level's vectors, (B, 1, h, w)."""
        return [
            -surprise(flow(vectors, places), mean=True).reshape(len(image), 1, *grid)
            for (vectors, places, grid), flow in zip(self.levels(image), self.flows, strict=True)
        ]

    def loss(self, batch: Batch, phase: str, player: str) -> dict[str, Tensor]:
        image = batch.image
        if torch.is_grad_enabled():  # not while validating
            image = turned(image, batch.rng, ROTATION)
        terms = {}
        for tap, flow, (vectors, places, _) in zip(
            self.backbone.taps, self.flows, self.levels(image), strict=True
        ):
            some = batch.rng.uniform((len(vectors),)).argsort()[: self.fibres].to(image.device)
            likely = -surprise(flow(vectors[some], places[some]), mean=True)
            terms[tap] = -F.logsigmoid(likely).mean()
        return terms

    @torch.no_grad()
    def fit(self, batches: Iterable[Batch]) -> None:
        """Remember the largest log-likelihood of each level."""
        found = [
            torch.stack([level.amax() for level in self.log_likelihoods(batch.image)])
            for batch in batches
        ]
        self.best.copy_(torch.stack(found).amax(0))

    @torch.no_grad()
    def maps(self, batch: Batch) -> Maps:
        likely = [
            F.interpolate(
                (level - best).exp(), batch.image.shape[2:], mode="bilinear", align_corners=True
            )
            for level, best in zip(self.log_likelihoods(batch.image), self.best, strict=True)
        ]
        return Maps(map=len(likely) - torch.stack(likely).sum(0))


_LAPTOP = {
    **LAPTOP, "taps": ("layer2", "layer3"), "steps": 600, "batch_size": 8, "lr": 5e-4,
}  # fmt: skip


@register(
    "cflow",
    paper="Gudovskiy 2022",
    dims=(2,),
    presets={"laptop": _LAPTOP, "lite0": lite0(_LAPTOP, LITE0_STAGES[2:])},
    reduction="max",
    preprocess=PICTURE,
    tiny={
        **TINY, "size": 48, "blocks": 2, "places": 16, "batch_size": 8, "steps": 80, "lr": 4e-3,
    },
    options=tapped(taps=("layer2", "layer3", "layer4"))
    | schedule(lr=2e-4, batch_size=32, epochs=200),
)  # fmt: skip
def cflow(
    dims: int = 2,
    channels: int = 1,
    blocks: int = 8,
    clamp: float = 1.9,
    places: int = 128,
    fibres: int = 256,
    updates: int = 128,
    **options: Unpack[Trained],
) -> Method:
    """Flows over feature vectors under a code of their place (CFLOW-AD).

    Gudovskiy et al., WACV 2022: the features of the last three stages of a frozen Wide ResNet-50 are
    taken apart into the vectors of single places. A flow for each stage, 8 affine couplings whose
    networks are two linear layers that also see 128 sines and cosines of the place, with a fixed
    random rotation behind each, leads healthy vectors to a standard normal. Training lowers
    -log sigmoid(log p / C) on 256 vectors at a time (Adam 2e-4, a cosine in 25 stages down to a
    thousandth behind a rise over two; batches of 32 images, 200 passes); images are turned by up to
    5 degrees. exp(log p / C - its largest value), enlarged to the image and summed over the stages,
    says how likely a place is; the map is the number of stages less that, the image score its
    maximum.

    Departures:
        largest value: that of the healthy training scans; the release takes it over the test set, so
            that a scan's score hangs on the others.
        updates: each takes 256 vectors of every stage from images of its own; the release makes 128,
            32 and 8 updates of its three flows from one batch of 32 images with 256 pixels. Here all
            get ``updates`` for each batch of a pass.
        corners: a turned image goes on with its border's pixels, in the release with 0.
        weights: the last ones; the release keeps those with the best pixel AUROC on the test set.

    Args:
        size: pixels along each axis (the release has 128, 256 or 512 by class of picture).
        blocks: couplings in each flow.
        clamp: largest log scale of a coupling.
        places: numbers in the code of a place, a multiple of 4.
        fibres: vectors of each stage in an update.
        updates: updates for each batch of a pass, with ``epochs``.
        steps: number of updates instead of ``epochs`` and ``updates``.
    """
    training: Trained = {**options, "epochs": options["epochs"] * updates}
    backbone = backbone_of(options, channels)
    return ConditionalFlows(backbone, blocks, clamp, places, fibres, training)
