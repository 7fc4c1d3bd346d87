"""Autoencoders whose codes a critic holds to a normal distribution."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from normscan.methods.base import Batch, Maps, Method, Phase, Player, adam
from normscan.methods.reconstruction import Residual, absolute, positive
from normscan.networks.autoencoder import BaurAutoencoder, Norm
from normscan.networks.residual import SLOPE, ResidualAutoencoder
from normscan.objectives.losses import gradient_penalty
from normscan.registry import register

Turns = tuple[int, int]
ARTICLE_SCALE = {"steps": [{"zscore": {"outside": -3.5}}], "scaling": "none"}


@dataclass(frozen=True)
class Training:
    """How the three players train.

    Attributes:
        stages: name, turns of autoencoder and critic in a step, steps and epochs of each stage.
        batch_size: images in an update.
        lr: learning rate of Adam.
    """

    stages: list[tuple[str, Turns, int | None, int]]
    batch_size: int
    lr: float


@dataclass(frozen=True)
class Weights:
    """Weights of the terms: ``consistency`` of the two codes, ``penalty`` of the critic's gradient.

    ``root`` takes the root of the summed squared error instead of the mean squared error.
    """

    consistency: float
    penalty: float
    root: bool


def code_critic(latent: int, widths: tuple[int, int]) -> nn.Sequential:
    """Return three linear layers with leaky ReLUs between, from a code to one number."""
    first, second = widths
    return nn.Sequential(
        nn.Linear(latent, first), nn.LeakyReLU(SLOPE),
        nn.Linear(first, second), nn.LeakyReLU(SLOPE),
        nn.Linear(second, 1),
    )  # fmt: skip


class ConstrainedAdversarial(Method):
    """Autoencoder, critic of its codes, and the constraint that x and its restoration share one."""

    def __init__(
        self, network: ResidualAutoencoder | BaurAutoencoder, critic: nn.Module, residual: Residual,
        weights: Weights, training: Training,
    ) -> None:  # fmt: skip
        super().__init__()
        self.network, self.critic = network, critic
        self._residual, self.weights, self._training = residual, weights, training

    def phases(self) -> list[Phase]:
        training = self._training
        optimizer = adam(training.lr, betas=(0.5, 0.9))
        encoder = [self.network.encoder, self.network.heads]
        return [
            Phase(
                name,
                [
                    Player("autoencoder", [self.network], optimizer, turns=turns[0]),
                    Player("critic", [self.critic], optimizer, turns=turns[1]),
                    Player("encoder", encoder, optimizer),
                ],
                steps,
                epochs,
                training.batch_size,
            )
            for name, turns, steps, epochs in training.stages
        ]

    def encode(self, x: Tensor, fixed: bool = False) -> Tensor:
        """Codes (B, latent); ``fixed`` takes the running statistics of the batch norms."""
        training = self.network.encoder.training
        self.network.encoder.train(training and not fixed)
        code = self.network.encode(x)[0]
        self.network.encoder.train(training)
        return code

    def loss(self, batch: Batch, phase: str, player: str) -> dict[str, Tensor]:
        x = batch.image
        if player == "encoder":
            return {"adversarial": -self.critic(self.encode(x)).mean()}
        if player == "critic":
            with torch.no_grad():
                code = self.encode(x)
            prior = batch.rng.normal(code.shape).to(code)
            mix = batch.rng.uniform((len(batch),)).to(code)
            return {
                "wasserstein": self.critic(code).mean() - self.critic(prior).mean(),
                "penalty": self.weights.penalty * gradient_penalty(self.critic, prior, code, mix),
            }
        code = self.encode(x)
        restored = self.network.decode(code)
        squares = (restored - x).square().flatten(1)
        drift = (code - self.encode(restored, fixed=True)).square()
        if self.weights.root:
            error, drift = (squares.sum(1) + 1e-8).sqrt(), drift.sum(1)
        else:
            error = squares.mean(1)
        return {"restoration": error.mean(), "consistency": self.weights.consistency * drift.mean()}

    @torch.no_grad()
    def maps(self, batch: Batch) -> Maps:
        restored = self.network(batch.image)
        return Maps(map=self._residual(batch.image, restored), reconstruction=restored)


@register(
    "caae",
    paper="Chen 2018",
    dims=(2, 3),
    presets={
        "laptop": {
            "size": 64, "width": 12, "latent": 64, "warmup_turns": (4, 10), "turns": (4, 2),
            "warmup_steps": 10, "steps": 100, "lr": 1e-3, "batch_size": 16,
            "preprocess": {"steps": [], "scaling": "median"},
            "postprocess": ("erode=2", "median=3"),
        },
    },
    postprocess=("foreground",),
    preprocess=ARTICLE_SCALE,
    tiny={
        "size": 32, "width": 8, "levels": 3, "latent": 16, "warmup_turns": (2, 1),
        "turns": (2, 1), "warmup_steps": 2, "steps": 120, "lr": 3e-3, "batch_size": 16,
        "preprocess": {"steps": [], "scaling": "none"},
    },
)  # fmt: skip
def constrained_adversarial_autoencoder(
    dims: int = 2,
    channels: int = 1,
    size: int = 256,
    latent: int = 128,
    width: int = 16,
    levels: int = 4,
    consistency: float = 0.5,
    penalty: float = 10.0,
    warmup_turns: Turns = (1, 200),
    turns: Turns = (1, 20),
    warmup_epochs: int = 20,
    epochs: int = 300,
    warmup_steps: int | None = None,
    steps: int | None = None,
    batch_size: int = 64,
    lr: float = 2e-5,
) -> Method:
    """Constrained adversarial autoencoder: a critic shapes the codes, and x and its restoration share one.

    A residual autoencoder is trained on the root of the summed squared error and on the squared
    distance between the code of an image and that of its restoration; a Wasserstein critic with
    gradient penalty pulls the codes towards the standard normal. The map is the absolute residual
    in the brain, of images z-scored in the foreground with background -3.5. Chen and Konukoglu,
    MIDL 2018. Blocks, widths, turns, weights and rates are those of the released code, which has
    the restoration encoded with the running statistics of the batch norms.

    Departures:
        critic: each of its turns sees other images and other draws of the prior; the release
            repeats one batch.
        optimiser: Adam starts anew after the warm-up.
        spread: the decoder's second output, which nothing uses, is left out.
        bias field: the article corrects it (step ``n4``); not by default here.
        image score: the mean of the map in the foreground; the article has none.

    Args:
        size: pixels along each axis, a multiple of 2 to the power of ``levels``.
        levels: halvings of the image.
        consistency: weight of the squared distance between the two codes.
        penalty: weight of the critic's gradient penalty.
        warmup_turns: updates of the autoencoder and of the critic in each step of the warm-up.
        turns: the same after the warm-up.
        warmup_epochs: passes over the training images in the warm-up.
        epochs: passes over the training images, the warm-up counted in.
        warmup_steps: steps of the warm-up instead of ``warmup_epochs``.
        steps: steps after the warm-up instead of ``epochs``.
        batch_size: images in an update.
        lr: learning rate of Adam (betas 0.5 and 0.9).
    """
    stages = [
        ("warm-up", warmup_turns, warmup_steps, warmup_epochs),
        ("constrain", turns, steps, max(0, epochs - warmup_epochs)),
    ]
    return ConstrainedAdversarial(
        ResidualAutoencoder(dims, channels, size, latent, width, levels),
        code_critic(latent, (200, 400)),
        absolute,
        Weights(consistency, penalty, root=True),
        Training(stages, batch_size, lr),
    )


@register(
    "caae_baur",
    paper="Chen 2018; Baur 2021",
    dims=(2, 3),
    presets={"laptop": {
        "size": 64, "width": 16, "latent": 64, "warmup_turns": (4, 10), "turns": (4, 2),
        "warmup_steps": 10, "steps": 100, "lr": 1e-3, "batch_size": 16,
        "preprocess": {"scaling": "median"}, "postprocess": ("erode=2", "median=3"),
    }},
    postprocess=("erode=12", "median=5"),
    smallest_component=7,
    preprocess={"percentile": 99.8},
    tiny={
        "size": 32, "width": 16, "latent": 16, "warmup_turns": (2, 1), "turns": (2, 1),
        "warmup_steps": 2, "steps": 100, "lr": 2e-3, "batch_size": 16, "postprocess": (),
    },
)  # fmt: skip
def ported_constrained_adversarial_autoencoder(
    dims: int = 2,
    channels: int = 1,
    size: int = 128,
    latent: int = 128,
    width: int = 32,
    norm: Norm = "batch",
    consistency: float = 1.0,
    penalty: float = 10.0,
    warmup_turns: Turns = (20, 20),
    turns: Turns = (1, 20),
    warmup_epochs: int = 6,
    epochs: int = 300,
    warmup_steps: int | None = None,
    steps: int | None = None,
    batch_size: int = 8,
    lr: float = 1e-3,
) -> Method:
    """The port of ``caae`` in a comparative study: its network, mean squared errors, images in 0..1.

    Baur et al., Medical Image Analysis 2021, compare the method of Chen and Konukoglu on a network
    of their own, down to 16 x 16 before the code, with a smaller critic (100 and 50 numbers). Only
    what is brighter than its restoration counts, inside the eroded foreground and median filtered.

    Departures:
        norm: the released port's batch norms never normalise; ``norm=affine`` does so.
        critic, optimiser: as in ``caae``.

    Args:
        size: pixels along each axis, a power of two times 16.
        norm: ``batch``, or ``affine`` for a learned scale and shift only.
        consistency: weight of the squared distance between the two codes.
        penalty: weight of the critic's gradient penalty.
        warmup_turns: updates of the autoencoder and of the critic in each step of the warm-up.
        turns: the same after the warm-up.
        warmup_epochs: passes over the training images in the warm-up.
        epochs: passes over the training images, the warm-up counted in.
        warmup_steps: steps of the warm-up instead of ``warmup_epochs``.
        steps: steps after the warm-up instead of ``epochs``.
        batch_size: images in an update.
        lr: learning rate of Adam (betas 0.5 and 0.9).
    """
    stages = [
        ("warm-up", warmup_turns, warmup_steps, warmup_epochs),
        ("constrain", turns, steps, max(0, epochs - warmup_epochs)),
    ]
    network = BaurAutoencoder(
        dims, channels, size, latent, width=width, dropout=0.1, norm=norm,
        smallest=min(16, size // 2),
    )  # fmt: skip
    return ConstrainedAdversarial(
        network,
        code_critic(latent, (100, 50)),
        positive,
        Weights(consistency, penalty, root=False),
        Training(stages, batch_size, lr),
    )
