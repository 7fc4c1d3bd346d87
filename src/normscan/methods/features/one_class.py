"""One-class networks: healthy images are mapped near one point."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn

from normscan.methods.base import Batch, Maps, Method, Phase, Player, adam
from normscan.methods.features.common import FILLED, PICTURE
from normscan.networks.lenet import UnbiasedDecoder, UnbiasedEncoder
from normscan.networks.together import gathered
from normscan.objectives.optimizers import dropped, still
from normscan.registry import register

Objective = Literal["one-class", "soft-boundary"]
LEAST = 0.1


class ContrastNormalisation(nn.Module):
    """Each image less its mean, over its mean absolute value; then the training extremes to 0..1.

    The extremes are collected while training. A normalised image has a value of -0.5 or less and one
    of 0.5 or more, so the collection starts there. Several processes collect together.
    """

    low: Tensor
    high: Tensor
    gathered = ("low", "high")

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("low", torch.tensor(-0.5))
        self.register_buffer("high", torch.tensor(0.5))

    def forward(self, x: Tensor, collect: bool = False) -> Tensor:
        """Normalise images (B, C, *spatial); ``collect`` widens the extremes first."""
        axes = tuple(range(1, x.ndim))
        x = x - x.mean(axes, keepdim=True)
        x = x / x.abs().mean(axes, keepdim=True).clamp_min(1e-6)
        if collect:
            ends, _ = gathered(torch.stack([x.amin(), x.amax()])[None])
            self.low.copy_(torch.minimum(self.low, ends[:, 0].amin()))
            self.high.copy_(torch.maximum(self.high, ends[:, 1].amax()))
        return (x - self.low) / (self.high - self.low)


@dataclass(frozen=True)
class Ball:
    """What the one-class phase draws to the centre.

    Attributes:
        objective: ``one-class`` all images, ``soft-boundary`` those beyond a radius.
        nu: share of the images that may lie outside the radius.
        warm_up: passes before the radius is set.
    """

    objective: Objective = "one-class"
    nu: float = 0.1
    warm_up: int = 10


class DeepSVDD(Method):
    """An encoder whose codes of healthy images lie in a small ball."""

    centre_sum: Tensor
    seen: Tensor
    trained: Tensor
    radius: Tensor

    def __init__(
        self,
        encoder: UnbiasedEncoder,
        decoder: UnbiasedDecoder,
        normalise: ContrastNormalisation | None,
        latent: int,
        ball: Ball,
        phases: list[Phase],
    ) -> None:
        super().__init__()
        self.encoder, self.decoder, self.normalise = encoder, decoder, normalise
        self.ball = ball
        self.register_buffer("centre_sum", torch.zeros(latent, dtype=torch.float64))
        # Images that the centre is the mean of, and images that were trained with since.
        self.register_buffer("seen", torch.zeros((), dtype=torch.float64))
        self.register_buffer("trained", torch.zeros((), dtype=torch.float64))
        self.register_buffer("radius", torch.zeros(()))
        self._phases = phases

    def phases(self) -> list[Phase]:
        return self._phases

    @property
    def centre(self) -> Tensor:
        """Mean code (latent,) of the training images before the one-class phase, none near 0."""
        mean = (self.centre_sum / self.seen.clamp_min(1)).float()
        # A unit whose target is 0 would be solved by zero weights.
        return torch.where(mean < 0, mean.clamp_max(-LEAST), mean.clamp_min(LEAST))

    def scaled(self, image: Tensor, collect: bool = False) -> Tensor:
        """The image as the network sees it."""
        return image if self.normalise is None else self.normalise(image, collect)

    def distance(self, image: Tensor) -> Tensor:
        """Squared distances (B,) of the codes from the centre."""
        return (self.encoder(self.scaled(image)) - self.centre).square().sum(1)

    def loss(self, batch: Batch, phase: str, player: str) -> dict[str, Tensor]:
        training = torch.is_grad_enabled()  # not while validating
        if phase == "pretrain":
            x = self.scaled(batch.image, collect=training)
            error = (self.decoder(self.encoder(x)) - x).square().flatten(1).sum(1)
            return {"restoration": error.mean()}
        if phase == "centre":
            self.encoder.eval()  # with the statistics of the pre-training
            codes = self.encoder(self.scaled(batch.image))
            self.centre_sum += codes.detach().double().sum(0)
            self.seen += len(batch)
            return {"size": codes.square().sum(1).mean()}
        distance = self.distance(batch.image)
        if self.ball.objective == "one-class":
            return {"distance": distance.mean()}
        radius = self.radius.square()
        outside = (distance - radius).clamp_min(0).mean() / self.ball.nu
        if training:
            if self.trained >= self.ball.warm_up * self.seen:
                self.radius.copy_(distance.detach().float().sqrt().quantile(1 - self.ball.nu))
            self.trained += len(batch)
        return {"outside": outside, "radius": radius}

    @torch.no_grad()
    def maps(self, batch: Batch) -> Maps:
        return Maps(score=self.distance(batch.image) - self.radius.square())


@register(
    "deep_svdd",
    paper="Ruff 2018",
    dims=(2, 3),
    presets={
        "laptop": {
            "size": 64, "width": 16, "gcn": False, "lr": 1e-3, "batch_size": 16, "steps": 300,
            "pretraining_steps": 300, "preprocess": FILLED,
        },
    },
    # The decoder ends in a sigmoid: without contrast normalisation it restores nothing above 1.
    preprocess={**PICTURE, "limit": 1.0},
    tiny={
        "preprocess": FILLED,
        "width": 4, "latent": 64, "gcn": False, "lr": 2e-3, "batch_size": 8, "steps": 120,
        "pretraining_steps": 80,
    },
)  # fmt: skip
def deep_svdd(
    dims: int = 2,
    channels: int = 1,
    size: int = 32,
    width: int = 32,
    latent: int = 128,
    gcn: bool = True,
    objective: Objective = "one-class",
    nu: float = 0.1,
    warm_up: int = 10,
    lr: float = 1e-4,
    weight_decay: float = 5e-7,
    batch_size: int = 200,
    epochs: int = 150,
    steps: int | None = None,
    pretraining_epochs: int = 350,
    pretraining_steps: int | None = None,
) -> Method:
    """Deep one-class classification (Deep SVDD): healthy images are mapped near one point.

    Ruff et al., ICML 2018: a convolutional network without biases is pre-trained as the encoder of an
    autoencoder (350 epochs); the mean code of the training images becomes the centre, its entries at
    least 0.1 in size; then the network learns to map healthy images near it (150 epochs). Adam 1e-4,
    decay 5e-7, batches of 200; the rate falls to a tenth after 5/7 of the pre-training and a third of
    the training. The score is the squared distance from the centre, less the squared radius with
    ``soft-boundary``; there is no map. The defaults are those of CIFAR-10 with 32 pixels; larger
    images get more convolutions.

    Departures:
        normalisation: the extremes that bring images to 0..1 are those of all training images,
            collected during the pre-training; the release has constants for each class.
        third axis: ours; the same network works on volumes.

    Args:
        size: pixels along each axis, 4 times a power of two.
        width: channels of the first convolution; the widest has four times as many.
        latent: numbers in the code, a multiple of 16 in the plane and of 64 in space.
        gcn: global contrast normalisation of each image: less its mean, over its mean absolute
            value, then to 0..1 by the training images' extremes. Without it brightness counts.
        objective: ``one-class`` draws all images to the centre; ``soft-boundary`` only those beyond
            a radius.
        nu: share of the images that may lie outside the radius; with ``soft-boundary``.
        warm_up: passes before the radius is set, with ``soft-boundary``.
        lr: learning rate of Adam, at the start of both phases.
        weight_decay: of Adam.
        batch_size: images in an update.
        epochs: passes over the training images.
        steps: number of updates instead of ``epochs``.
        pretraining_epochs: passes of the autoencoder.
        pretraining_steps: number of its updates instead.
    """
    encoder = UnbiasedEncoder(dims, channels, size, latent, width)
    decoder = UnbiasedDecoder(dims, channels, latent, encoder.widths)
    optimizer = adam(lr, weight_decay=weight_decay)
    first = Player("autoencoder", [encoder, decoder], optimizer, schedule=dropped(5 / 7))
    last = Player("encoder", [encoder], optimizer, schedule=dropped(1 / 3))
    phases = [
        Phase("pretrain", [first], pretraining_steps, pretraining_epochs, batch_size),
        Phase("centre", [Player("encoder", [encoder], still)], epochs=1, batch_size=batch_size),
        Phase("one-class", [last], steps, epochs, batch_size),
    ]
    normalise = ContrastNormalisation() if gcn else None
    return DeepSVDD(encoder, decoder, normalise, latent, Ball(objective, nu, warm_up), phases)
