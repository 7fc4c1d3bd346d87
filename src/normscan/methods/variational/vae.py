"""The variational autoencoder and what is read off it."""

from __future__ import annotations

from typing import Any, Literal, Unpack

import torch
from torch import Tensor

from normscan.methods.autoencoders.compact import COMPACT, PICTURE, Compact, compact_network
from normscan.methods.autoencoders.compact import LAPTOP as COMPACT_LAPTOP
from normscan.methods.autoencoders.compact import TINY as COMPACT_TINY
from normscan.methods.autoencoders.plain import (
    BAUR,
    BAUR_POSTPROCESS,
    BAUR_PRESETS,
    BAUR_RANGE,
    TINY,
    Baur,
    absolute_sum,
    baur_network,
    baur_phases,
    mean_squared,
)
from normscan.methods.base import Batch, Method
from normscan.methods.reconstruction import Reconstruction, positive, squared
from normscan.networks.divergences import kl_standard_normal
from normscan.objectives.losses import per_image_sum
from normscan.registry import register

Inference = Literal["sample", "mean"]


class VariationalReconstruction(Reconstruction):
    """A network whose code is Gaussian, with mean and spread as its two heads.

    Args:
        *parts: of ``Reconstruction``.
        kl_weight: of the divergence from the standard normal.
        kl_sum: sum the divergence over the code, as the loss sums over an image; else the mean.
        log_variance: the second head is log sigma^2; else log sigma.
        inference: ``sample`` draws the code at test, ``mean`` takes its mean.
        samples: restorations averaged at test where the code is drawn.
        **options: of ``Reconstruction``.
    """

    network: Any

    def __init__(
        self, *parts: Any, kl_weight: float, kl_sum: bool = True,
        log_variance: bool = False, inference: Inference = "mean", samples: int = 1, **options: Any,
    ) -> None:  # fmt: skip
        super().__init__(*parts, **options)
        self.kl_weight, self.kl_sum, self.log_variance = kl_weight, kl_sum, log_variance
        self.samples = samples if inference == "sample" else 0

    def encode(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Mean and log standard deviation of the code, (B, latent) each."""
        mean, spread = self.network.encode(x)
        return mean, spread / 2 if self.log_variance else spread

    @staticmethod
    def draw(mean: Tensor, log_std: Tensor, batch: Batch) -> Tensor:
        """A code (B, latent)."""
        return mean + log_std.exp() * batch.rng.normal(mean.shape).to(mean)

    def divergence(self, mean: Tensor, log_std: Tensor) -> Tensor:
        """From the standard normal, of each number of the code."""
        return kl_standard_normal(mean, log_std)

    def loss(self, batch: Batch, phase: str, player: str) -> dict[str, Tensor]:
        batch = self.scaled(batch)
        mean, log_std = self.encode(self._corrupt(batch) if self._corrupt else batch.image)
        restored = self.network.decode(self.draw(mean, log_std, batch))
        kl = self.divergence(mean, log_std)
        kl = per_image_sum(kl) if self.kl_sum else kl.mean()
        return {**self._loss(restored, batch), "kl": self.kl_weight * kl}

    def restored(self, x: Tensor, batch: Batch) -> Tensor:
        mean, log_std = self.encode(x)
        codes = [self.draw(mean, log_std, batch) for _ in range(self.samples)] or [mean]
        return torch.stack([self.network.decode(z) for z in codes]).mean(0)


@register(
    "vae",
    paper="Kingma 2014; Baur 2021",
    dims=(2, 3),
    presets=BAUR_PRESETS,
    postprocess=BAUR_POSTPROCESS,
    smallest_component=7,
    preprocess=BAUR_RANGE,
    tiny=TINY,
    options=BAUR,
)
def variational_autoencoder(
    dims: int = 2,
    channels: int = 1,
    kl_weight: float = 1.0,
    inference: Inference = "sample",
    samples: int = 1,
    **options: Unpack[Baur],
) -> Method:
    """Variational autoencoder, in the form of a comparative study.

    Kingma and Welling 2014 as in Baur et al., Medical Image Analysis 2021: the network, range,
    training, map and post-processing of ``ae_dense``, summed absolute error plus the summed
    divergence of the code from the standard normal; the second head is log sigma, and dropout 0.2
    acts on both heads and on the decoder's linear layer. The code is drawn at test, too. The form
    of Cai et al. 2025 is ``vae_compact``.

    Departures:
        all those of ``ae_dense``.

    Args:
        kl_weight: weight of the divergence.
        inference: ``sample`` draws the code at test as the release does; ``mean`` takes its mean.
        samples: restorations averaged at test where the code is drawn.
    """
    network = baur_network(dims, channels, options, heads=2)
    return VariationalReconstruction(
        network, absolute_sum, positive, lambda network: baur_phases(network, options),
        kl_weight=kl_weight, inference=inference, samples=samples,
    )  # fmt: skip


@register(
    "vae_compact",
    paper="Kingma 2014; Cai 2025",
    dims=(2, 3),
    presets={"laptop": COMPACT_LAPTOP},
    reduction="mean",
    preprocess=PICTURE,
    tiny=COMPACT_TINY,
    options=COMPACT,
)
def compact_variational_autoencoder(
    dims: int = 2,
    channels: int = 1,
    kl_weight: float = 0.005,
    inference: Inference = "sample",
    samples: int = 1,
    **options: Unpack[Compact],
) -> Method:
    """Variational autoencoder with a code of a few numbers.

    Kingma and Welling 2014 as in Cai et al., Medical Image Analysis 2025: the network, range and
    training of ``ae4ad``, mean squared error plus 0.005 times the mean divergence of the 16 numbers
    of the code; the second head is log sigma^2. The map is the squared residual with the code drawn
    at test.

    Departures:
        all those of ``ae4ad``.

    Args:
        kl_weight: weight of the divergence.
        inference: ``sample`` draws the code at test as the release does; ``mean`` takes its mean.
        samples: restorations averaged at test where the code is drawn.
    """
    network = compact_network(dims, channels, options, heads=2)
    return VariationalReconstruction(
        network, mean_squared, squared, options, centred=True,
        kl_weight=kl_weight, kl_sum=False, log_variance=True, inference=inference, samples=samples,
    )  # fmt: skip
