"""Anomalies as what makes a segmentation of healthy anatomy uncertain."""

from __future__ import annotations

from types import MappingProxyType
from typing import Unpack

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from normscan.errors import ArgumentError
from normscan.methods.base import Batch, Maps, Method, Phase, Use
from normscan.methods.monte_carlo import monte_carlo
from normscan.methods.schedule import Schedule, phase, schedule
from normscan.networks.discriminative import BatchNormUNet
from normscan.registry import register
from normscan.scores.rays import majority_of_rays


def labels_below(structures: Tensor | None, classes: int) -> Tensor:
    """The label map (B, *spatial) of a batch.

    Raises:
        ArgumentError: it has more classes than the method.
    """
    assert structures is not None
    most = int(structures.max())
    if most >= classes:
        raise ArgumentError(
            f"the structures have the label {most}, but classes={classes} are learnt, 0 with them. "
            f"Set classes={most + 1}, or renumber the label maps."
        )
    return structures[:, 0].long()


class Segmented(nn.Module):
    """A network with its probabilities of classes."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network

    def forward(self, x: Tensor) -> Tensor:
        probabilities: Tensor = self.network(x).softmax(1)
        return probabilities


class UncertainAnatomy(Method):
    """Segments healthy anatomy with dropout on; see ``seebock_epistemic``.

    Args:
        network: image to logits of classes, with dropout layers.
        classes: labels, 0 with them.
        passes: at test.
        casts: repetitions of the majority of rays; 0 for the plain variance.
        training: the shared arguments.
    """

    uses = MappingProxyType({"structures": Use()})

    def __init__(
        self, network: nn.Module, classes: int, passes: int, casts: int, training: Schedule
    ) -> None:
        super().__init__()
        self.segment = Segmented(network)
        self.classes, self.passes, self.casts = classes, passes, casts
        self._training = training

    def phases(self) -> list[Phase]:
        return [phase(self.segment, self._training, name="segment")]

    def loss(self, batch: Batch, phase: str, player: str) -> dict[str, Tensor]:
        labels = labels_below(batch.structures, self.classes)
        return {"cross entropy": F.cross_entropy(self.segment.network(batch.image), labels)}

    @torch.no_grad()
    def maps(self, batch: Batch) -> Maps:
        _, variance = monte_carlo(self.segment, batch.image, batch.rng, self.passes)
        variance = variance.mean(1, keepdim=True)
        shown = majority_of_rays(variance, batch.foreground, self.casts)
        return Maps(map=shown, uncertainty=variance)


@register(
    "seebock_epistemic",
    paper="Seeböck 2020",
    dims=(2,),
    presets={
        "laptop": {
            "size": 128, "width": 8, "passes": 20, "classes": 9, "batch_size": 8, "steps": 400,
        },
    },
    reduction="foreground_mean",
    tiny={
        "size": 32, "width": 6, "depth": 2, "passes": 8, "casts": 1, "classes": 3,
        "batch_size": 8, "steps": 60, "lr": 5e-3, "dropout": 0.3,
    },
    options=schedule(lr=1e-3, batch_size=4, epochs=50, patience=5),
)  # fmt: skip
def seebock_epistemic(
    dims: int = 2,
    channels: int = 1,
    size: int = 256,
    width: int = 64,
    depth: int = 4,
    classes: int = 11,
    dropout: float = 0.2,
    passes: int = 50,
    casts: int = 2,
    **training: Unpack[Schedule],
) -> Method:
    """Epistemic uncertainty of a network that segments the layers of healthy retinas.

    Seeböck et al., IEEE TMI 2020: a U-Net with dropout learns the retinal layers of healthy
    B-scans from label maps of an automatic segmentation (cross entropy). At test 50 passes with
    dropout on give a variance of each class's probability; their mean is the epistemic uncertainty,
    high where the anatomy is none that was seen. False uncertainty follows the thin borders of
    layers, anomalies are compact: majority ray casting keeps a pixel where most rays from it meet
    uncertain pixels. The image score is the mean in the retina. The healthy training scans need
    label maps (``structures``); new scans don't. Rays stay inside the foreground, the retina between
    its first and its last boundary.

    No code was released and the article wasn't at hand: rates of dropout, width, optimiser (Adam
    1e-3, batches of 4), eight rays, two repetitions of the casting and 11 classes are our choices.

    Departures:
        threshold: none before the casting; the map is the largest threshold at which a pixel would
            be kept, so that the detector's own threshold gives what casting after it would.
        training: without augmentation, which isn't told.

    Args:
        dims: spatial axes, 2.
        depth: how often the grid is halved.
        classes: labels of the structures, 0 with them.
        dropout: share of the features that are dropped behind each level, also at test.
        passes: at test, with dropout on.
        casts: repetitions of the majority of rays; 0 for the plain variance.
    """
    network = BatchNormUNet(channels, classes, width, depth, dropout=dropout)
    return UncertainAnatomy(network, classes, passes, casts, training)
