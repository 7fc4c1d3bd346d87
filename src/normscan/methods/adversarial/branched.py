"""Translation of images to healthy by a network with a branch for each class."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from typing import Literal, Unpack

import torch
from torch import Tensor
from torch.nn import functional as F

from normscan.methods.adversarial.cycles import ANOMALOUS, mean_of
from normscan.methods.adversarial.game import Rounds, played, rounds
from normscan.methods.base import Batch, Maps, Method, Phase, Player, adam
from normscan.methods.reconstruction import absolute
from normscan.networks.descargan import BranchedCritic, BranchedTranslator
from normscan.objectives.losses import gradient_penalty
from normscan.registry import register

Side = Literal[0, 1]
SIDES: tuple[Side, Side] = (0, 1)
NAMES = ("healthy", "anomalous")


@dataclass(frozen=True)
class BranchWeights:
    """Of cycle and identity, of the critic's answers, its classes and its gradient penalty."""

    cycle: float
    identity: float
    answers: float
    classes: float
    penalty: float


def spanned(x: Tensor) -> Tensor:
    """Each image from its minimum, -1, to its maximum, 1; a constant one is -1."""
    low, high = x.amin((1, 2, 3), keepdim=True), x.amax((1, 2, 3), keepdim=True)
    return 2 * (x - low) / (high - low).clamp_min(1e-6) - 1


class Branched(Method):
    """Translator and critic of two classes; see ``descargan``.

    Args:
        translator: images and a class to images.
        critic: images and a class to numbers and logits.
        weights: of the terms.
        noise: most that is added to images, evenly distributed.
        flips: mirror images along both axes at random in training.
        phase: of both players.
    """

    def __init__(
        self, translator: BranchedTranslator, critic: BranchedCritic, weights: BranchWeights,
        noise: float, flips: bool, phase: Phase,
    ) -> None:  # fmt: skip
        super().__init__()
        self.translator, self.critic, self.weights = translator, critic, weights
        self.noise, self.flips = noise, flips
        self._phase = phase

    def phases(self) -> list[Phase]:
        return [self._phase]

    def loss(self, batch: Batch, phase: str, player: str) -> dict[str, Tensor]:
        assert batch.label is not None
        x = 2 * batch.image - 1
        for axis in (-1, -2) if self.flips else ():
            turned = batch.rng.uniform((len(x), 1, 1, 1)).to(x) < 0.5
            x = torch.where(turned, x.flip(axis), x)
        noise = self.noise * batch.rng.uniform(x.shape).to(x)
        members = [batch.label != ANOMALOUS, batch.label == ANOMALOUS]
        if player == "critic":
            return self._critic(x + noise, noise, members, batch)
        return self._translator(x + noise, noise, members)

    def _answers(self, side: Side, x: Tensor) -> Tensor:
        answers: Tensor = self.critic(x, side)[0]
        return answers

    def _critic(
        self, x: Tensor, noise: Tensor, members: list[Tensor], batch: Batch
    ) -> dict[str, Tensor]:
        terms: dict[str, Tensor] = {}
        weights, mix = self.weights, batch.rng.uniform((len(x),)).to(x)
        for side, name in zip(SIDES, NAMES, strict=True):
            own = members[side]
            share = own.sum() / len(x)
            with torch.no_grad():
                fake = self.translator(x, side) + noise
            real, logits = self.critic(x[own], side)
            told = F.cross_entropy(logits, torch.full((len(logits),), side, device=x.device))
            penalty = gradient_penalty(partial(self._answers, side), x, fake, mix)
            apart = self.critic(fake, side)[0].mean() - mean_of(real)
            terms[f"wasserstein of {name}"] = weights.answers * share * apart
            if own.any():
                terms[f"class of {name}"] = weights.classes * share * told
            terms[f"penalty of {name}"] = weights.penalty * penalty
        return terms

    def _translator(self, x: Tensor, noise: Tensor, members: list[Tensor]) -> dict[str, Tensor]:
        fakes = [self.translator(x, side) + noise for side in SIDES]
        terms: dict[str, Tensor] = {}
        for side, name in zip(SIDES, NAMES, strict=True):
            own, other = members[side], SIDES[1 - side]
            real, logits = self.critic(fakes[side], side)
            told = F.cross_entropy(logits, torch.full((len(x),), side, device=x.device))
            terms[f"adversarial to {name}"] = -real.mean()
            terms[f"class of {name}"] = told
            if not own.any():
                continue
            back = self.translator(fakes[other][own], side) + noise[own]
            weights = self.weights
            terms[f"cycle from {name}"] = weights.cycle * F.mse_loss(back, x[own])
            terms[f"identity of {name}"] = weights.identity * F.mse_loss(fakes[side][own], x[own])
        return terms

    @torch.no_grad()
    def maps(self, batch: Batch) -> Maps:
        x = spanned(2 * batch.image - 1)
        healthy = self.translator(x, SIDES[0])
        shown = spanned(healthy)
        return Maps(
            map=absolute(x, shown) / 2,
            score=self.critic(x, SIDES[0])[1][:, 1],
            reconstruction=(healthy + 1) / 2,
        )


@register(
    "descargan",
    paper="Wolleb 2020",
    regime="image-labels",
    dims=(2,),
    presets={
        "laptop": {
            "size": 64, "width": 12, "critic_width": 8, "batch_size": 8, "steps": 300, "turns": 2,
            "lr": 5e-4,
        },
    },
    preprocess={"scaling": "minmax", "limit": 1.0},
    tiny={
        "size": 32, "width": 6, "critic_width": 4, "halvings": 4, "batch_size": 2, "steps": 80,
        "turns": 1, "lr": 3e-3, "flips": False,
    },
    options=rounds(lr=1e-4, batch_size=10, epochs=500),
)  # fmt: skip
def descargan(
    dims: int = 2,
    channels: int = 1,
    size: int = 256,
    width: int = 64,
    critic_width: int = 32,
    halvings: int = 6,
    cycle: float = 50.0,
    identity: float = 50.0,
    answers: float = 20.0,
    classes: float = 5.0,
    penalty: float = 10.0,
    noise: float = 0.05,
    flips: bool = True,
    turns: int = 5,
    **training: Unpack[Rounds],
) -> Method:
    """Translation to healthy and to diseased by branches of one network, from labels only (DeScarGAN).

    Wolleb et al., MICCAI 2020: a U-Net with planes for the wanted class beside the image and, for
    each class, last convolutions of its own. Terms: a critic with an answer for each class
    (Wasserstein with gradient penalty 10; 20 for its answers), the class that it tells (5 for real
    images in its own training, 1 for both translations), the way back (50 mean squared) and, that
    images translated to their own class stay (50). Noise of up to 0.05 is added to images and
    translations alike. The critic learns in five updates for each one of the translator, its answers
    to real and translated images weighed by the share of their class. 64 and 32 channels, Adam
    1e-4, betas 0.5 and 0.999, gradients up to 10, batches of 10, 500 passes. The map is the absolute
    difference of image and translation to healthy, both from -1 to 1 by their extremes; the score is
    the critic's logit of the anomalous class. Each scan is brought from its minimum to its maximum.

    As in the release the translator normalises by the statistics of a batch in training and of a
    single image at test, its output too, and images are mirrored along both axes.

    Departures:
        turns: the translator draws a batch of its own; in the release it is the critic's last.
        precision: single, where the release mixes half and single.
        threshold: the detector's; Otsu's, image by image, in the release.

    Args:
        dims: spatial axes, 2.
        size: pixels along each axis, a multiple of 2**halvings and of 8.
        critic_width: channels of the critic's first convolution.
        halvings: of the critic, one of them before its classes only.
        cycle: weight of the way back.
        identity: weight of what stays in its own class.
        answers: weight of the critic's answers in its own training.
        classes: weight of the classes in the critic's training.
        penalty: weight of the critic's gradient penalty.
        noise: most that is added to images, which run from -1 to 1.
        flips: mirror images along both axes at random in training.
        turns: updates of the critic for each one of the translator.
        epochs: passes over the training images, counted in the critic's updates.
        steps: updates of the translator instead of ``epochs``.
    """
    translator = BranchedTranslator(channels, width)
    critic = BranchedCritic(channels, size, critic_width, halvings)
    optimizer = adam(training["lr"], betas=(0.5, 0.999))
    players = [
        Player("critic", [critic], optimizer, turns=turns, clip=10.0),
        Player("translator", [translator], optimizer, clip=10.0),
    ]
    phase = played("translate", players, training, batches=turns, part="healthy+labelled")
    weights = BranchWeights(cycle, identity, answers, classes, penalty)
    return Branched(translator, critic, weights, noise, flips, phase)
