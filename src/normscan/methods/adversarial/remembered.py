"""A generator whose codes are mixtures of healthy ones, against a discriminator."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Unpack

import torch
from torch import Tensor, nn

from normscan.methods.adversarial.encoded import answered
from normscan.methods.adversarial.game import Coded, coded, played
from normscan.methods.base import Batch, Maps, Method, Phase, Player, adam
from normscan.methods.reconstruction import absolute
from normscan.networks.blocks import doublings
from normscan.networks.dcgan import Judge, downwards, initialise, upwards
from normscan.networks.memory import PlaceMemory, attention_entropy
from normscan.registry import register

CELL = 16  # pixels of an image in one place of the code


@dataclass(frozen=True)
class Weights:
    """Of image, discriminator, what the memory changes of a code, and entropy of its weights."""

    image: float
    adversarial: float
    code: float
    entropy: float


class RememberingGAN(Method):
    """Encoder, memory, decoder and discriminator; see ``memory_gan_oct``."""

    def __init__(
        self, encoder: nn.Module, memory: PlaceMemory, decoder: nn.Module, discriminator: Judge,
        weights: Weights, phase: Phase,
    ) -> None:  # fmt: skip
        super().__init__()
        self.encoder, self.memory, self.decoder = encoder, memory, decoder
        self.discriminator, self.weights, self._phase = discriminator, weights, phase
        initialise(self)

    def phases(self) -> list[Phase]:
        return [self._phase]

    def passed(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Restoration, code, what the memory makes of it, and the memory's weights."""
        code = self.encoder(x)
        mixture, attention = self.memory(code)
        return self.decoder(mixture), code, mixture, attention

    def loss(self, batch: Batch, phase: str, player: str) -> dict[str, Tensor]:
        x, weights, judge = 2 * batch.image - 1, self.weights, self.discriminator
        if player == "discriminator":
            with torch.no_grad():
                restored = self.passed(x)[0]
            return {"real": answered(judge(x), 1.0), "fake": answered(judge(restored), 0.0)}
        restored, code, mixture, attention = self.passed(x)
        return {
            "image": weights.image * (x - restored).abs().mean(),
            "adversarial": weights.adversarial * answered(judge(restored), 1.0),
            "code": weights.code * (code - mixture).square().mean(),
            "entropy": weights.entropy * attention_entropy(attention),
        }

    @torch.no_grad()
    def maps(self, batch: Batch) -> Maps:
        x = 2 * batch.image - 1
        restored, code, mixture, _ = self.passed(x)
        difference = absolute(x, restored)
        apart = (code - mixture).square().flatten(1).mean(1)
        return Maps(
            map=difference / 2,
            score=difference.flatten(1).mean(1) + apart,
            reconstruction=(restored + 1) / 2,
        )


@register(
    "memory_gan_oct",
    paper="Zhang 2020",
    dims=(2,),
    presets={
        "laptop": {
            "size": 64, "width": 16, "slots": 200, "batch_size": 16, "steps": 500,
            "lr": 1e-3,
        },
    },
    # What lies above 1 could not be restored by a tanh.
    preprocess={"scaling": "percentile", "limit": 1.0},
    tiny={
        "size": 32, "width": 8, "slots": 40, "batch_size": 8, "steps": 300,
        "lr": 3e-3,
    },
    options=coded(lr=1e-4, batch_size=16, epochs=60),
)  # fmt: skip
def memory_gan_oct(
    dims: int = 2,
    channels: int = 1,
    size: int = 256,
    width: int = 64,
    slots: int = 2000,
    shrink: float = 1.0,
    entropy: float = 2e-4,
    **training: Unpack[Coded],
) -> Method:
    """Adversarial autoencoder with a memory of healthy codes, for retinal scans.

    Zhang et al., ISBI 2020, screen OCT with a memory-augmented anomaly GAN: a generator that
    restores from a memory, a discriminator, and restoration and code as the score. Nothing was
    released and the text was not read, so that this is an approximation by the parts that its title
    names: the memory of Gong et al., ICCV 2019 (2,000 vectors, a softmax of cosines at each place
    of the code, weights up to their mean cut, their entropy in the loss) between an encoder
    and a decoder of 4x4 convolutions of stride 2 (64 to 512 channels, 16 pixels to a place), and
    GANomaly's weights: 50 mean |x - restoration| + 1 binary cross entropy + 1 mean squared change
    of the code by the memory + 0.0002 entropy. Adam 1e-4, betas 0.5 and 0.999. The score is mean
    |x - restoration| + that change, the map |x - restoration|. Images must lie in 0..1, which is
    made -1..1.

    Departures:
        all: networks, sizes, weights, training and score are our choice.

    Args:
        size: pixels along each axis, 16 times a power of two, at least 32.
        slots: vectors in the memory.
        shrink: times the mean weight, up to which a vector isn't used. Gong et al. give 1 to 3, but
            cosines are so alike at first that from 2 on none would be used.
        code: weight of what the memory changes of a code.
        entropy: weight of the entropy of the memory's weights.
    """
    doublings(size, CELL)  # refuses what doesn't fit
    widths = [width * 2**i for i in range(doublings(CELL, 1))]
    encoder = downwards(dims, [channels, *widths])
    decoder = nn.Sequential(*upwards(dims, [*widths[::-1], channels]))
    memory = PlaceMemory(slots, widths[-1], shrink / slots, cosine=True)
    discriminator = Judge(dims, channels, size, 1, width)
    optimizer = adam(training["lr"], betas=(0.5, 0.999))
    players = [
        Player("discriminator", [discriminator], optimizer),
        Player("generator", [encoder, memory, decoder], optimizer),
    ]
    phase = played("game", players, training)
    weights = Weights(training["image"], training["adversarial"], training["code"], entropy)
    return RememberingGAN(encoder, memory, decoder, discriminator, weights, phase)
