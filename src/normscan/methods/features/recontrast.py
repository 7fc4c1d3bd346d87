"""Contrastive reconstruction: two encoders, one frozen, are restored from each other."""

from __future__ import annotations

from typing import Unpack

import torch
from torch import Tensor, nn

from normscan.methods.base import Batch, Maps, Method, Phase
from normscan.methods.features.common import (
    LAPTOP,
    PICTURE,
    SMOOTH,
    TEST_RESNET,
    TINY_SMOOTH,
    TwoRated,
    backbone_of,
    tapped,
    two_rate_phase,
    two_rates,
)
from normscan.networks.backbones import Backbone
from normscan.networks.reverse import initialise, reverse_pair, stages_of, trainable_copy
from normscan.objectives.cosine import distance_map
from normscan.objectives.mining import mined_loss, mining_strength
from normscan.registry import register


class ReContrast(Method):
    """Each of two encoders, one frozen and one that learns, is restored from the other."""

    def __init__(self, frozen: Backbone, options: TwoRated) -> None:
        super().__init__()
        stages = stages_of(frozen, options["size"])
        self.frozen = frozen
        self.encoder = trainable_copy(frozen, options["batch_norm"])
        self.embedding, self.decoder = reverse_pair(stages)
        self.heads = nn.ModuleList(
            nn.ModuleList(nn.Conv2d(s.channels, s.channels, 1) for s in stages) for _ in range(2)
        )
        initialise(self.heads)
        self.step: Tensor
        self.register_buffer("step", torch.zeros((), dtype=torch.long))
        self._training = options

    def phases(self) -> list[Phase]:
        others = [self.embedding, self.decoder, self.heads]
        return [two_rate_phase(self.encoder, others, self._training)]

    def features(self, image: Tensor) -> tuple[list[list[Tensor]], list[list[Tensor]]]:
        """Targets and what is decoded for them: first of the frozen encoder, then of the other."""
        learnt, frozen = list(self.encoder(image).values()), list(self.frozen(image).values())
        # One batch, so that both encoders share the statistics of the batch norms.
        both = [torch.cat(pair) for pair in zip(learnt, frozen, strict=True)]
        halves = [m.chunk(2) for m in self.decoder(self.embedding(both))]
        decoded = []
        for view, heads in enumerate(self.heads):
            assert isinstance(heads, nn.ModuleList)
            decoded.append([head(h[view]) for head, h in zip(heads, halves, strict=True)])
        return [frozen, learnt], decoded

    def loss(self, batch: Batch, phase: str, player: str) -> dict[str, Tensor]:
        alpha = mining_strength(int(self.step), self._training["steps"])
        if torch.is_grad_enabled():  # not while validating
            self.step += 1
        targets, decoded = self.features(batch.image)
        names = ("frozen", "learnt")
        return {
            name: mined_loss(t, d, alpha) / 2
            for name, t, d in zip(names, targets, decoded, strict=True)
        }

    @torch.no_grad()
    def maps(self, batch: Batch) -> Maps:
        targets, decoded = self.features(batch.image)
        size = batch.image.shape[2:]
        ways = [distance_map(t, d, size) for t, d in zip(targets, decoded, strict=True)]
        return Maps(map=ways[0] + ways[1])


@register(
    "recontrast",
    paper="Guo 2023",
    presets={"laptop": {**LAPTOP, "batch_size": 4, "steps": 70, "batch_norm": "frozen"}},
    postprocess=SMOOTH,
    reduction="max",
    preprocess=PICTURE,
    tiny={
        **TINY_SMOOTH,
        "backbone": TEST_RESNET,
        "batch_size": 4,
        "steps": 120,
        "batch_norm": "frozen",
        "lr": 5e-3,
    },
    options=tapped | two_rates(lr=2e-3, encoder_lr=1e-5, weight_decay=1e-5, clip=None, steps=1000),
)
def recontrast(dims: int = 2, channels: int = 1, **options: Unpack[TwoRated]) -> Method:
    """Contrastive reconstruction of a frozen encoder and one that learns (ReContrast).

    Guo et al., NeurIPS 2023: two encoders start with the same weights; one learns, slowly. The
    features of each go through the embedding and decoder of RD4AD and must restore those of the
    other, with an output convolution for each way; 1 - cosine of whole maps, whose gradient is
    stopped at points that are matched better than mean + alpha * std of the batch, alpha from -3 to 1
    in the first tenth of the steps. The map is the sum of all six of 1 - cosine at each point,
    smoothed. The defaults are those of APTOS, fundus images; on MVTec the article has
    ``batch_size=16`` and ``steps=2000``. The release chooses ``batch_norm`` by data set with knowledge
    of the test (``frozen`` for OCT2017, ``train`` for APTOS and ISIC); ISIC's image score is
    ``reduction="mean"``, that of one model for many classes ``reduction="top_1_percent"``.

    Departures:
        batch norm: the ``stable`` variant of the release isn't built.
        weights: the last step's; the release reports the best of its looks at the test set.

    Args:
        size: pixels along each axis, a multiple of twice the stride of the last stage.
        taps: stages that are compared, the finest first, each at half the grid of the one before.
    """
    return ReContrast(backbone_of(options, channels), options)
