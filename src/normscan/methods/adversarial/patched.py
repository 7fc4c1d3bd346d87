"""Small patches of healthy tissue: what a trained adversary says of the patch around each pixel."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any, Unpack

import torch
from torch import Tensor

from normscan.methods.adversarial.encoded import TwiceEncoded, Weights
from normscan.methods.adversarial.game import Coded, Rounds, coded, played, rounds
from normscan.methods.adversarial.search import Game
from normscan.methods.base import Batch, Maps, Method, Phase, Player, adam
from normscan.networks.dcgan import Judge, Maker, initialise
from normscan.networks.patch import drawn_patches, told_around
from normscan.registry import register


@dataclass(frozen=True)
class Patches:
    """Attributes: side in pixels, how many an image gives to an update, pixels between at test."""

    length: int
    count: int
    stride: int

    def drawn(self, batch: Batch) -> Tensor:
        """Random patches in -1..1, half of each at least tissue."""
        x = 2 * batch.image - 1
        return drawn_patches(x, batch.foreground, batch.rng, self.count, self.length)


class Doubted(Method):
    """The discriminator of a patch GAN doubts what it didn't learn; see ``brain_lesion_gan``."""

    def __init__(
        self, generator: Maker, discriminator: Judge, latent: int, patches: Patches, phase: Phase
    ) -> None:
        super().__init__()
        self.generator, self.discriminator = generator, discriminator
        initialise(self)
        self._patches, self._phase = patches, phase
        self._game = Game(generator, discriminator, latent)

    def phases(self) -> list[Phase]:
        return [self._phase]

    def loss(self, batch: Batch, phase: str, player: str) -> dict[str, Tensor]:
        return self._game.loss(self._patches.drawn(batch), batch, player)

    @torch.no_grad()
    def maps(self, batch: Batch) -> Maps:
        doubt = lambda patches: torch.sigmoid(-self.discriminator(patches)[:, 0])  # noqa: E731
        x, patches = 2 * batch.image - 1, self._patches
        return Maps(map=told_around(x, patches.length, patches.stride, doubt))


@register(
    "brain_lesion_gan",
    paper="Alex 2017",
    dims=(2,),
    presets={
        "laptop": {
            "size": 96, "side": 32, "width": 16, "stride": 4, "batch_size": 8, "count": 4,
            "steps": 600,
        },
    },
    postprocess=("foreground",),
    smallest_component=20,
    # What lies above 1 could not be made by a tanh.
    preprocess={"scaling": "percentile", "limit": 1.0},
    tiny={
        "size": 32, "side": 16, "width": 8, "latent": 16, "stride": 4, "batch_size": 8, "count": 4,
        "steps": 300, "lr": 1e-3,
    },
    options=rounds(batch_size=8, epochs=20),
)  # fmt: skip
def brain_lesion_gan(
    dims: int = 2,
    channels: int = 1,
    size: int = 240,
    side: int = 64,
    width: int = 64,
    latent: int = 100,
    stride: int = 2,
    count: int = 8,
    **training: Unpack[Rounds],
) -> Method:
    """Discriminator of a generator of healthy patches, slid over the brain.

    Alex et al., SPIE Medical Imaging 2017: a GAN learns about 13,000 patches without lesions of four
    MR sequences. Its discriminator, near 0.5 for both healthy and made patches at the end, is kept
    and slid over the brain; lesions are where it says less. Nothing was released, and the abstract
    is all that was read: side (64), networks (deep convolutional GAN, 64 to 512 channels), codes
    uniform in -1..1, training (binary cross entropy, Adam 2e-4, betas 0.5 and 0.999, 64 patches in an
    update), passes, stride, and the component that is small enough to be dropped are our choice.
    The map is 1 - the discriminator's probability of the patch around a pixel. Images must lie in
    0..1, which is made -1..1.

    Departures:
        patches: drawn anew in each update where half of one is tissue, from whole slices.
        score: mean of the map over the foreground; the article scores pixels.

    Args:
        size: pixels along each axis.
        side: of a patch in pixels, 4 times a power of two.
        stride: pixels between the middles of patches at test.
        count: patches that an image gives to an update.
    """
    generator = Maker(dims, channels, side, latent, width)
    discriminator = Judge(dims, channels, side, 1, width)
    optimizer = adam(training["lr"], betas=(0.5, 0.999))
    players = [
        Player("discriminator", [discriminator], optimizer),
        Player("generator", [generator], optimizer),
    ]
    phase = played("gan", players, training)
    return Doubted(generator, discriminator, latent, Patches(side, count, stride), phase)


class TwiceEncodedPatches(TwiceEncoded):
    """Codes of patches and of their restorations; see ``chronic_infarct``."""

    def __init__(self, *parts: Any, patches: Patches) -> None:
        super().__init__(*parts)
        self._patches = patches

    def loss(self, batch: Batch, phase: str, player: str) -> dict[str, Tensor]:
        patches = (self._patches.drawn(batch) + 1) / 2
        return super().loss(replace(batch, image=patches), phase, player)

    @torch.no_grad()
    def maps(self, batch: Batch) -> Maps:
        def apart(patches: Tensor) -> Tensor:
            code, _, again = self.passed(patches)
            return (again - code).square().sum(1)

        x, patches = 2 * batch.image - 1, self._patches
        return Maps(map=told_around(x, patches.length, patches.stride, apart))


@register(
    "chronic_infarct",
    paper="van Hespen 2021",
    dims=(2,),
    presets={
        "laptop": {
            "size": 96, "width": 16, "latent": 50, "stride": 3, "batch_size": 16, "count": 8,
            "steps": 600, "lr": 5e-4,
        },
    },
    postprocess=("foreground",),
    reduction="max",
    smallest_component=10,
    # What lies above 1 could not be restored by a tanh.
    preprocess={"scaling": "percentile", "limit": 1.0},
    tiny={
        "size": 32, "width": 8, "latent": 16, "stride": 3, "batch_size": 8, "count": 8,
        "steps": 120, "lr": 2e-3,
    },
    options=coded(batch_size=16, epochs=50),
)  # fmt: skip
def chronic_infarct(
    dims: int = 2,
    channels: int = 1,
    size: int = 256,
    side: int = 15,
    width: int = 32,
    latent: int = 100,
    stride: int = 1,
    count: int = 16,
    **training: Unpack[Coded],
) -> Method:
    """Autoencoder of small patches whose restorations are encoded again, pixel by pixel.

    van Hespen et al., Scientific Reports 2021: patches of 15 x 15 voxels of T1-weighted and FLAIR
    images with normal-appearing tissue train an adversarial autoencoder with a second encoder, as
    ``ganomaly`` does; the map is the squared distance of the codes of the patch around each voxel,
    and what exceeds a threshold in it is a suspected infarct. Nothing was released, and the
    released network of GANomaly takes no patches of 15: 3x3 convolutions of stride 2 (32 and 64
    channels) down to 4x4 and a code of 100 numbers stand for it. Those, the weights (1 feature, 50
    image, 1 code) and the training (Adam 2e-4, betas 0.5 and 0.999) are our choice. Images must lie
    in 0..1, which is made -1..1.

    Departures:
        patches: drawn anew in each update where half of one is tissue, from whole slices.
        score: the map's largest value, ours; components of 10 pixels or fewer are dropped.
        white matter lesions: also score high, and the article's reader tells them apart by eye.

    Args:
        size: pixels along each axis.
        side: of a patch in pixels, 4 times a power of two, or one less.
        stride: pixels between the middles of patches at test.
        count: patches that an image gives to an update.
        adversarial: weight of the discriminator's features.
    """
    judge = lambda outputs: Judge(dims, channels, side, outputs, width, 3)  # noqa: E731
    encoder, second, discriminator = judge(latent), judge(latent), judge(1)
    decoder = Maker(dims, channels, side, latent, width, 3)
    optimizer = adam(training["lr"], betas=(0.5, 0.999))
    players = [
        Player("discriminator", [discriminator], optimizer),
        Player("generator", [encoder, decoder, second], optimizer),
    ]
    phase = played("game", players, training)
    return TwiceEncodedPatches(
        encoder, decoder, second, discriminator, Weights.of(training), phase,
        patches=Patches(side, count, stride),
    )  # fmt: skip
