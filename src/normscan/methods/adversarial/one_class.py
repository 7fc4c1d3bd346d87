"""Restorations that a Wasserstein critic takes for real, and codes that survive them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Unpack

import torch
from torch import Tensor, nn

from normscan.methods.adversarial.encoded import Recoded
from normscan.methods.adversarial.game import Rounds, played, rounds
from normscan.methods.base import Batch, Maps, Method, Phase, Player, adam
from normscan.methods.reconstruction import absolute
from normscan.networks.blocks import doublings
from normscan.networks.stargan import PatchCritic
from normscan.networks.unpadded import SMALLEST, CodeDecoder, UnpaddedEncoder
from normscan.objectives.losses import gradient_penalty
from normscan.objectives.similarity import ssim_map
from normscan.registry import register

WINDOW = 11


@dataclass(frozen=True)
class Weights:
    """Of code, image, structural similarity and gradient penalty."""

    code: float
    image: float
    similarity: float
    penalty: float


def dissimilarity(x: Tensor, restored: Tensor) -> Tensor:
    """Half of 1 - mean structural similarity of images in -1..1, 0 to 1."""
    return ((1 - ssim_map(x, restored, WINDOW, data_range=2.0).mean()) / 2).clamp(0, 1)


class OneClassGAN(Recoded):
    """An autoencoder against a Wasserstein critic; see ``cxr_gan_occ``."""

    def __init__(
        self, encoder: nn.Module, decoder: nn.Module, second: nn.Module, critic: PatchCritic,
        weights: Weights, phase: Phase,
    ) -> None:  # fmt: skip
        super().__init__(encoder, decoder, second, phase)
        self.critic, self.weights = critic, weights

    def loss(self, batch: Batch, phase: str, player: str) -> dict[str, Tensor]:
        x = 2 * batch.image - 1
        turned = batch.rng.uniform((len(x), 1, 1, 1)).to(x) < 0.5
        x, weights = torch.where(turned, x.flip(-1), x), self.weights
        if player == "critic":
            with torch.no_grad():
                fake = self.passed(x)[1]
            mix = batch.rng.uniform((len(x),)).to(x)
            return {
                "wasserstein": self.critic(fake).mean() - self.critic(x).mean(),
                "penalty": weights.penalty * gradient_penalty(self.critic, x, fake, mix),
            }
        code, restored, again = self.passed(x)
        return {
            "adversarial": -self.critic(restored).mean(),
            "code": weights.code * (code - again).square().mean(),
            "image": weights.image * (x - restored).abs().mean(),
            "similarity": weights.similarity * dissimilarity(x, restored),
        }

    @torch.no_grad()
    def maps(self, batch: Batch) -> Maps:
        x = 2 * batch.image - 1
        code, restored, again = self.passed(x)
        difference = absolute(x, restored)
        return Maps(
            map=difference / 2,
            score=(code - again).square().flatten(1).mean(1) + difference.flatten(1).mean(1),
            reconstruction=(restored + 1) / 2,
        )


@register(
    "cxr_gan_occ",
    paper="Tang 2019",
    dims=(2,),
    presets={
        "laptop": {
            "size": 64, "width": 16, "latent": 64, "batch_size": 8, "steps": 400, "turns": 2,
            "lr": 5e-4,
        },
    },
    # What lies above 1 could not be restored by a tanh.
    preprocess={"scaling": "percentile", "limit": 1.0},
    tiny={
        "size": 32, "width": 8, "latent": 32, "batch_size": 8, "steps": 130, "turns": 1, "lr": 1e-3,
    },
    options=rounds(lr=1e-4, batch_size=16, epochs=650),
)  # fmt: skip
def cxr_gan_occ(
    dims: int = 2,
    channels: int = 1,
    size: int = 128,
    width: int = 64,
    latent: int = 128,
    code: float = 1.0,
    image: float = 10.0,
    similarity: float = 20.0,
    penalty: float = 10.0,
    turns: int = 5,
    decayed: int = 100,
    **training: Unpack[Rounds],
) -> Method:
    """Autoencoder of chest radiographs against a critic, scored by image and code.

    Tang et al., ISBI 2019: three networks that learn normal radiographs only, an autoencoder, a
    critic that tells restorations from images, and an encoder of the restorations. The authors
    released nothing; the values are those of a later benchmark's port. Encoders go without padding
    from 128 pixels to one with 128 channels, images in -1..1. The critic learns with a gradient
    penalty of 10 (five updates for one of the others), the others -critic + 1 mean squared
    difference of the codes + 10 mean |x - restoration| + 20 times half of 1 - structural similarity
    (window of 11 pixels). Adam 1e-4, betas 0.5 and 0.999, batches of 16 that are mirrored at
    random, 650 passes, the rate falling to 0 in the last 100. The image score is the mean squared
    difference of the codes plus mean |x - restoration|. Images must lie in 0..1.

    Departures:
        penalty: in the same update as the rest of the critic's loss; the port makes two of them.
        similarity: where the window lies inside the image, for values that are 2 apart; that of the
            port is from a package that isn't in its repository.
        turns: each player draws a batch of its own; in the port the others see the critic's last.
        rate: falls step by step, in the port pass by pass.
        map: |x - restoration|, ours; the article scores images.

    Args:
        size: pixels along each axis, 8 times a power of two.
        code: weight of the codes.
        image: weight of the restoration.
        similarity: weight of the structural similarity.
        penalty: weight of the critic's gradient penalty.
        turns: updates of the critic for each one of the others.
        decayed: the last passes of ``epochs``, in which the rate falls to 0.
        steps: updates of the autoencoder instead of ``epochs``.
    """
    encoder, second = (UnpaddedEncoder(channels, size, latent, width) for _ in range(2))
    decoder = CodeDecoder(channels, size, latent, width)
    critic = PatchCritic(channels, size, width, doublings(size, SMALLEST) + 2)
    optimizer = adam(training["lr"], betas=(0.5, 0.999))

    def rate(step: int, steps: int) -> float:
        return min(1.0, (1 - step / steps) * training["epochs"] / max(decayed, 1))

    players = [
        Player("critic", [critic], optimizer, turns, schedule=rate),
        Player("autoencoder", [encoder, decoder, second], optimizer, schedule=rate),
    ]
    phase = played("game", players, training, batches=turns)
    weights = Weights(code, image, similarity, penalty)
    return OneClassGAN(encoder, decoder, second, critic, weights, phase)
