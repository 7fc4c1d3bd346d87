"""Autoencoders whose codes a critic holds to a normal distribution."""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor, nn

from normscan.methods.base import Batch, Maps, Method, Phase, Player, adam
from normscan.methods.reconstruction import absolute
from normscan.networks.autoencoder import BaurAutoencoder
from normscan.networks.residual import SLOPE, ResidualAutoencoder
from normscan.objectives.losses import gradient_penalty
from normscan.registry import register

Turns = tuple[int, int]
ARTICLE_SCALE = {"steps": [{"zscore": {"outside": -3.5}}], "scaling": "none"}


class ConstrainedAdversarial(Method):
    """Autoencoder, critic of its codes, and the constraint that x and its restoration share one."""

    def __init__(
        self, network: ResidualAutoencoder | BaurAutoencoder, latent: int, root: bool,
        consistency: float, penalty: float, phases: list[tuple[str, Turns, int | None, int]],
        batch_size: int, lr: float,
    ) -> None:  # fmt: skip
        super().__init__()
        self.network = network
        self.critic = nn.Sequential(
            nn.Linear(latent, 200), nn.LeakyReLU(SLOPE),
            nn.Linear(200, 400), nn.LeakyReLU(SLOPE),
            nn.Linear(400, 1),
        )  # fmt: skip
        self.root, self.consistency, self.penalty = root, consistency, penalty
        self.stages, self.batch_size, self.lr = phases, batch_size, lr

    def phases(self) -> list[Phase]:
        optimizer = adam(self.lr, betas=(0.5, 0.9))
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
                self.batch_size,
            )
            for name, turns, steps, epochs in self.stages
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
                "penalty": self.penalty * gradient_penalty(self.critic, prior, code, mix),
            }
        code = self.encode(x)
        restored = self.network.decode(code)
        squares = (restored - x).square().flatten(1)
        drift = (code - self.encode(restored, fixed=True)).square()
        if self.root:
            error, drift = (squares.sum(1) + 1e-8).sqrt(), drift.sum(1)
        else:
            error = squares.mean(1)
        return {"restoration": error.mean(), "consistency": self.consistency * drift.mean()}

    @torch.no_grad()
    def maps(self, batch: Batch) -> Maps:
        restored = self.network(batch.image)
        return Maps(map=absolute(batch.image, restored), reconstruction=restored)


@register(
    "caae",
    paper="Chen 2018",
    dims=(2, 3),
    presets={
        "baur": {
            "size": 128, "design": "baur", "width": 32, "loss": "mean", "consistency": 1.0,
            "penalty": 10.0, "warmup_turns": (20, 20), "warmup_epochs": 6, "lr": 1e-3,
            "batch_size": 8, "preprocess": {"percentile": 99.8, "steps": [], "scaling": "auto"},
            "postprocess": ("erode=12", "median=5"),
        },
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
        "size": 32, "design": "baur", "width": 16, "latent": 16, "warmup_turns": (2, 1),
        "turns": (2, 1), "warmup_steps": 2, "steps": 100, "lr": 2e-3, "batch_size": 16,
        "preprocess": {"steps": [], "scaling": "none"},
    },
)  # fmt: skip
def constrained_adversarial_autoencoder(
    dims: int = 2,
    channels: int = 1,
    size: int = 256,
    design: Literal["chen", "baur"] = "chen",
    latent: int = 128,
    width: int = 16,
    levels: int = 4,
    loss: Literal["root", "mean"] = "root",
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
    in the brain. Chen and Konukoglu, MIDL 2018. Values of turns, weights and rates are those of the
    released code, which has the restoration encoded with the running statistics of the batch norms;
    so do we. Departures: each turn of the critic sees other images and other draws of the prior
    (the code repeats one batch), Adam starts anew after the warm-up, the decoder's unused map of
    spreads is left out. How the blocks are put together, and the image score, the mean of the map
    in the foreground, are our choice. Images are z-scored in the foreground with background -3.5;
    the article also corrects the bias field (step ``n4``). ``baur`` is the port of the comparative
    study (Baur 2021): its own network down to 16 x 16, mean squared errors, images in 0..1.

    Args:
        size: pixels along each axis, a multiple of 16 (a power of two times 16 for ``baur``).
        design: ``chen`` for residual blocks, ``baur`` for the comparative study's network.
        levels: halvings of the image in ``chen``.
        loss: ``root`` of the summed squared error, or ``mean`` of the squared errors.
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
    network: ResidualAutoencoder | BaurAutoencoder
    if design == "baur":
        network = BaurAutoencoder(
            dims, channels, size, latent, width=width, dropout=0.1, smallest=min(16, size // 2)
        )
    else:
        network = ResidualAutoencoder(dims, channels, size, latent, width, levels)
    stages = [
        ("warm-up", warmup_turns, warmup_steps, warmup_epochs),
        ("constrain", turns, steps, max(0, epochs - warmup_epochs)),
    ]
    return ConstrainedAdversarial(
        network, latent, loss == "root", consistency, penalty, stages, batch_size, lr
    )
