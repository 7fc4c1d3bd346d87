"""What the open-set systems share: a learning backbone at two scales, its arguments, its phase."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from normscan.errors import ArgumentError
from normscan.methods.base import Batch, Phase
from normscan.methods.features.common import FILLED, RESNET18, TEST_RESNET, Tapped, tapped
from normscan.methods.schedule import Schedule, phase, with_training
from normscan.networks.backbones import Backbone
from normscan.objectives.deviation import deviation_loss, references
from normscan.rng import Rng
from normscan.synthesis.augment import turned


class Few(Schedule):
    """The arguments of ``few``."""

    scales: int
    share: float
    margin: float
    batch_norm: Literal["frozen", "train"]


class OpenSet(Tapped, Few):
    """The arguments of ``open_set``, for ``**options: Unpack[OpenSet]`` in a signature."""


few = with_training(
    Few,
    {"scales": 2, "share": 0.1, "margin": 5.0, "batch_norm": "train"},
    {
        "scales": "copies of the image that are scored, each half as large as the one before.",
        "share": "of an image's places that its score is the mean of, the highest ones.",
        "margin": "deviations of the references by which anomalies are to stand out.",
        "batch_norm": "of the learning backbone: ``train``, or ``frozen``, which normalises with the "
        "statistics of its weights (for weights whose batch norms are folded it must).",
    },
    lr=2e-4, weight_decay=1e-5, batch_size=48, steps=1000,
)  # fmt: skip
open_set = tapped(size=448, backbone=RESNET18, taps=("layer4",)) | few

LAPTOP: dict[str, Any] = {"size": 128, "steps": 300, "batch_size": 16, "preprocess": FILLED}
TINY: dict[str, Any] = {
    "backbone": TEST_RESNET, "weights": "random", "size": 48, "taps": ("layer2",), "scales": 1,
    "batch_size": 8, "steps": 100, "lr": 2e-3, "preprocess": FILLED,
}  # fmt: skip


class Pyramid(nn.Module):
    """The features of one stage of a learning backbone, of an image and of smaller copies of it.

    Args:
        o: the shared arguments.
        channels: of the image.

    Attributes:
        width: channels of the features.

    Raises:
        ArgumentError: several stages, or no scale.
    """

    def __init__(self, o: OpenSet, channels: int) -> None:
        super().__init__()
        if len(o["taps"]) != 1 or o["scales"] < 1:
            raise ArgumentError(
                f"taps={o['taps']}, scales={o['scales']}: give one stage and 1 scale or more."
            )
        self.backbone = Backbone(
            o["backbone"], o["taps"], o["weights"], channels=channels, trainable=True,
            batch_norm=o["batch_norm"],
        )  # fmt: skip
        self.scales, self.width = o["scales"], self.backbone.channels[0]

    def forward(self, image: Tensor) -> list[Tensor]:
        """Features (B, width, h, w), the largest copy first."""
        sizes = [[n // 2**s for n in image.shape[2:]] for s in range(self.scales)]
        copies = [F.interpolate(image, size) if s else image for s, size in enumerate(sizes)]
        return [next(iter(self.backbone(copy).values())) for copy in copies]


def open_phase(
    modules: list[nn.Module], o: OpenSet, rhythm: Callable[[int, int], float], part: str
) -> Phase:
    """The phase of these: as many samples of each part, and the weights of the last update."""
    found = phase(modules, o, "deviate", part, clip=1.0, keep="last", rhythm=rhythm)
    return replace(found, balanced=True, validate_every=0)


def deviates(score: Tensor, anomalous: Tensor, rng: Rng, margin: float) -> Tensor:
    """The mean deviation loss of scores (B,), with references of their own; 0 for none."""
    loss = deviation_loss(score, anomalous, references(rng).to(score), margin)
    return loss.sum() / max(1, len(loss))


def any_turn(batch: Batch, image: Tensor | None = None) -> Tensor:
    """Images turned by any angle about their middle, on black, in training."""
    image = batch.image if image is None else image
    if not torch.is_grad_enabled():
        return image
    return turned(image, batch.rng, torch.pi, beyond="zeros")


def ill(batch: Batch) -> Tensor:
    """Which images are anomalous, (B,) bool."""
    assert batch.label is not None
    return (batch.label == 1).to(batch.image.device)
