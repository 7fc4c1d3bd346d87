"""Autoencoders whose codes a critic holds to a normal distribution."""

from __future__ import annotations

from typing import Any, Literal, TypedDict, Unpack, get_type_hints

import torch
from torch import Tensor, nn

from normscan.methods.autoencoders.plain import BAUR_POSTPROCESS, BAUR_RANGE, OWN_RANGE
from normscan.methods.base import Batch, Maps, Method, Phase, Player, adam
from normscan.methods.reconstruction import Residual, absolute, positive
from normscan.networks.autoencoder import BaurAutoencoder, Code, CodedNetwork, Levels, Norm
from normscan.networks.norms import kept_statistics
from normscan.networks.residual import ResidualAutoencoder
from normscan.objectives.losses import gradient_penalty
from normscan.registry import register
from normscan.signatures import Options

Turns = tuple[int, int]
# Values of the brain are centred at 0 and those outside it are constant.
ARTICLE_RANGE: dict[str, Any] = {
    "steps": [{"zscore": {"outside": -3.5}}],
    "scaling": "none",
    "crop": "none",
}
_TINY: dict[str, Any] = {
    "size": 32, "width": 16, "latent": 16, "warmup_turns": (2, 1), "turns": (2, 1),
    "warmup_steps": 2, "steps": 100, "lr": 2e-3, "batch_size": 16,
    "preprocess": {**OWN_RANGE, "steps": [], "scaling": "none"},
}  # fmt: skip
_LAPTOP: dict[str, Any] = {
    "size": 64, "width": 12, "latent": 64, "warmup_turns": (4, 10), "turns": (4, 2),
    "warmup_steps": 10, "steps": 100, "lr": 1e-3, "batch_size": 16,
    "preprocess": {**OWN_RANGE, "steps": [], "scaling": "median"}, "postprocess": ("erode=2", "median=3"),
}  # fmt: skip


class Game(TypedDict):
    """The arguments of the game between autoencoder, critic and encoder."""

    consistency: float
    penalty: float
    warmup_turns: Turns
    turns: Turns
    warmup_epochs: int
    epochs: int
    warmup_steps: int | None
    steps: int | None
    batch_size: int
    lr: float


GAME = Options(
    get_type_hints(Game),
    {
        "consistency": 0.5,
        "penalty": 10.0,
        "warmup_turns": (1, 200),
        "turns": (1, 20),
        "warmup_epochs": 20,
        "epochs": 300,
        "warmup_steps": None,
        "steps": None,
        "batch_size": 64,
        "lr": 2e-5,
    },
    {
        "consistency": "weight of the squared distance between the two codes.",
        "penalty": "weight of the critic's gradient penalty.",
        "warmup_turns": "updates of the autoencoder and of the critic in a step of the warm-up.",
        "turns": "the same after the warm-up.",
        "warmup_epochs": "passes over the training images in the warm-up.",
        "epochs": "passes over the training images, the warm-up counted in.",
        "warmup_steps": "steps of the warm-up instead of ``warmup_epochs``.",
        "steps": "steps after the warm-up instead of ``epochs``.",
        "batch_size": "images in an update.",
        "lr": "learning rate of Adam (betas 0.5 and 0.9).",
    },
)


def critic(latent: int, widths: tuple[int, ...], slope: float = 0.2) -> nn.Sequential:
    """Linear layers from a code to a number, with leaky ReLUs between them."""
    parts: list[nn.Module] = []
    for a, b in zip((latent, *widths), widths, strict=False):
        parts += [nn.Linear(a, b), nn.LeakyReLU(slope)]
    return nn.Sequential(*parts, nn.Linear(widths[-1], 1))


class ConstrainedAdversarial(Method):
    """Autoencoder, critic of its codes, and the constraint that x and its restoration share one.

    Args:
        network: with a code of one head.
        critic: codes to numbers.
        error: ``root`` of the squared error and the squared distance of the codes, both summed over
            an image; or the ``mean`` of both.
        residual: image and restoration to the map.
        game: weights, turns and lengths.
    """

    def __init__(
        self, *, network: CodedNetwork, critic: nn.Module, error: Literal["root", "mean"],
        residual: Residual, game: Game,
    ) -> None:  # fmt: skip
        super().__init__()
        self.network, self.critic = network, critic
        self.error, self.residual, self.game = error, residual, game

    def phases(self) -> list[Phase]:
        game = self.game
        after = max(0, game["epochs"] - game["warmup_epochs"])
        return [
            self._stage(
                "warm-up", game["warmup_turns"], game["warmup_steps"], game["warmup_epochs"]
            ),
            self._stage("constrain", game["turns"], game["steps"], after),
        ]

    def _stage(self, name: str, turns: Turns, steps: int | None, epochs: int) -> Phase:
        optimizer = adam(self.game["lr"], betas=(0.5, 0.9))
        players = [
            Player("autoencoder", [self.network], optimizer, turns=turns[0]),
            Player("critic", [self.critic], optimizer, turns=turns[1]),
            Player("encoder", [self.network.encoder, self.network.heads], optimizer),
        ]
        return Phase(name, players, steps, epochs, self.game["batch_size"])

    def encode(self, x: Tensor) -> Tensor:
        """Codes (B, latent)."""
        return self.network.encode(x)[0]

    def loss(self, batch: Batch, phase: str, player: str) -> dict[str, Tensor]:
        x, game = batch.image, self.game
        if player == "encoder":
            return {"adversarial": -self.critic(self.encode(x)).mean()}
        if player == "critic":
            with torch.no_grad():
                code = self.encode(x)
            prior = batch.rng.normal(code.shape).to(code)
            mix = batch.rng.uniform((len(batch),)).to(code)
            return {
                "wasserstein": self.critic(code).mean() - self.critic(prior).mean(),
                "penalty": game["penalty"] * gradient_penalty(self.critic, prior, code, mix),
            }
        code = self.encode(x)
        restored = self.network.decode(code)
        with kept_statistics(self.network, by="running"):
            again = self.encode(restored)
        squares, drift = (restored - x).square().flatten(1), (code - again).square()
        if self.error == "root":
            error, drift = (squares.sum(1) + 1e-8).sqrt(), drift.sum(1)
        else:
            error = squares.mean(1)
        return {"restoration": error.mean(), "consistency": game["consistency"] * drift.mean()}

    @torch.no_grad()
    def maps(self, batch: Batch) -> Maps:
        restored = self.network(batch.image)
        return Maps(map=self.residual(batch.image, restored), reconstruction=restored)


@register(
    "caae",
    paper="Chen 2018",
    dims=(2, 3),
    presets={"laptop": _LAPTOP},
    postprocess=("foreground",),
    preprocess=ARTICLE_RANGE,
    tiny={**_TINY, "width": 8, "levels": 3},
    options=GAME,
)
def constrained_adversarial_autoencoder(
    dims: int = 2,
    channels: int = 1,
    size: int = 256,
    latent: int = 128,
    width: int = 16,
    levels: int = 4,
    **game: Unpack[Game],
) -> Method:
    """Constrained adversarial autoencoder: a critic shapes the codes, and x and its restoration share one.

    Chen and Konukoglu, MIDL 2018: a residual autoencoder is trained on the root of the summed
    squared error and on half the squared distance between the code of an image and that of its
    restoration, which is encoded with the running statistics of the batch norms; a Wasserstein
    critic of 200 and 400 units with gradient penalty 10 pulls the codes towards the standard
    normal. Adam 2e-5, batches of 64, 300 epochs; the critic has 200 updates a step in the first 20
    and 20 after them. Images are corrected for their bias field (step ``n4``, not part of the
    default), z-scored in the brain, and -3.5 outside it. The map is the absolute residual in the
    brain. The form of a comparative study is ``caae_baur``.

    Departures:
        critic: each of its turns sees other images and other draws of the prior; the release
            repeats one batch.
        Adam: starts anew after the warm-up.
        spread: the decoder's second output, a map of spreads that nothing uses, is left out.
        activations: the release as published passes tensors where functions belong and doesn't run;
            they are read as leaky ReLUs of slope 0.2.
        frame: the scan in a square of ``size``; the release cuts 198 of the columns and pads by one
            or two.
        score: the mean of the map in the foreground; the article scores pixels only.
        third axis: ours.

    Args:
        size: pixels along each axis, a multiple of 2 to the power of ``levels``.
        width: channels of the first convolution, even.
        levels: halvings of the image.
    """
    return ConstrainedAdversarial(
        network=ResidualAutoencoder(dims, channels, size, latent, width, levels),
        critic=critic(latent, (200, 400)),
        error="root",
        residual=absolute,
        game=game,
    )


@register(
    "caae_baur",
    paper="Chen 2018; Baur 2021",
    dims=(2, 3),
    presets={"code": {"norm": "affine"}, "laptop": {**_LAPTOP, "width": 16, "dropout": 0.0}},
    postprocess=BAUR_POSTPROCESS,
    smallest_component=7,
    preprocess=BAUR_RANGE,
    tiny={**_TINY, "dropout": 0.0, "postprocess": ()},
    options=GAME(
        consistency=1.0, warmup_turns=(20, 20), warmup_epochs=6, epochs=1000, batch_size=8, lr=1e-3
    ),
)
def constrained_adversarial_port(
    dims: int = 2,
    channels: int = 1,
    size: int = 128,
    latent: int = 128,
    width: int = 32,
    dropout: float = 0.1,
    norm: Norm = "batch",
    **game: Unpack[Game],
) -> Method:
    """Constrained adversarial autoencoder in the form of a comparative study.

    ``caae`` as ported by Baur et al., Medical Image Analysis 2021: the network of ``ae_dense`` with
    16 x 16 features before the code, mean squared errors of image and code, a critic of 100 and 50
    units with 20 updates a step, 20 updates of the autoencoder a step in the first 6 epochs; Adam
    1e-3, batches of 8; range, map and post-processing of ``ae_dense``.

    Departures:
        norm: batch norms that normalise; in the release they never do (``code``).
        stop: after 1000 epochs, the last weights; the release looks at the absolute error of healthy
            validation images and stops after 5 epochs without gain.
        penalty: of codes between those of images and draws of the prior; the release walks from the
            prior away from the images, and its script weighs the penalty 1 where its options say 10.
        initial weights: PyTorch's; Glorot with zero biases in the release.
        score: the mean of the map over the foreground; the study scores voxels only.
        third axis: ours.

    Args:
        size: pixels along each axis, a power of two times 16.
        dropout: on the code.
        norm: ``batch``, or ``affine`` for a learned scale and shift only.
    """
    network = BaurAutoencoder(
        dims, channels, size, Code(latent), Levels(width, smallest=16, norm=norm),
        dropout=dropout, restoring_dropout=0.0,
    )  # fmt: skip
    return ConstrainedAdversarial(
        network=network,
        critic=critic(latent, (100, 50)),
        error="mean",
        residual=positive,
        game=game,
    )
