"""The slices behind some others, predicted: what a healthy brain goes on like."""

from __future__ import annotations

from typing import Unpack

import torch
from torch import Tensor, nn

from normscan.methods.adversarial.game import Rounds, played, rounds
from normscan.methods.base import Batch, Maps, Method, Phase, Player, adam
from normscan.methods.reconstruction import squared
from normscan.networks.predicting import AttentiveCritic, SkipTranslator
from normscan.objectives.losses import gradient_penalty
from normscan.registry import register

SLICES = 3  # that are seen, and that are predicted
PENALTY_WEIGHT = 10.0


class NextSlices(Method):
    """Three slices tell the next three; see ``madgan``.

    Args:
        network: (B, 3 C, H, W) to as many.
        critic: slices to numbers, high for real ones.
        error: weight of the absolute error.
        phase: of training.
    """

    context = SLICES

    def __init__(
        self, network: SkipTranslator, critic: nn.Module, error: float, phase: Phase
    ) -> None:
        super().__init__()
        self.network, self.critic, self.error = network, critic, error
        self._phase = phase

    def phases(self) -> list[Phase]:
        return [self._phase]

    @staticmethod
    def seen_and_next(batch: Batch) -> tuple[Tensor, Tensor]:
        """The slices before each one, and it with those behind it, (B, 3 C, H, W) in -1..1."""
        around = batch.context
        if around is None:  # a slice by itself repeats itself
            around = batch.image[:, :, None].expand(-1, -1, 2 * SLICES + 1, -1, -1)
        x = 2 * around.movedim(2, 1) - 1
        return x[:, :SLICES].flatten(1, 2), x[:, SLICES : 2 * SLICES].flatten(1, 2)

    def loss(self, batch: Batch, phase: str, player: str) -> dict[str, Tensor]:
        seen, real = self.seen_and_next(batch)
        if player == "critic":
            with torch.no_grad():
                fake = self.network(seen)
            mix = batch.rng.uniform((len(real),)).to(real)
            return {
                "wasserstein": self.critic(fake).mean() - self.critic(real).mean(),
                "penalty": PENALTY_WEIGHT * gradient_penalty(self.critic, real, fake, mix),
            }
        fake = self.network(seen)
        return {
            "adversarial": -self.critic(fake).mean(),
            "error": self.error * (fake - real).abs().mean(),
        }

    @torch.no_grad()
    def maps(self, batch: Batch) -> Maps:
        seen, real = self.seen_and_next(batch)
        fake, channels = self.network(seen), batch.image.shape[1]
        restored = fake[:, :channels]
        return Maps(
            map=squared(real[:, :channels], restored) / 4,
            score=(real - fake).square().flatten(1).mean(1),
            reconstruction=(restored + 1) / 2,
        )


@register(
    "madgan",
    paper="Han 2021",
    dims=(2,),
    presets={
        "laptop": {
            "size": 64, "width": 16, "turns": 1, "batch_size": 8, "steps": 400, "lr": 5e-4,
        },
    },
    # What lies above 1 could not be predicted by a tanh.
    preprocess={"scaling": "percentile", "limit": 1.0},
    reduction="mean",
    tiny={
        "size": 32, "width": 6, "turns": 1, "batch_size": 8, "steps": 120, "lr": 2e-3,
        "attention": 1,
    },
    options=rounds,
)  # fmt: skip
def madgan(
    dims: int = 2,
    channels: int = 1,
    size: int = 256,
    width: int = 64,
    attention: int = 3,
    error: float = 100.0,
    turns: int = 1,
    **training: Unpack[Rounds],
) -> Method:
    """Prediction of the next three slices from three, by a GAN with self-attention (MADGAN).

    Han et al., BMC Bioinformatics 2021: a U-Net with self-attention learns on healthy brains to
    tell three axial slices from the three before them (100 mean |error| + a Wasserstein critic with
    gradient penalty 10; batches of 64, 1.8 million updates). A scan's score is its mean squared
    error over all such threes. Nothing was released: networks (4x4 convolutions of stride 2 down to
    4x4 pixels, 64 to 512 channels, self-attention in the three deepest levels, a critic with
    spectral norm and as much of it), Adam (2e-4, betas 0.5 and 0.9), passes, and one update of the
    critic for each one of the network are our choice. The map is the squared error of the slice
    itself, the first of the three. Needs volumes. Images must lie in 0..1, which is made -1..1.

    Departures:
        slices: each one in turn is the first of three that are predicted; the first and the last
            slices of a volume, which lack neighbours, repeat theirs.
        size: the whole slice is brought to a square; the article crops 256 x 176 pixels.

    Args:
        size: pixels along each axis, 4 times a power of two.
        width: channels of the first convolution.
        attention: levels with self-attention in either network.
        error: weight of the absolute error.
        turns: updates of the critic for each one of the network.
        batch_size: threes of slices in an update.
        epochs: passes over the training slices.
        steps: updates of the network instead of ``epochs``.
    """
    planes = SLICES * channels
    network = SkipTranslator(planes, planes, size, width, attention)
    critic = AttentiveCritic(planes, size, width, attention)
    optimizer = adam(training["lr"], betas=(0.5, 0.9))
    players = [
        Player("critic", [critic], optimizer, turns),
        Player("network", [network], optimizer),
    ]
    phase = played("predict", players, training, batches=turns)
    return NextSlices(network, critic, error, phase)
