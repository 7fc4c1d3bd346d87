"""Images restored from their own structures, which a network learns in another cohort."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from types import MappingProxyType
from typing import Unpack

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from normscan.errors import ArgumentError
from normscan.methods.adversarial.encoded import answered
from normscan.methods.adversarial.game import Rounds, played, rounds
from normscan.methods.base import Batch, Maps, Method, Phase, Player, Use, adam
from normscan.methods.reconstruction import absolute
from normscan.networks.dcgan import initialise
from normscan.networks.discriminators import PatchDiscriminator
from normscan.networks.structured import StructureNet, TextureNet, check_size
from normscan.registry import register

MAIN, OTHER = 0, 1  # parts of the first phase


@dataclass(frozen=True)
class Weights:
    """Of image, discriminator, structures of the restoration, and of adaptation to the scans."""

    image: float
    adversarial: float
    structure: float
    adaptation: float


class StructureTexture(Method):
    """A network of structures, one of texture, and a discriminator for each; see ``p_net``."""

    uses = MappingProxyType({"structures": Use(parts=("auxiliary",))})

    def __init__(
        self, structure: StructureNet, texture: TextureNet, classes: int, weights: Weights,
        judges: tuple[PatchDiscriminator, PatchDiscriminator], share: float, phases: list[Phase],
    ) -> None:  # fmt: skip
        super().__init__()
        self.structure, self.texture = structure, texture
        self.judge, self.structure_judge = judges
        self.classes, self.weights, self.share = classes, weights, share
        self._phases = phases

    def phases(self) -> list[Phase]:
        return self._phases

    def restored(self, x: Tensor, logits: Tensor) -> Tensor:
        """Images from images and the likeliest structures, which have no gradient."""
        likeliest = logits.argmax(1, keepdim=True) / max(1, self.classes - 1)
        image: Tensor = self.texture(x, likeliest.to(x))
        return image

    def loss(self, batch: Batch, phase: str, player: str) -> dict[str, Tensor]:
        if phase == "structure":
            return self._structure(batch, player)
        x, weights = batch.image, self.weights
        with torch.no_grad():
            logits = self.structure(x)
        if player == "judge":
            with torch.no_grad():
                restored = self.restored(x, logits)
            real, fake = answered(self.judge(x), 1.0), answered(self.judge(restored), 0.0)
            return {"real": real / 2, "fake": fake / 2}
        restored = self.restored(x, logits)
        terms = {
            "image": weights.image * (restored - x).abs().mean(),
            "adversarial": weights.adversarial * answered(self.judge(restored), 1.0),
        }
        if weights.structure:
            again = self.structure(restored)
            terms["structure"] = weights.structure * self.unlike(logits, again).mean()
        return terms

    @staticmethod
    def unlike(logits: Tensor, again: Tensor) -> Tensor:
        """Mean absolute difference of the structures' probabilities, (B,)."""
        return (logits.softmax(1) - again.softmax(1)).abs().flatten(1).mean(1)

    def _structure(self, batch: Batch, player: str) -> dict[str, Tensor]:
        part = torch.zeros(len(batch)) if batch.part is None else batch.part
        other = part.to(batch.image.device) == OTHER
        if player == "structure_judge":
            with torch.no_grad():
                maps = self.structure(batch.image).softmax(1)
            said = self.structure_judge(maps)
            told = other.reshape(-1, 1, 1, 1).to(said).expand_as(said)
            return {"real": F.binary_cross_entropy_with_logits(said, told)}
        logits = self.structure(batch.image)
        terms = {"segmentation": self.segmentation(logits[other], batch, other)}
        if self.weights.adaptation and (~other).any():
            said = self.structure_judge(logits[~other].softmax(1))
            terms["adversarial"] = self.weights.adaptation * answered(said, 1.0)
        return terms

    def segmentation(self, logits: Tensor, batch: Batch, other: Tensor) -> Tensor:
        """Cross entropy of the other cohort's structures; 0 where a batch has none of it.

        Raises:
            ArgumentError: there are more structures than the network tells apart.
        """
        if not len(logits):
            return logits.sum()
        assert batch.structures is not None
        labels = batch.structures[other][:, 0].long()
        if int(labels.max()) >= self.classes:
            raise ArgumentError(
                f"the auxiliary cohort's structures have the number {int(labels.max())}, but "
                f"classes={self.classes} tells 0 to {self.classes - 1} apart. Give more classes, or "
                "number the structures from 0."
            )
        return F.cross_entropy(logits, labels)

    @torch.no_grad()
    def maps(self, batch: Batch) -> Maps:
        x = batch.image
        logits = self.structure(x)
        restored = self.restored(x, logits)
        difference = absolute(x, restored)
        score = self.share * difference.flatten(1).mean(1)
        if self.share < 1:
            score = score + (1 - self.share) * self.unlike(logits, self.structure(restored))
        return Maps(map=difference, score=score, reconstruction=restored)


def steps_down(epochs: int, at: tuple[int, ...], first: float) -> Callable[[int, int], float]:
    """A rate that falls to a tenth at each of some passes, but only from the second on.

    Args:
        epochs: passes in all.
        at: passes at which it falls.
        first: factor from the first of them on; 0.1 to fall there as well.
    """

    def factor(step: int, steps: int) -> float:
        fallen = sum(step / steps * epochs >= epoch for epoch in at)
        return float(first * 0.1 ** (fallen - 1)) if fallen else 1.0

    return factor


@dataclass(frozen=True)
class Rates:
    """Adam as the authors use it: a discriminator's rate is a tenth, till the rates first fall.

    Attributes:
        lr: of a network that is no discriminator.
        epochs: passes in all.
        decays: passes at which the rates fall.
    """

    lr: float
    epochs: int
    decays: tuple[int, ...]

    def player(self, name: str, *modules: nn.Module) -> Player:
        """A player of these networks."""
        judges = isinstance(modules[0], PatchDiscriminator)
        rate, first = (0.1 * self.lr, 1.0) if judges else (self.lr, 0.1)
        optimizer = adam(rate, betas=(0.1, 0.9), weight_decay=1e-4)
        return Player(
            name, modules, optimizer, schedule=steps_down(self.epochs, self.decays, first)
        )


@register(
    "p_net",
    paper="Zhou 2020",
    dims=(2,),
    presets={
        "code": {"image": 100.0, "adversarial": 1.0, "structure": 0.0, "share": 1.0},
        "laptop": {
            "size": 64, "width": 12, "classes": 12, "structure_steps": 200, "steps": 300,
            "batch_size": 8, "decays": (400, 600, 700, 750),
        },
    },
    tiny={
        "size": 32, "width": 6, "classes": 4, "structure_steps": 30, "steps": 60, "batch_size": 8,
        "lr": 3e-3, "decays": (800, 800, 800, 800),
    },
    options=rounds(lr=1e-3, batch_size=8, epochs=800),
)  # fmt: skip
def p_net(
    dims: int = 2,
    channels: int = 1,
    size: int = 224,
    width: int = 64,
    classes: int = 12,
    image: float = 1.0,
    adversarial: float = 0.1,
    structure: float = 0.5,
    adaptation: float = 1e-4,
    share: float = 0.8,
    decays: tuple[int, int, int, int] = (20, 40, 80, 120),
    structure_steps: int | None = None,
    **training: Unpack[Rounds],
) -> Method:
    """Restoration of healthy images from their structures and their texture (P-Net).

    Zhou et al., ECCV 2020: a U-Net learns structures (12 classes of layers in OCT, or vessels) in
    another cohort and, by a discriminator of its output (weight 1e-4), in the healthy scans as
    well. A second network restores the image from the image and from its structures, of which
    alone there are skips. It learns 1 mean |x - restoration| + 0.1 binary cross entropy of a
    patch discriminator + 0.5 mean difference of the structures of image and restoration. Adam 1e-3
    (the discriminator's a tenth), betas 0.1 and 0.9, weight decay 1e-4, batches of 8, 800 passes,
    the rate falling to a tenth at the 20th, 40th, 80th and 120th. The map is |x - restoration|, the
    score 0.8 times its mean + 0.2 times the mean difference of the structures. ``code``, the
    authors' release, has the weights 100, 1 and 0, and the score is the map's mean. As there, the
    structures that the texture network sees are the likeliest ones, without gradient, and the
    discriminators' rates fall with the second of those passes first. Needs ``--auxiliary``, a
    cohort with structures. Images must lie in 0..1.

    Departures:
        structures: scored by their probabilities; the article doesn't say. Their difference counts
            from the first pass on, and their share of the score (0.2) is our choice.
        segmentation: cross entropy alone, its adversary with a gradient; in the release for OCT
            that has none, and cross entropy counts 100 beside it, which Adam doesn't see.
        batch norm: with running statistics in the structure network and when scoring; the release
            has it in training mode throughout, so that a scan's score hangs on the others of its
            batch.
        turns: each player draws a batch of its own; both see one in the release.

    Args:
        size: pixels along each axis, a multiple of 16.
        width: channels of the first level.
        classes: structures of the auxiliary cohort, the background among them.
        image: weight of the restoration.
        adversarial: weight of the discriminator of restorations.
        structure: weight of the structures of the restoration.
        adaptation: weight of the discriminator of structures; 0 for none.
        share: of the image in the score; the structures have the rest.
        decays: passes at which the rates fall, in parts of ``epochs`` where there are steps.
        lr: learning rate of Adam; the discriminators' is a tenth of it.
        batch_size: images in an update, of each cohort in the first phase.
        epochs: passes over the training images, in each phase.
        structure_steps: updates of the structure network instead of ``epochs``.
        steps: updates of the texture network instead of ``epochs``.
    """
    check_size(size)
    structures, texture = StructureNet(channels, classes, width), TextureNet(channels, width)
    judges = PatchDiscriminator(2, channels, width), PatchDiscriminator(2, classes, width)
    for judge in judges:
        initialise(judge)
    player = Rates(training["lr"], training["epochs"], decays).player
    known = [player("structure", structures)]
    if adaptation:
        known = [player("structure_judge", judges[1]), *known]
    phases = [
        played(
            "structure", known, training, steps=structure_steps, part="healthy+auxiliary",
            batch_size=2 * training["batch_size"], balanced=True,
        ),
        played("texture", [player("judge", judges[0]), player("texture", texture)], training),
    ]  # fmt: skip
    weights = Weights(image, adversarial, structure, adaptation)
    return StructureTexture(structures, texture, classes, weights, judges, share, phases)
