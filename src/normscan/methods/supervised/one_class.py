"""One-class networks that a few labelled anomalies are driven away from."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from normscan.methods.base import Batch, Method, Phase, Player, adam
from normscan.methods.features.common import FILLED, PICTURE
from normscan.methods.features.one_class import Ball, DeepSVDD
from normscan.methods.supervised.common import ill
from normscan.networks.lenet import UnbiasedDecoder, UnbiasedEncoder
from normscan.objectives.optimizers import dropped, still
from normscan.registry import register

LEAST_DISTANCE = 1e-6


def semi_supervised(distance: Tensor, anomalous: Tensor, eta: float) -> Tensor:
    """Squared distances (B,) of healthy images, and eta times the inverse of anomalous ones'."""
    return torch.where(anomalous, eta / (distance + LEAST_DISTANCE), distance)


class DeepSAD(DeepSVDD):
    """A ball for healthy images whose centre repels anomalous ones."""

    def __init__(self, *parts: Any, eta: float) -> None:
        super().__init__(*parts)
        self.eta = eta

    def loss(self, batch: Batch, phase: str, player: str) -> dict[str, Tensor]:
        if phase == "pretrain":
            restored = self.decoder(self.encoder(batch.image))
            return {"restoration": (restored - batch.image).square().mean()}
        if phase == "centre":
            return super().loss(batch, phase, player)
        losses = semi_supervised(self.distance(batch.image), ill(batch), self.eta)
        return {"distance": losses.mean()}


@register(
    "deep_sad",
    paper="Ruff 2020",
    regime="few-anomalies",
    dims=(2, 3),
    # The decoder ends in a sigmoid: it restores nothing above 1.
    preprocess={**PICTURE, "limit": 1.0},
    presets={
        "laptop": {
            "size": 64, "width": 16, "lr": 1e-3, "batch_size": 16, "steps": 300,
            "pretraining_steps": 300, "preprocess": FILLED,
        },
    },
    tiny={
        "preprocess": FILLED, "width": 4, "latent": 64, "lr": 2e-3, "batch_size": 8, "steps": 120,
        "pretraining_steps": 60,
    },
)  # fmt: skip
def deep_sad(
    dims: int = 2,
    channels: int = 1,
    size: int = 32,
    width: int = 32,
    latent: int = 128,
    eta: float = 1.0,
    lr: float = 1e-4,
    weight_decay: float = 5e-7,
    batch_size: int = 128,
    epochs: int = 150,
    steps: int | None = None,
    pretraining_weight_decay: float = 5e-4,
    pretraining_epochs: int = 150,
    pretraining_steps: int | None = None,
) -> Method:
    """Deep semi-supervised anomaly detection (Deep SAD): a few anomalies are driven off a centre.

    Ruff et al., ICLR 2020: the network of Deep SVDD without biases is pre-trained as the encoder of
    an autoencoder; the mean code of all training images becomes the centre, its entries at least 0.1
    in size. Then the loss is the squared distance from the centre, and eta / (squared distance +
    1e-6) for a labelled anomaly. As the release is called: images in 0..1 without further
    normalisation, Adam 1e-4, 150 epochs of each stage in batches of 128, the rate a tenth after a
    third of the second one; decay 5e-4 in the first stage and 5e-7 in the second. Anomalies also
    take part in the pre-training and in the centre, and batches are drawn from all images alike. The
    score is the squared distance; there is no map.

    Departures:
        labelled healthy images: count as unlabelled ones, which with eta = 1 is the same up to 1e-6.
        last batch: filled from the next pass; the release drops what doesn't fill one.
        third axis: ours; the same network works on volumes.

    Args:
        size: pixels along each axis, 4 times a power of two.
        width: channels of the first convolution; the widest has four times as many.
        latent: numbers in the code, a multiple of 16 in the plane and of 64 in space.
        eta: weight of labelled anomalies.
        lr: learning rate of Adam, at the start of both stages.
        weight_decay: of Adam in the second stage.
        batch_size: images in an update.
        epochs: passes over the training images.
        steps: number of updates instead of ``epochs``.
        pretraining_weight_decay: of Adam in the first stage.
        pretraining_epochs: passes of the autoencoder.
        pretraining_steps: number of its updates instead.
    """
    encoder = UnbiasedEncoder(dims, channels, size, latent, width)
    decoder = UnbiasedDecoder(dims, channels, latent, encoder.widths, normed=False)
    first = Player(
        "autoencoder", [encoder, decoder], adam(lr, weight_decay=pretraining_weight_decay)
    )
    last = Player(
        "encoder", [encoder], adam(lr, weight_decay=weight_decay), schedule=dropped(1 / 3)
    )
    part = "healthy+labelled"
    phases = [
        Phase("pretrain", [first], pretraining_steps, pretraining_epochs, batch_size, part=part),
        Phase(
            "centre", [Player("encoder", [encoder], still)], epochs=1, batch_size=batch_size,
            part=part,
        ),
        Phase("one-class", [last], steps, epochs, batch_size, part=part),
    ]  # fmt: skip
    return DeepSAD(encoder, decoder, None, latent, Ball(), phases, eta=eta)
