"""The variational autoencoder and what is read off it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal, Unpack

import torch
from torch import Tensor, nn

from normscan.methods.autoencoders import compact, plain
from normscan.methods.autoencoders.compact import COMPACT, Compact, compact_network
from normscan.methods.autoencoders.plain import BAUR, Baur, absolute_sum, baur_network, mean_squared
from normscan.methods.base import Batch, Maps, Method
from normscan.methods.reconstruction import Loss, Reconstruction, Residual, positive, squared
from normscan.methods.schedule import Schedule
from normscan.networks.autoencoder import BaurAutoencoder, CompactAutoencoder
from normscan.objectives.losses import kl_standard_normal, per_image_sum
from normscan.registry import register

Inference = Literal["sample", "mean"]


@dataclass(frozen=True)
class Gaussian:
    """How a network's second head and the divergence are read.

    Attributes:
        log_std: the second head's output to the log standard deviation.
        kl: divergence of the numbers of the codes (B, latent) to a term of the loss.
        samples: restorations averaged at test; 0 restores from the mean.
    """

    log_std: Callable[[Tensor], Tensor]
    kl: Callable[[Tensor], Tensor]
    samples: int


class VariationalReconstruction(Reconstruction):
    """Restores from a Gaussian code with a mean and a spread."""

    network: BaurAutoencoder | CompactAutoencoder

    def __init__(
        self, network: nn.Module, loss: Loss, residual: Residual, training: Schedule,
        gaussian: Gaussian, centred: bool = False,
    ) -> None:  # fmt: skip
        super().__init__(network, loss, residual, training, centred=centred)
        self.gaussian = gaussian

    def encode(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Mean and log standard deviation of the code, (B, latent) each."""
        mean, spread = self.network.encode(x)
        return mean, self.gaussian.log_std(spread)

    def loss(self, batch: Batch, phase: str, player: str) -> dict[str, Tensor]:
        batch = self.scaled(batch)
        mean, log_std = self.encode(batch.image)
        z = mean + log_std.exp() * batch.rng.normal(mean.shape).to(mean)
        kl = self.gaussian.kl(kl_standard_normal(mean, log_std))
        return {**self._loss(self.network.decode(z), batch), "kl": kl}

    @torch.no_grad()
    def maps(self, batch: Batch) -> Maps:
        x = self.scaled(batch).image
        mean, log_std = self.encode(x)
        codes = [mean] if self.gaussian.samples == 0 else [
            mean + log_std.exp() * batch.rng.normal(mean.shape).to(mean) for _ in range(self.gaussian.samples)
        ]  # fmt: skip
        return self.compared(x, torch.stack([self.network.decode(z) for z in codes]).mean(0))


@register(
    "vae",
    paper="Kingma 2014; Baur 2021",
    dims=(2, 3),
    presets={"code": plain.CODE, "laptop": plain.LAPTOP},
    postprocess=plain.POSTPROCESS,
    smallest_component=7,
    preprocess=plain.PREPROCESS,
    tiny=plain.TINY,
    options=BAUR,
)
def variational_autoencoder(
    dims: int = 2,
    channels: int = 1,
    kl_weight: float = 1.0,
    inference: Inference = "sample",
    samples: int = 1,
    **study: Unpack[Baur],
) -> Method:
    """Variational autoencoder.

    Kingma and Welling 2014 in the form of Baur et al., Medical Image Analysis 2021: the network of
    ``ae_dense`` with a mean and a log standard deviation, summed absolute error plus the divergence
    of the code from the standard normal, and a code that is drawn at test too. The residual is that
    of ``ae_dense``. The form of Cai et al. 2025 is ``vae_compact``.

    Departures:
        norm, dropout, early stopping, prior: as in ``ae_dense``.

    Args:
        kl_weight: weight of the divergence.
        inference: ``sample`` draws the code at test as the released code does; ``mean`` takes its
            mean.
        samples: restorations averaged at test where the code is drawn.
    """
    gaussian = Gaussian(
        log_std=lambda spread: spread,
        kl=lambda kl: kl_weight * per_image_sum(kl),
        samples=samples if inference == "sample" else 0,
    )
    network = baur_network(dims, channels, study, heads=2)
    return VariationalReconstruction(network, absolute_sum, positive, study, gaussian)


@register(
    "vae_compact",
    paper="Kingma 2014; Cai 2025",
    dims=(2, 3),
    presets={"laptop": compact.LAPTOP},
    reduction="mean",
    tiny=compact.TINY,
    options=COMPACT,
)
def compact_variational_autoencoder(
    dims: int = 2,
    channels: int = 1,
    kl_weight: float = 0.005,
    inference: Inference = "sample",
    samples: int = 1,
    **family: Unpack[Compact],
) -> Method:
    """Variational autoencoder with a short code.

    The form of Cai et al., Medical Image Analysis 2025: the network of ``ae4ad`` with a mean and a
    log variance, the mean squared error plus 0.005 times the mean divergence of the code from the
    standard normal, and a code that is drawn at test too; the squared residual. The form of Baur et
    al. 2021 is ``vae``.

    Args:
        kl_weight: weight of the divergence.
        inference: ``sample`` draws the code at test as the released code does; ``mean`` takes its
            mean.
        samples: restorations averaged at test where the code is drawn.
    """
    gaussian = Gaussian(
        log_std=lambda spread: spread / 2,
        kl=lambda kl: kl_weight * kl.mean(),
        samples=samples if inference == "sample" else 0,
    )
    network = compact_network(dims, channels, family, heads=2)
    return VariationalReconstruction(network, mean_squared, squared, family, gaussian, centred=True)
