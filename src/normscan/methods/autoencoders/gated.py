"""A U-Net that loses its skips in training, against a discriminator (GatingAno)."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor
from torch.nn import functional as F

from normscan.errors import ArgumentError
from normscan.methods.autoencoders.compact import PICTURE
from normscan.methods.autoencoders.plain import OWN_RANGE
from normscan.methods.base import Batch, Maps, Method, Phase, Player
from normscan.methods.reconstruction import absolute
from normscan.networks.discriminators import PatchDiscriminator
from normscan.networks.gated import GatedUNet
from normscan.registry import register
from normscan.rng import Rng
from normscan.scores.hog import hog_image
from normscan.synthesis.blur import gaussian_blur

GRID = 3  # an image is cut into 3 x 3 patches
CELLS = (4, 8, 16)
# The gates fall by 0.05, 0.04, 0.03 and 0.02 in each of the article's 200 epochs, deepest first.
RATES = (10.0, 8.0, 6.0, 4.0)
Score = Literal["spread", "map"]


def cut(x: Tensor) -> Tensor:
    """(B, C, 3 h, 3 w) to patches (9 B, C, h, w), those of an image one after the other."""
    h, w = (n // GRID for n in x.shape[2:])
    x = x.unflatten(3, (GRID, w)).unflatten(2, (GRID, h))
    return x.permute(0, 2, 4, 1, 3, 5).flatten(0, 2)


def joined(patches: Tensor) -> Tensor:
    """Undo ``cut``."""
    x = patches.unflatten(0, (-1, GRID, GRID))
    return x.permute(0, 3, 1, 4, 2, 5).flatten(4, 5).flatten(2, 3)


def spread(errors: Tensor) -> Tensor:
    """Sample standard deviation over the patches of each image: (9 B,) to (B,)."""
    return errors.unflatten(0, (-1, GRID**2)).std(dim=1)


@dataclass(frozen=True)
class Training:
    """Length and rate of the training; see ``gating_ano``."""

    lr: float
    weight_decay: float
    batch_size: int
    epochs: int
    steps: int | None


class GatingAno(Method):
    """Restores patches and the picture of their gradients; see ``gating_ano``."""

    def __init__(
        self, network: GatedUNet, critic: PatchDiscriminator, training: Training, *,
        adversarial: float, blur: float, score: Score,
    ) -> None:  # fmt: skip
        super().__init__()
        self.network, self.critic = network, critic
        self.adversarial, self.blur, self.score = adversarial, blur, score
        self._training = training

    def phases(self) -> list[Phase]:
        t = self._training

        def follow(step: int, steps: int) -> float:
            # The loop asks once in each update of the generator, so this is where the gates move.
            self.network.fade((step + 1) / steps, RATES)
            return 0.5 * (1 + math.cos(math.pi * step / steps))

        players = [
            Player(
                "critic",
                [self.critic],
                lambda p: torch.optim.Adam(p, lr=t.lr, weight_decay=t.weight_decay),
            ),
            Player(
                "generator",
                [self.network],
                lambda p: torch.optim.Adam(p, lr=t.lr, weight_decay=t.weight_decay, amsgrad=True),
                schedule=follow,
            ),
        ]
        return [Phase("restore", players, t.steps, t.epochs, t.batch_size)]

    def items(self, image: Tensor, rng: Rng) -> tuple[Tensor, Tensor]:
        """One patch of each image, flipped and blurred, and its picture of gradients."""
        n = len(image)
        draws = rng.uniform((n, 5))
        place = (draws[:, 0] * GRID**2).long()
        x = cut(image).unflatten(0, (n, -1))[torch.arange(n), place]
        for axis in (1, 2):
            mirrored = (draws[:, axis] < 0.5).to(x.device)[:, None, None, None]
            x = torch.where(mirrored, x.flip(axis + 1), x)
        pictures = torch.stack([gradients(x, cell) for cell in CELLS])
        target = pictures[(draws[:, 3] * len(CELLS)).long(), torch.arange(n)]
        if self.blur:
            x = gaussian_blur(x, 0.1 + draws[:, 4] * (self.blur - 0.1), (9, 5))
        return x, target

    def logits(self, pictures: Tensor) -> Tensor:
        """The critic's opinion of each channel on its own."""
        result: Tensor = self.critic(pictures.flatten(0, 1)[:, None])
        return result.unflatten(0, pictures.shape[:2])

    def loss(self, batch: Batch, phase: str, player: str) -> dict[str, Tensor]:
        x, gradient = self.items(batch.image, batch.rng)
        real = torch.cat([x, gradient], dim=1)
        weight = self.adversarial
        if player == "critic":
            with torch.no_grad():
                fake = self.network(x)
            return {
                "real": weight * opinion(self.logits(real), 1.0, x.shape[1]) / 2,
                "fake": weight * opinion(self.logits(fake), 0.0, x.shape[1]) / 2,
            }
        restored = self.network(x)
        return {
            "image": F.mse_loss(restored[:, :-1], x),
            "gradients": F.mse_loss(restored[:, -1:], gradient),
            "adversarial": weight * opinion(self.logits(restored), 1.0, x.shape[1]),
        }

    @torch.no_grad()
    def maps(self, batch: Batch) -> Maps:
        x = cut(batch.image)
        restored = self.network(x)[:, :-1]
        whole = joined(restored)
        score = None
        if self.score == "spread":
            change = self.network.encode(x)[-1] - self.network.encode(restored)[-1]
            score = spread(change.flatten(1).norm(dim=1))
        return Maps(absolute(batch.image, whole), score, reconstruction=whole)


def gradients(x: Tensor, cell: int) -> Tensor:
    """Picture of the grey image's gradients in 0..1; 10 grey levels of 255 are white."""
    return (hog_image(x.mean(dim=1, keepdim=True), cell) * 25.5).clamp_max(1)


def opinion(logits: Tensor, wanted: float, channels: int) -> Tensor:
    """Cross entropy with 1 real or 0 restored, of the image's channels plus of the gradients'."""
    entropy = F.binary_cross_entropy_with_logits(
        logits, torch.full_like(logits, wanted), reduction="none"
    )
    return entropy[:, :channels].mean() + entropy[:, channels:].mean()


@register(
    "gating_ano",
    paper="Zhang 2024",
    dims=(2,),
    presets={
        "laptop": {
            "size": 96, "width": 16, "critic_width": 8, "steps": 400, "batch_size": 16, "blur": 1.0,
            "score": "map", "preprocess": {**OWN_RANGE, "scaling": "median", "colour": "auto"},
        }
    },
    preprocess={**PICTURE, "colour": "grey"},
    tiny={
        "size": 96, "width": 1, "critic_width": 2, "lr": 1e-2, "steps": 200, "batch_size": 8,
        "preprocess": {**OWN_RANGE, "scaling": "auto", "colour": "auto"},
    },
)  # fmt: skip
def gating_ano(
    dims: int = 2,
    channels: int = 1,
    size: int = 768,
    width: int = 64,
    critic_width: int = 64,
    adversarial: float = 0.05,
    blur: float = 5.0,
    score: Score = "spread",
    lr: float = 1e-3,
    weight_decay: float = 5e-5,
    batch_size: int = 32,
    epochs: int = 5400,
    steps: int | None = None,
) -> Method:
    """U-Net whose skips fade out in training, for fundus photographs (GatingAno).

    Zhang et al., Pattern Recognition 2024: grey images are cut into 3 x 3 patches. The network
    restores a patch and the picture of its oriented gradients (9 orientations, cells of 4, 8 or 16
    pixels), each also judged by a discriminator of patches. Gates close the skips over the first
    10, 12.5, 17 and 25 % of training, deepest first. The map is |x - x^|; the image score is the
    sample standard deviation over the patches of the distance between the deepest features of patch
    and restored patch.

    Departures:
        epochs: each patch comes three times an epoch, once with each cell, for 200 epochs; here an
            image in a batch gives one patch with one cell, so that as many updates are 27 times as
            many epochs.
        target: the gradients of the flipped patch before its blur, where 10 grey levels of 255 are
            white; of the whole image in the release, stretched by whatever writes its files.
        turns: the discriminator is updated first, on patches of its own; both losses come from one
            batch in the release.
        weights: the last ones; the best on the test set in the release.
        image score: the release's evaluation takes an image's patches together, as here, though its
            script numbers each as an image of its own.
        channels: with more than one the discriminator sees one at a time and the gradients are those
            of their mean.

    Args:
        dims: spatial axes, 2.
        size: pixels along each axis, a multiple of 48.
        width: channels of the U-Net's first level.
        critic_width: channels of the discriminator's first convolution.
        adversarial: weight of the discriminator's opinion, in its own loss too.
        blur: largest standard deviation in pixels of the Gaussian blur of training patches, 0.1 at
            least; 0 for none.
        score: ``spread``, as in the article, for images that the organ fills; ``map`` for the mean
            of the map over the foreground, our choice, where patches differ in how much of the
            organ they show: its outline, more than a lesion, then makes the spread.
        lr: learning rate of Adam; the generator's falls to 0 as half a cosine.
        weight_decay: of Adam.
        batch_size: patches in an update.
        epochs: passes over the training images, one patch of each.
        steps: number of updates instead of ``epochs``.
    """
    multiple = GRID * 2**GatedUNet.halvings
    if size < multiple or size % multiple:
        near = max(1, round(size / multiple)) * multiple
        raise ArgumentError(
            f"size={size} can't be cut into 3 x 3 patches of a multiple of 16 pixels. Use size={near}."
        )
    return GatingAno(
        GatedUNet(channels, channels + 1, width),
        # Patches of 16 pixels are too small for the third halving.
        PatchDiscriminator(2, 1, critic_width, halvings=2 if size < 96 else 3),
        Training(lr, weight_decay, batch_size, epochs, steps),
        adversarial=adversarial,
        blur=blur,
        score=score,
    )
