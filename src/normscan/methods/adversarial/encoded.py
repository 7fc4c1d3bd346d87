"""Autoencoders whose restorations are encoded once more: healthy codes come back as they were."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Unpack

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from normscan.methods.adversarial.game import Coded, coded, played
from normscan.methods.base import Batch, Maps, Method, Phase, Player, adam
from normscan.methods.reconstruction import absolute
from normscan.networks.dcgan import Judge, Maker, initialise
from normscan.registry import register

# Below this loss the discriminator has won, and nothing can be learnt from it.
WON = 1e-5


@dataclass(frozen=True)
class Weights:
    """Of the generator's terms: features of the discriminator, image, code."""

    adversarial: float
    image: float
    code: float

    @classmethod
    def of(cls, given: Coded) -> Weights:
        """Those among the shared arguments."""
        return cls(given["adversarial"], given["image"], given["code"])


def answered(logits: Tensor, answer: float) -> Tensor:
    """Mean binary cross entropy of logits that should all say so."""
    return F.binary_cross_entropy_with_logits(logits, torch.full_like(logits, answer))


class Recoded(Method):
    """Encoder, decoder and an encoder of what was decoded; one phase trains all there is.

    Args:
        encoder: images to codes.
        decoder: codes to images.
        second: restorations to codes; None for the encoder.
        phase: of training.
    """

    def __init__(
        self, encoder: nn.Module, decoder: nn.Module, second: nn.Module | None, phase: Phase
    ) -> None:
        super().__init__()
        self.encoder, self.decoder, self.second = encoder, decoder, second
        self._phase = phase

    def phases(self) -> list[Phase]:
        return [self._phase]

    def passed(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Code, restoration and the restoration's code of images."""
        code = self.encoder(x)
        restored = self.decoder(code)
        second = self.encoder if self.second is None else self.second
        return code, restored, second(restored)


class TwiceEncoded(Recoded):
    """Encoder, decoder, a second encoder, and a discriminator; see ``ganomaly``."""

    won: Tensor

    def __init__(
        self, encoder: Judge, decoder: Maker, second: Judge, discriminator: Judge,
        weights: Weights, phase: Phase,
    ) -> None:  # fmt: skip
        super().__init__(encoder, decoder, second, phase)
        self.discriminator, self.weights = discriminator, weights
        self.register_buffer("won", torch.zeros((), dtype=torch.bool))
        initialise(self)

    def loss(self, batch: Batch, phase: str, player: str) -> dict[str, Tensor]:
        x = 2 * batch.image - 1
        judge = self.discriminator
        if player == "discriminator":
            if self.won:
                initialise(judge)
                self.won.fill_(False)
            with torch.no_grad():
                restored = self.passed(x)[1]
            real, fake = answered(judge(x), 1.0), answered(judge(restored), 0.0)
            self.won.copy_((real + fake).detach() / 2 < WON)
            return {"real": real / 2, "fake": fake / 2}
        code, restored, again = self.passed(x)
        features = judge.features(x) - judge.features(restored)
        weights = self.weights
        return {
            "features": weights.adversarial * features.square().mean(),
            "image": weights.image * (restored - x).abs().mean(),
            "code": weights.code * (again - code).square().mean(),
        }

    @torch.no_grad()
    def maps(self, batch: Batch) -> Maps:
        x = 2 * batch.image - 1
        code, restored, again = self.passed(x)
        return Maps(
            map=absolute(x, restored) / 2,
            score=(again - code).square().mean(1),
            reconstruction=(restored + 1) / 2,
        )


@register(
    "ganomaly",
    paper="Akcay 2018",
    dims=(2,),
    presets={
        "laptop": {"size": 64, "width": 16, "batch_size": 16, "steps": 500, "lr": 5e-4},
    },
    # What lies above 1 could not be restored by a tanh.
    preprocess={"scaling": "percentile", "limit": 1.0},
    tiny={"size": 32, "width": 12, "latent": 32, "batch_size": 8, "steps": 120, "lr": 2e-3},
    options=coded(epochs=15),
)
def ganomaly(
    dims: int = 2,
    channels: int = 1,
    size: int = 32,
    width: int = 64,
    latent: int = 100,
    **training: Unpack[Coded],
) -> Method:
    """Autoencoder whose restorations are encoded again; the score is how far the codes are apart.

    Akcay et al., ACCV 2018 (GANomaly): encoder, decoder and a second encoder of 4x4 convolutions of
    stride 2 down to 4x4, 64 channels that double, a code of 100 numbers, images in -1..1 of 32
    pixels. A discriminator of the encoder's form learns real from restored images (binary cross
    entropy); the others learn 1 mean squared difference of its last features + 50 mean |x -
    restoration| + 1 mean squared difference of the codes (Adam 2e-4, betas 0.5 and 0.999, batches of
    64, 15 passes). A discriminator whose loss falls below 1e-5 begins anew. The image score is the
    mean squared difference of the codes. Images must lie in 0..1.

    Departures:
        batch norm: with its running statistics when scoring; the release scores in training mode, so
            that a scan's score hangs on the others of its batch.
        turns: each player draws a batch of its own, the discriminator first; in the release both see
            one batch and the restorations before the generator's update.
        map: |x - restoration|, ours; the article scores images.
        scaling: each scan's 99th percentile becomes 1; the release normalises 8-bit pictures.
        weights: the last ones; the release keeps the pass with the best AUROC on the test set.

    Args:
        size: pixels along each axis, 4 times a power of two.
        adversarial: weight of the discriminator's features.
    """
    judge = lambda outputs: Judge(dims, channels, size, outputs, width)  # noqa: E731
    encoder, second, discriminator = judge(latent), judge(latent), judge(1)
    decoder = Maker(dims, channels, size, latent, width)
    optimizer = adam(training["lr"], betas=(0.5, 0.999))
    players = [
        Player("discriminator", [discriminator], optimizer),
        Player("generator", [encoder, decoder, second], optimizer),
    ]
    phase = played("game", players, training)
    return TwiceEncoded(encoder, decoder, second, discriminator, Weights.of(training), phase)
