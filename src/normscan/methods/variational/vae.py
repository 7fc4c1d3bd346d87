"""The variational autoencoder and what is read off it."""

from __future__ import annotations

from dataclasses import replace
from typing import Literal, Unpack

import torch
from torch import Tensor

from normscan.methods.autoencoders.plain import (
    BAUR_POSTPROCESS,
    BAUR_TRAINING,
    LAPTOP,
    MEDIANOMALY,
    TINY,
    Design,
    build_network,
)
from normscan.methods.base import Batch, Maps, Method, Phase
from normscan.methods.reconstruction import absolute, squared
from normscan.methods.schedule import Schedule, phase
from normscan.networks.autoencoder import BaurAutoencoder, CompactAutoencoder, Norm
from normscan.objectives.losses import kl_standard_normal, per_image_sum
from normscan.registry import register


class VariationalAutoencoder(Method):
    """Gaussian code with mean and spread; see ``variational_autoencoder`` for the arguments."""

    def __init__(
        self, network: BaurAutoencoder | CompactAutoencoder, compact: bool, kl_weight: float, samples: int,
        training: Schedule,
    ) -> None:  # fmt: skip
        super().__init__()
        self.network: BaurAutoencoder | CompactAutoencoder = network
        self.compact = compact
        self.kl_weight = kl_weight
        self.samples = samples
        self._training = training

    def phases(self) -> list[Phase]:
        return [phase(self.network, self._training)]

    def encode(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Mean and log standard deviation of the code, (B, latent) each."""
        mean, spread = self.network.encode(x)
        # Baur's second head is log sigma; Cai's is log sigma^2.
        return mean, spread / 2 if self.compact else spread

    def _scaled(self, x: Tensor) -> Tensor:
        return 2 * x - 1 if self.compact else x

    def loss(self, batch: Batch, phase: str, player: str) -> dict[str, Tensor]:
        batch = replace(batch, image=self._scaled(batch.image))
        mean, log_std = self.encode(batch.image)
        z = mean + log_std.exp() * batch.rng.normal(mean.shape).to(mean)
        restored = self.network.decode(z)
        kl = kl_standard_normal(mean, log_std)
        if self.compact:
            error = (restored - batch.image).square().mean()
            return {"l2": error, "kl": self.kl_weight * kl.mean()}
        error = per_image_sum((restored - batch.image).abs())
        return {"l1": error, "kl": self.kl_weight * per_image_sum(kl)}

    @torch.no_grad()
    def maps(self, batch: Batch) -> Maps:
        x = self._scaled(batch.image)
        mean, log_std = self.encode(x)
        codes = [mean] if self.samples == 0 else [
            mean + log_std.exp() * batch.rng.normal(mean.shape).to(mean) for _ in range(self.samples)
        ]  # fmt: skip
        restored = torch.stack([self.network.decode(z) for z in codes]).mean(0)
        residual = squared if self.compact else absolute
        shown = (restored + 1) / 2 if self.compact else restored
        return Maps(map=residual(x, restored), reconstruction=shown)


@register(
    "vae",
    paper="Kingma 2014; Baur 2021",
    dims=(2, 3),
    presets={
        "code": {"norm": "affine"},
        "medianomaly": {**MEDIANOMALY, "kl_weight": 0.005},
        "laptop": LAPTOP,
    },
    postprocess=BAUR_POSTPROCESS,
    smallest_component=7,
    preprocess={"percentile": 99.8},
    tiny=TINY,
    options=BAUR_TRAINING,
)
def variational_autoencoder(
    dims: int = 2,
    channels: int = 1,
    size: int = 128,
    design: Design = "baur",
    latent: int = 128,
    width: int = 32,
    dropout: float = 0.2,
    norm: Norm = "batch",
    kl_weight: float = 1.0,
    inference: Literal["sample", "mean"] = "sample",
    samples: int = 1,
    **training: Unpack[Schedule],
) -> Method:
    """Variational autoencoder.

    Kingma and Welling 2014 in the form of Baur et al., Medical Image Analysis 2021: summed
    absolute error plus the divergence of the code from the standard normal, early stopping, and a
    residual with the code sampled at test. ``medianomaly`` switches to the network, the averaged
    squared error and the weight 0.005 of Cai et al. 2025.

    Args:
        size: pixels along each axis, a power of two times 8 (4 for ``compact``).
        design: ``baur`` or ``compact`` (Cai et al. 2025, squared error of images in -1..1, means).
        dropout: after the linear layers of ``baur``.
        norm: ``batch``, or ``affine`` for a learned scale and shift only.
        kl_weight: weight of the divergence.
        inference: ``sample`` draws the code at test as both released codes do; ``mean`` takes its
            mean.
        samples: restorations averaged at test where the code is drawn.
    """
    network = build_network(design, dims, channels, size, latent, 2, width, dropout, norm)
    draws = samples if inference == "sample" else 0
    return VariationalAutoencoder(network, design == "compact", kl_weight, draws, training)
