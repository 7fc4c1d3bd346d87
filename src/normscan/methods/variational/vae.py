"""The variational autoencoder and what is read off it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal

import torch
from torch import Tensor, nn

from normscan.methods.autoencoders.plain import (
    BAUR_POSTPROCESS,
    LAPTOP,
    MEDIANOMALY,
    TINY,
    Design,
    build_network,
    plain_phase,
)
from normscan.methods.base import Batch, Maps, Method, Phase
from normscan.methods.reconstruction import absolute, squared
from normscan.networks.autoencoder import BaurAutoencoder, CompactAutoencoder, Norm
from normscan.objectives.losses import kl_standard_normal, per_image_sum
from normscan.registry import register


class VariationalAutoencoder(Method):
    """Gaussian code with mean and spread; see ``variational_autoencoder`` for the arguments."""

    def __init__(
        self, network: BaurAutoencoder | CompactAutoencoder, compact: bool, kl_weight: float, samples: int,
        training: Callable[[nn.Module], list[Phase]],
    ) -> None:  # fmt: skip
        super().__init__()
        self.network: BaurAutoencoder | CompactAutoencoder = network
        self.compact = compact
        self.kl_weight = kl_weight
        self.samples = samples
        self._training = training

    def phases(self) -> list[Phase]:
        return self._training(self.network)

    def encode(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Mean and log standard deviation of the code, (B, latent) each."""
        mean, spread = self.network.encode(x)
        # Baur's second head is log sigma; Cai's is log sigma^2.
        return mean, spread / 2 if self.compact else spread

    def loss(self, batch: Batch, phase: str, player: str) -> dict[str, Tensor]:
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
        mean, log_std = self.encode(batch.image)
        codes = [mean] if self.samples == 0 else [
            mean + log_std.exp() * batch.rng.normal(mean.shape).to(mean) for _ in range(self.samples)
        ]  # fmt: skip
        restored = torch.stack([self.network.decode(z) for z in codes]).mean(0)
        residual = squared if self.compact else absolute
        return Maps(map=residual(batch.image, restored), reconstruction=restored)


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
    lr: float = 1e-4,
    beta1: float = 0.5,
    batch_size: int = 8,
    epochs: int = 1000,
    steps: int | None = None,
    patience: int | None = 5,
) -> Method:
    """Variational autoencoder.

    Kingma and Welling 2014 in the form of Baur et al., Medical Image Analysis 2021: summed
    absolute error plus the divergence of the code from the standard normal, early stopping, and a
    residual with the code sampled at test. ``medianomaly`` switches to the network, the averaged
    squared error and the weight 0.005 of Cai et al. 2025.

    Args:
        dims: spatial axes, 2 or 3.
        channels: of the image.
        size: pixels along each axis, a power of two times 8 (4 for ``compact``).
        design: ``baur`` or ``compact`` (Cai et al. 2025, squared error, means).
        latent: numbers in the code.
        width: channels of the first convolution.
        dropout: after the linear layers of ``baur``.
        norm: ``batch``, or ``affine`` for a learned scale and shift only.
        kl_weight: weight of the divergence.
        inference: ``sample`` draws the code at test as both released codes do; ``mean`` takes its
            mean.
        samples: restorations averaged at test where the code is drawn.
        lr: learning rate of Adam.
        beta1: first momentum of Adam.
        batch_size: images in an update.
        epochs: passes over the training images at most.
        steps: number of updates instead of ``epochs``.
        patience: looks at the validation loss without gain before stopping; None for never.
    """
    network = build_network(design, dims, channels, size, latent, 2, width, dropout, norm)

    def training(network: nn.Module) -> list[Phase]:
        return plain_phase(network, lr, beta1, batch_size, epochs, steps, patience)

    draws = samples if inference == "sample" else 0
    return VariationalAutoencoder(network, design == "compact", kl_weight, draws, training)
