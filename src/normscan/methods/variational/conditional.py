"""A variational autoencoder that is told where in the body it looks (Uzunova et al. 2019)."""

from __future__ import annotations

import math
from typing import Any, Literal, Unpack

import torch
from torch import Tensor

from normscan.methods.base import Batch, Maps, Method
from normscan.methods.reconstruction import absolute
from normscan.methods.variational.gradients import (
    LAPTOP,
    POINTED,
    SHARPER,
    TINY,
    Pointed,
    gaussian_error,
    per_image,
)
from normscan.methods.variational.vae import VariationalReconstruction
from normscan.networks.convolutional import PointCode
from normscan.objectives.losses import per_image_sum
from normscan.registry import register

Score = Literal["residual", "code"]


def waves(position: Tensor, frequencies: int) -> Tensor:
    """Sines and cosines of a position at 1/2, 1, 2, ... turns over the subject.

    Args:
        position: (B,) in 0..1.
        frequencies: how many.

    Returns:
        (B, 2 frequencies) in -1..1; neighbours have like rows, and the ends differ.
    """
    turns = 2.0 ** torch.arange(-1, frequencies - 1, device=position.device, dtype=position.dtype)
    angles = 2 * math.pi * position[:, None] * turns
    return torch.cat([angles.sin(), angles.cos()], dim=1)


class ConditionalReconstruction(VariationalReconstruction):
    """Encoder and decoder are told the position; see ``conditional_vae``.

    Args:
        *parts: of ``VariationalReconstruction``.
        frequencies: of the position's waves; 0 tells nothing.
        score: ``residual`` leaves it to the map; ``code`` is the divergence of the code.
        **options: of ``VariationalReconstruction``.
    """

    def __init__(self, *parts: Any, frequencies: int, score: Score, **options: Any) -> None:
        super().__init__(*parts, **options)
        self.frequencies, self.score = frequencies, score

    def told(self, batch: Batch) -> Tensor:
        """What is told of each image, (B, 2 frequencies)."""
        return waves(batch.position.to(batch.image), self.frequencies)

    def seen(self, x: Tensor, told: Tensor) -> Tensor:
        """Images with planes of what is told behind their channels."""
        planes = told.reshape(*told.shape, *[1] * (x.ndim - 2)).expand(-1, -1, *x.shape[2:])
        return torch.cat([x, planes], dim=1)

    def loss(self, batch: Batch, phase: str, player: str) -> dict[str, Tensor]:
        batch = self.scaled(batch)
        told = self.told(batch)
        mean, log_std = self.encode(self.seen(batch.image, told))
        code = torch.cat([self.draw(mean, log_std, batch), told], dim=1)
        kl = per_image_sum(self.divergence(mean, log_std))
        return {**self._loss(self.network.decode(code), batch), "kl": self.kl_weight * kl}

    @torch.no_grad()
    def maps(self, batch: Batch) -> Maps:
        x, told = self.scaled(batch).image, self.told(batch)
        mean, log_std = self.encode(self.seen(x, told))
        restored = self.network.decode(torch.cat([mean, told], dim=1))
        found = Maps(self._residual(x, restored), reconstruction=self.shown(restored))
        if self.score == "code":
            found.score = per_image(self.divergence(mean, log_std), True)
        return found


@register(
    "conditional_vae",
    paper="Uzunova 2019",
    dims=(2, 3),
    presets={"laptop": {**LAPTOP, **SHARPER}},
    preprocess={"scaling": "minmax", "limit": 1.0, "crop": "none", "fit": "stretch"},
    tiny={**TINY, **SHARPER, "steps": 150},
    options=POINTED(lr=1e-3, batch_size=64),
)
def conditional_vae(
    dims: int = 2,
    channels: int = 1,
    kl_weight: float = 1.0,
    frequencies: int = 3,
    score: Score = "residual",
    **options: Unpack[Pointed],
) -> Method:
    """Variational autoencoder conditioned on the position of what it sees.

    Uzunova, Schultz, Handels and Ehrhardt, International Journal of Computer Assisted Radiology and
    Surgery 2019: a variational autoencoder whose encoder and decoder are both given a condition,
    such as the place of a slice or patch in the body, learns from healthy images in 2D and 3D. An
    anomaly shows in the absolute residual, and in a code far from what is expected. Here the
    condition is the place along the subject, as waves of three lengths, in planes beside the image
    and in numbers beside the code.

    Departures:
        everything but the idea: only the abstract was known, and there is no code. Condition,
            network, error (of a Gaussian with deviation 1, summed), rate, batches, epochs and range
            are ours.
        single images: all have the same place, and it is a plain variational autoencoder.
        score: the mean of the map in the foreground, or the divergence of the code (``score``), of
            which a volume's is that of its worst slice; ours.

    Args:
        kl_weight: of the summed divergence beside the summed error; the second head is log sigma.
        frequencies: waves that tell the position; 0 tells nothing.
        score: of an image: ``residual``, from the map, or ``code``, the divergence of its code.
    """
    network = PointCode(
        dims, channels, options["size"], options["latent"], options["widths"],
        condition=2 * frequencies,
    )  # fmt: skip
    return ConditionalReconstruction(
        network, gaussian_error, absolute, options, frequencies=frequencies, score=score,
        kl_weight=kl_weight,
    )  # fmt: skip
