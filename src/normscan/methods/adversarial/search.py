"""A generator of healthy images, and the search for the code that comes nearest to a scan."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Unpack

import torch
from torch import Tensor

from normscan.methods.adversarial.encoded import answered
from normscan.methods.adversarial.game import Rounds, played, rounds
from normscan.methods.base import Batch, Maps, Method, Phase, Player, adam
from normscan.methods.reconstruction import absolute
from normscan.networks.dcgan import Judge, Maker, initialise
from normscan.objectives.descent import searched
from normscan.registry import register


class Game:
    """The losses of a generator that draws from codes uniform in -1..1 and of its discriminator.

    Args:
        generator: codes to images in -1..1.
        discriminator: images to logits, high for real ones.
        latent: numbers in a code.
    """

    def __init__(self, generator: Maker, discriminator: Judge, latent: int) -> None:
        self.generator, self.discriminator, self.latent = generator, discriminator, latent

    def codes(self, real: Tensor, batch: Batch) -> Tensor:
        """One for each of the images, by the batch's random numbers."""
        return 2 * batch.rng.uniform((len(real), self.latent)).to(real) - 1

    def loss(self, real: Tensor, batch: Batch, player: str) -> dict[str, Tensor]:
        """Binary cross entropies; the generator's is that of being taken for real."""
        z = self.codes(real, batch)
        if player == "generator":
            return {"adversarial": answered(self.discriminator(self.generator(z)), 1.0)}
        with torch.no_grad():
            fake = self.generator(z)
        judge = self.discriminator
        return {"real": answered(judge(real), 1.0), "fake": answered(judge(fake), 0.0)}


@dataclass(frozen=True)
class Search:
    """Attributes: updates of a code, Adam's rate, and the share of the features in the error."""

    updates: int
    lr: float
    share: float


class AnoGAN(Method):
    """The nearest healthy image is looked for; see ``anogan``."""

    needs_grad = True

    def __init__(
        self, generator: Maker, discriminator: Judge, latent: int, search: Search, phase: Phase
    ) -> None:
        super().__init__()
        self.generator, self.discriminator = generator, discriminator
        self.search = search
        initialise(self)
        self._game = Game(generator, discriminator, latent)
        self._phase = phase

    def phases(self) -> list[Phase]:
        return [self._phase]

    def loss(self, batch: Batch, phase: str, player: str) -> dict[str, Tensor]:
        return self._game.loss(2 * batch.image - 1, batch, player)

    def error(self, x: Tensor, restored: Tensor) -> Tensor:
        """Sums of |x - G(z)| and of the same of the features, weighed, (B,)."""
        judge = self.discriminator.features
        image = (x - restored).abs().flatten(1).sum(1)
        features = (judge(x) - judge(restored)).abs().flatten(1).sum(1)
        return (1 - self.search.share) * image + self.search.share * features

    def maps(self, batch: Batch) -> Maps:
        x, search = 2 * batch.image - 1, self.search
        found = searched(
            lambda z: self.error(x, self.generator(z)), self._game.codes(x, batch), search.updates,
            adam(search.lr, betas=(0.5, 0.999)),
        )  # fmt: skip
        with torch.no_grad():
            restored = self.generator(found)
            return Maps(
                map=absolute(x, restored) / 2,
                score=self.error(x, restored),
                reconstruction=(restored + 1) / 2,
            )


@register(
    "anogan",
    paper="Schlegl 2017",
    dims=(2,),
    presets={
        "code": {"turns": 2, "updates": 100, "epochs": 25, "batch_size": 64},
        "laptop": {
            "width": 16, "batch_size": 16, "steps": 800, "lr": 5e-4, "updates": 100,
            "search_lr": 2e-2,
        },
    },
    # What lies above 1 could not be restored by a tanh.
    preprocess={"scaling": "percentile", "limit": 1.0},
    tiny={
        "size": 16, "width": 8, "latent": 16, "batch_size": 8, "steps": 150, "lr": 2e-3,
        "updates": 20, "search_lr": 0.1,
    },
    options=rounds(batch_size=128, epochs=20),
)  # fmt: skip
def anogan(
    dims: int = 2,
    channels: int = 1,
    size: int = 64,
    width: int = 64,
    latent: int = 100,
    share: float = 0.1,
    updates: int = 500,
    search_lr: float = 1e-3,
    turns: int = 1,
    **training: Unpack[Rounds],
) -> Method:
    """Search for the most similar image of a healthy generator (AnoGAN).

    Schlegl et al., IPMI 2017: a deep convolutional GAN learns healthy patches of 64 x 64 pixels in
    -1..1, codes of 100 numbers (binary cross entropy, Adam 2e-4, 20 passes). For each image a code
    is moved for 500 steps down 0.9 sum |x - G(z)| + 0.1 sum |f(x) - f(G(z))|, f the last features of
    the discriminator. The map is |x - G(z)|, the image score that error where the search ends. The
    authors released nothing; the networks (5x5 kernels, 64 to 512 channels, codes uniform in -1..1)
    and the search (Adam 1e-3, beta 0.5) are those of the port that has the article's loss. ``code``
    is that port: 100 steps, two updates of the generator for each of the discriminator, 25 passes
    in batches of 64. The article's batch size isn't known. Images must lie in 0..1.

    Departures:
        patches: the article works on patches; here the whole slice is brought to that size.
        start: each image's search begins at a code of its own and with an Adam of its own; in the
            port it begins where that of the image before ended.

    Args:
        size: pixels along each axis, 4 times a power of two.
        width: channels next to the image.
        latent: numbers in the code.
        share: of the features in the error that is searched down; the image has the rest.
        updates: steps of the search.
        search_lr: learning rate of Adam in the search.
        turns: updates of the generator for each one of the discriminator.
        steps: updates of the discriminator instead of ``epochs``.
    """
    generator = Maker(dims, channels, size, latent, width, kernel=5)
    discriminator = Judge(dims, channels, size, 1, width, kernel=5)
    optimizer = adam(training["lr"], betas=(0.5, 0.999))
    players = [
        Player("discriminator", [discriminator], optimizer),
        Player("generator", [generator], optimizer, turns=turns),
    ]
    phase = played("gan", players, training)
    return AnoGAN(generator, discriminator, latent, Search(updates, search_lr, share), phase)
