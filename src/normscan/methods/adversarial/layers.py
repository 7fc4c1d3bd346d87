"""Layers as an image shows them against layers of a healthy shape."""

from __future__ import annotations

from collections.abc import Iterable
from types import MappingProxyType
from typing import Unpack

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from normscan.methods.adversarial.uncertainty import labels_below
from normscan.methods.base import Batch, Maps, Method, Phase, Use
from normscan.methods.schedule import Schedule, phase, schedule
from normscan.networks.boundaries import ShapeModel, disagreement, first_rows, ordered_rows
from normscan.networks.discriminative import BatchNormUNet
from normscan.registry import register


class LayerShape(Method):
    """Boundaries of layers by a network and by the shape of healthy ones; see ``octa_layers``.

    Args:
        network: image to a logit for each boundary and pixel.
        boundaries: number of boundaries.
        shape: of healthy boundaries.
        place: weight of the boundaries' distance in rows, over the height.
        training: the shared arguments.
    """

    uses = MappingProxyType({"structures": Use()})

    def __init__(
        self, network: nn.Module, boundaries: int, shape: ShapeModel, place: float,
        training: Schedule,
    ) -> None:  # fmt: skip
        super().__init__()
        self.network, self.boundaries, self.shape = network, boundaries, shape
        self.place = place
        self._training = training

    def phases(self) -> list[Phase]:
        return [phase(self.network, self._training, name="boundaries")]

    def loss(self, batch: Batch, phase: str, player: str) -> dict[str, Tensor]:
        labels = labels_below(batch.structures, self.boundaries + 1)
        rows, there = first_rows(labels, self.boundaries)
        logits = self.network(batch.image).movedim(2, 1)  # rows are the classes of a column
        entropy = F.cross_entropy(logits, rows, reduction="none")
        found = ordered_rows(logits.softmax(1).movedim(1, 2))
        distance = (found - rows).abs() / logits.shape[1]
        many = there.sum().clamp_min(1)
        return {
            "cross entropy": (entropy * there).sum() / many,
            "place": self.place * (distance * there).sum() / many,
        }

    def chances(self, x: Tensor) -> Tensor:
        """Where each boundary lies in each column, (B, K, H, W), 1 in each column."""
        logits: Tensor = self.network(x)
        return logits.softmax(2)

    @torch.no_grad()
    def fit(self, batches: Iterable[Batch]) -> None:
        self.shape.fit(torch.cat([ordered_rows(self.chances(b.image)) for b in batches]))

    @torch.no_grad()
    def maps(self, batch: Batch) -> Maps:
        chances = self.chances(batch.image)
        healthy = self.shape(ordered_rows(chances))
        return Maps(map=disagreement(chances, healthy))


@register(
    "octa_layers",
    paper="Zhang 2020",
    dims=(2,),
    presets={
        "laptop": {
            "size": 128, "width": 8, "boundaries": 8, "components": 8, "batch_size": 8,
            "steps": 400,
        },
    },
    reduction="foreground_mean",
    tiny={
        "size": 32, "width": 6, "depth": 2, "boundaries": 2, "components": 4, "batch_size": 8,
        "steps": 60, "lr": 5e-3,
    },
    options=schedule(lr=1e-3, batch_size=8, epochs=50, patience=5),
)  # fmt: skip
def octa_layers(
    dims: int = 2,
    channels: int = 1,
    size: int = 256,
    width: int = 64,
    depth: int = 4,
    boundaries: int = 8,
    components: int = 16,
    place: float = 1.0,
    **training: Unpack[Schedule],
) -> Method:
    """Retinal layers as the image shows them against the nearest healthy shape (approximate).

    Zhang et al., MICCAI 2020 segment retinal layers robustly in spite of abnormalities, for the
    projection of angiographies, with what is known of the shape of normal layers. Neither text nor
    code was at hand: only the idea is theirs, all that follows is our choice. A U-Net says for each
    boundary and column where it lies (softmax down the column; cross entropy + 1 mean distance of
    the expected rows over the height), no boundary above an earlier one. The main directions of
    healthy boundaries, relative to Bruch's membrane, give the nearest healthy shape of those that
    were found. The map is the chance that a boundary lies on the other side of a pixel than in the
    healthy shape, summed over the boundaries: high where layers are displaced, and where the network
    doesn't know where they are. Rows of an image are depth, its top the vitreous. The healthy
    training scans need label maps (``structures``) that grow downwards; new scans don't.

    Args:
        dims: spatial axes, 2.
        depth: how often the grid is halved.
        boundaries: between the labels 0 to as many.
        components: main directions of healthy shapes that are kept.
        place: weight of the distance of expected rows.
    """
    network = BatchNormUNet(channels, boundaries, width, depth)
    return LayerShape(
        network, boundaries, ShapeModel(boundaries * size, components), place, training
    )
