"""Classifiers that are to be unsure of what other images show."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Literal, Unpack

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from normscan.errors import ArgumentError, CohortError
from normscan.methods.base import Batch, Maps, Method, Phase
from normscan.methods.features.common import FILLED, PICTURE
from normscan.methods.schedule import Schedule, phase, schedule
from normscan.networks.wide_classifier import WideClassifier
from normscan.objectives.optimizers import nesterov
from normscan.registry import register

Rule = Literal["softmax", "uniform"]


def to_uniform(logits: Tensor) -> Tensor:
    """Cross entropy (B,) of the uniform distribution with that of logits (B, K)."""
    return torch.logsumexp(logits, 1) - logits.mean(1)


class Exposed(Method):
    """A classifier of healthy images that learns from another cohort what isn't; see the method.

    Args:
        network: image to logits.
        column: of the cohort with the class of each healthy image; empty for one class.
        classes: number of them.
        weight: of the other images.
        rule: of the score.
        training: the shared arguments.
    """

    def __init__(
        self, network: nn.Module, column: str, classes: int, weight: float, rule: Rule,
        training: Schedule,
    ) -> None:  # fmt: skip
        super().__init__()
        self.network, self.column, self.classes = network, column, classes
        self.weight, self.rule, self._training = weight, rule, training

    def phases(self) -> list[Phase]:
        end = 1e-6 / self._training["lr"]

        def rhythm(step: int, steps: int) -> float:
            return end + (1 - end) * 0.5 * (1 + math.cos(math.pi * step / steps))

        found = phase(
            self.network, self._training, "expose", "healthy+auxiliary+auxiliary", keep="last",
            optimizer=nesterov, rhythm=rhythm,
        )  # fmt: skip
        return [replace(found, balanced=True, validate_every=0)]

    def truth(self, batch: Batch, rows: list[int]) -> Tensor:
        """The classes of some healthy images.

        Raises:
            CohortError: a scan without one.
        """
        values = [batch.columns[i].get(self.column) for i in rows]
        try:
            numbers = [int(str(v)) for v in values]
        except ValueError:
            numbers = [-1]
        if any(not 0 <= n < self.classes for n in numbers):
            raise CohortError(
                f"the column '{self.column}' must hold a whole number from 0 to {self.classes - 1} "
                "for each healthy scan that trains: its class. Fill it, or set classes to 1."
            )
        return torch.tensor(numbers, device=batch.image.device)

    def loss(self, batch: Batch, phase: str, player: str) -> dict[str, Tensor]:
        assert batch.part is not None
        image = moved_a_little(batch)
        own = (batch.part == 0).to(image.device)
        logits = self.network(image)
        if self.classes == 1:
            wrong = F.binary_cross_entropy_with_logits(
                logits[:, 0], (~own).to(logits), reduction="none"
            )
            parts = wrong[own].sum() / own.sum().clamp_min(1), wrong[~own]
        else:
            rows = own.nonzero()[:, 0].tolist()
            told = F.cross_entropy(logits[own], self.truth(batch, rows), reduction="sum")
            parts = told / own.sum().clamp_min(1), to_uniform(logits[~own])
        return {"class": parts[0], "other": self.weight * parts[1].sum() / max(1, len(parts[1]))}

    @torch.no_grad()
    def maps(self, batch: Batch) -> Maps:
        logits = self.network(batch.image)
        if self.classes == 1:
            return Maps(score=logits[:, 0])
        if self.rule == "uniform":
            return Maps(score=-to_uniform(logits))
        return Maps(score=-logits.softmax(1).amax(1))


def moved_a_little(batch: Batch, most: int = 4) -> Tensor:
    """Images mirrored along the last axis with probability 1/2 and moved by up to some pixels."""
    n, (height, width) = len(batch), batch.image.shape[2:]
    mirrored = (batch.rng.uniform((n,)) < 0.5).to(batch.image.device)
    image = torch.where(mirrored[:, None, None, None], batch.image.flip(-1), batch.image)
    large = F.pad(image, (most, most, most, most))
    corners = batch.rng.integers(0, 2 * most + 1, (n, 2)).tolist()
    return torch.stack(
        [x[:, i : i + height, j : j + width] for x, (i, j) in zip(large, corners, strict=True)]
    )


@register(
    "outlier_exposure",
    paper="Hendrycks 2019",
    preprocess=PICTURE,
    presets={
        "laptop": {
            "size": 64, "depth": 16, "batch_size": 48, "steps": 300, "preprocess": FILLED,
        },
    },
    tiny={
        "size": 32, "depth": 10, "width": 1, "dropout": 0.0, "batch_size": 12, "steps": 40,
        "preprocess": FILLED,
    },
    options=schedule(lr=0.1, beta1=0.9, weight_decay=5e-4, batch_size=384, epochs=100),
)  # fmt: skip
def outlier_exposure(
    dims: int = 2,
    channels: int = 1,
    size: int = 32,
    depth: int = 40,
    width: int = 2,
    dropout: float = 0.3,
    classes: int = 1,
    column: str = "class",
    weight: float = 0.5,
    rule: Rule = "softmax",
    **training: Unpack[Schedule],
) -> Method:
    """Outlier exposure: a classifier that learns from images of other things what it doesn't know.

    Hendrycks, Mazeika and Dietterich, ICLR 2019: a wide residual network of 40 layers classifies
    healthy images; of images of an auxiliary cohort it is to be unsure: the loss is the cross entropy
    plus half the mean cross entropy of the uniform distribution with its output. Both go through it
    in one batch, 128 and 256. SGD with Nesterov's momentum 0.9, decay 5e-4, a cosine from 0.1 to
    1e-6 over 100 epochs from the start; images are mirrored and moved by up to 4 pixels. The score is
    the largest probability, negative, or with ``uniform`` the cross entropy, negative. Name the
    auxiliary cohort with ``--auxiliary``: textures, other organs, other scanners, but nothing that
    is to be found.

    Departures:
        one class: where healthy images have no classes of their own, as in most cohorts and by
            default, there is one logit and binary cross entropies, and it is the score. The article
            has no such case.
        fine-tuning: the release also goes on from a trained classifier, 10 epochs from 1e-3; here it
            is trained from the start, as in its other script.
        epochs: of all images of both cohorts together; those of the healthy ones in the release.
        normalisation: none; the release takes mean and deviation of CIFAR-10.

    Args:
        size: pixels along each axis.
        depth: layers, 6 n + 4.
        width: times 16, 32 and 64 channels.
        dropout: probability in each block.
        classes: of healthy images.
        column: of the cohort with the class of each, a whole number from 0; with several classes.
        weight: of the auxiliary images in the loss.
        rule: of the score with several classes: ``softmax`` or ``uniform``.
        lr: learning rate of SGD.
        beta1: momentum.
        weight_decay: of SGD.
        batch_size: images in an update, a third of them healthy.
    """
    if classes < 1:
        raise ArgumentError(f"classes={classes}: give 1 or more.")
    network = WideClassifier(channels, classes, depth, width, dropout)
    return Exposed(network, column, classes, weight, rule, training)
