"""The study of what a variational autoencoder says of where an anomaly lies (Zhou et al. 2020)."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, Literal, Unpack

import torch
from torch import Tensor

from normscan.errors import ArgumentError
from normscan.methods.base import Batch, Maps, Method
from normscan.methods.reconstruction import absolute
from normscan.methods.variational.gradients import (
    LAPTOP,
    POINTED,
    SHARPER,
    TINY,
    Bound,
    GradientScored,
    Look,
    Pointed,
    half_square,
)
from normscan.networks.convolutional import PointCode
from normscan.objectives.gradients import input_gradient
from normscan.registry import register

Predictors = tuple[Literal["residual", "divergence", "bound", "error", "projection"], ...]
KNOWN = ("residual", "divergence", "bound", "error", "projection")


@dataclass(frozen=True)
class Projection:
    """Gradient descent on an image towards what the network restores well (Dehaene et al. 2020).

    Attributes:
        steps: number of them.
        rate: of a step.
        anchor: weight of the absolute distance from the image where it began, summed as the error.
    """

    steps: int = 20
    rate: float = 0.5
    anchor: float = 0.05


class Ensemble(GradientScored):
    """Averages the maps of several predictors, each in units of its mean on healthy scans.

    Args:
        *parts: of ``GradientScored``.
        predictors: whose maps are averaged.
        projection: how an image is projected.
    """

    units: Tensor

    def __init__(self, *parts: Any, predictors: Predictors, projection: Projection) -> None:
        super().__init__(*parts)
        self.predictors, self.projection = predictors, projection
        self.register_buffer("units", torch.ones(len(predictors)))

    def projected(self, x: Tensor) -> Tensor:
        """Images (B, C, *spatial) moved by gradients that weigh most where the residual is large."""
        how, start = self.projection, x

        def energy(seen: Tensor) -> Tensor:
            away = (seen - start).abs().flatten(1).sum(1)
            return self.terms(seen)["error"] + how.anchor * away

        for _ in range(how.steps):
            _, slope = input_gradient(energy, x)
            with torch.no_grad():
                residual = x - self.network.decode(self.encode(x)[0])
            x = x - how.rate * slope * residual.square()
        return x

    def each_map(self, batch: Batch) -> list[Tensor]:
        """The maps of the predictors, (B, 1, *spatial) each, in their own units."""
        x = self.scaled(batch).image
        with torch.no_grad():
            restored = self.restored(x, batch)
        return [
            absolute(x, self.projected(x)) if name == "projection"
            else self.predicted(x, restored, name, batch)
            for name in self.predictors
        ]  # fmt: skip

    def fit(self, batches: Iterable[Batch]) -> None:
        """Find the mean of each map over the foreground of healthy scans."""
        total, pixels = torch.zeros_like(self.units), 0
        for batch in batches:
            total = total + torch.stack([m[batch.foreground].sum() for m in self.each_map(batch)])
            pixels += int(batch.foreground.sum())
        self.units = (total / max(1, pixels)).clamp_min(1e-30)

    def maps(self, batch: Batch) -> Maps:
        maps = torch.stack(self.each_map(batch))
        with torch.no_grad():
            restored = self.restored(self.scaled(batch).image, batch)
        units = self.units.reshape(-1, *[1] * (maps.ndim - 1))
        return Maps((maps / units).mean(0), reconstruction=self.shown(restored))


@register(
    "beta_vae_loc",
    paper="Zhou 2020",
    dims=(2, 3),
    presets={"laptop": {**LAPTOP, "beta": SHARPER["kl_weight"]}},
    preprocess={"scaling": "minmax", "limit": 1.0, "crop": "none", "fit": "stretch"},
    tiny={**TINY, "beta": SHARPER["kl_weight"]},
    options=POINTED(batch_size=64),
)
def localising_beta_vae(
    dims: int = 2,
    channels: int = 1,
    beta: float = 1.0,
    predictors: Predictors = ("residual", "divergence"),
    projection_steps: int = 20,
    projection_rate: float = 0.5,
    projection_anchor: float = 0.05,
    **options: Unpack[Pointed],
) -> Method:
    """Beta-VAE whose predictors of anomalous pixels form an ensemble.

    Zhou, Deng and Wu 2020: on brain slices of a variational autoencoder they compare the residual,
    the gradients of the bound and of its parts, and the image's projection by gradient descent on
    an energy (Dehaene et al. 2020), vary the weight beta of the divergence and combine predictors.
    They find that the projection helps little on medical images, and that how well the gradient of
    the divergence does hangs on the network and the data. Error and divergence are summed, the
    error that of a Gaussian with deviation 1.

    Departures:
        everything but the idea: only the abstract was known, and there is no code. Network and loss
            are those of ``vae_kl_grad``, whose line of work it follows; rate, batches, epochs and
            range are ours.
        ensemble: the mean of the maps, each over its mean on healthy training scans, so that no test
            scan sets its own unit.
        projection: the step and the weight of the anchor are ours, and the number of steps is fixed.
        score: the mean of the map over the foreground; the article localises only.
        third axis: ours.

    Args:
        beta: weight of the summed divergence beside the summed error.
        predictors: whose maps are averaged: ``residual``, ``projection``, and the gradients of the
            ``bound``, the ``divergence`` and the ``error``.
        projection_steps: steps of gradient descent on an image.
        projection_rate: of such a step.
        projection_anchor: weight of the summed absolute distance from the image.
    """
    if not predictors or not set(predictors) <= set(KNOWN):
        raise ArgumentError(f"predictors={predictors}: give one or more of {', '.join(KNOWN)}.")
    network = PointCode(dims, channels, options["size"], options["latent"], options["widths"])
    return Ensemble(
        network, Bound(half_square, beta), Look("residual", absolute), options,
        predictors=tuple(predictors),
        projection=Projection(projection_steps, projection_rate, projection_anchor),
    )  # fmt: skip
