"""Variational autoencoders with another likelihood: a predicted variance, the beta divergence."""

from __future__ import annotations

from typing import Any, Unpack

import torch
from torch import Tensor

from normscan.methods.autoencoders.compact import COMPACT, PICTURE, Compact, compact_network
from normscan.methods.autoencoders.compact import LAPTOP as COMPACT_LAPTOP
from normscan.methods.autoencoders.compact import TINY as COMPACT_TINY
from normscan.methods.autoencoders.plain import OWN_RANGE
from normscan.methods.base import Batch, Maps, Method
from normscan.methods.reconstruction import absolute, squared
from normscan.methods.schedule import Schedule, schedule
from normscan.methods.variational.vae import Inference, VariationalReconstruction
from normscan.networks.autoencoder import PerceptronHeads
from normscan.objectives.losses import beta_cross_entropy, gaussian_surprise, per_image_sum
from normscan.registry import register
from normscan.scores.residuals import normalised_squared


class PredictedVariance(VariationalReconstruction):
    """Restores mean and variance of each value; the map is the squared residual in variances."""

    def __init__(self, *parts: Any, least_variance: float, **options: Any) -> None:
        super().__init__(*parts, **options)
        self.floor = torch.tensor(least_variance).log().item()

    def split(self, output: Tensor) -> tuple[Tensor, Tensor]:
        """Mean and log variance, (B, C, *spatial) each, of (B, 2 C, *spatial) output."""
        mean, log_variance = output.chunk(2, dim=1)
        return mean, log_variance.clamp(self.floor, 10)

    def likelihood(self, output: Tensor, batch: Batch) -> dict[str, Tensor]:
        """-log p(x), summed over an image."""
        return {"likelihood": per_image_sum(gaussian_surprise(batch.image, *self.split(output)))}

    @torch.no_grad()
    def maps(self, batch: Batch) -> Maps:
        x = self.scaled(batch).image
        restored, log_variance = self.split(self.restored(x, batch))
        return Maps(
            map=normalised_squared(x, restored, log_variance) / 2,
            reconstruction=self.shown(restored),
            uncertainty=log_variance.exp().mean(dim=1, keepdim=True),
        )


@register(
    "uncertainty_vae",
    paper="Sato 2019",
    dims=(2, 3),
    presets={"laptop": COMPACT_LAPTOP},
    preprocess=PICTURE,
    tiny=COMPACT_TINY,
    options=COMPACT(latent=64),
)
def uncertainty_vae(
    dims: int = 2,
    channels: int = 1,
    kl_weight: float = 1.0,
    least_variance: float = 1e-3,
    inference: Inference = "mean",
    samples: int = 1,
    **options: Unpack[Compact],
) -> Method:
    """Variational autoencoder that predicts how far each pixel may be off.

    Sato, Hama, Matsubara and Uehara, IJCNN 2019: the decoder gives mean and variance of each pixel,
    learnt by the bound. Of its three parts, divergence, logarithm of the variance, and squared
    residual over twice the variance, only the last is the map, so that what is hard to predict in
    healthy images, too, doesn't stand out. All sums; the uncertainty that is returned is the
    variance.

    Departures:
        everything but the score: the article's networks and numbers weren't known, and there is no
            code. Network, range and training are those of ``ae_u``, with 64 numbers in the code.
        floor: variances of 0.001 and more, ours.
        image score: the mean of the map in the foreground, ours.
        third axis: ours.

    Args:
        kl_weight: of the summed divergence; the second head is log sigma^2.
        least_variance: floor of the predicted variance, of images in -1..1.
        inference: ``mean`` takes the code's mean at test, ``sample`` draws it.
        samples: outputs averaged at test where the code is drawn.
    """
    network = compact_network(dims, channels, options, heads=2, outputs=2 * channels)
    method = PredictedVariance(
        network, None, squared, options, centred=True, least_variance=least_variance,
        kl_weight=kl_weight, log_variance=True, inference=inference, samples=samples,
    )  # fmt: skip
    method._loss = method.likelihood
    return method


@register(
    "robust_vae",
    paper="Akrami 2022",
    dims=(2, 3),
    presets={
        "code": {"beta": 0.0},
        "laptop": {
            "size": 64,
            "width": 16,
            "hidden": 256,
            "beta": 0.002,
            "constant": False,
            "lr": 1e-3,
            "steps": 800,
            "batch_size": 16,
            "preprocess": {**OWN_RANGE, "scaling": "median"},
        },
    },
    preprocess={"scaling": "minmax", "limit": 1.0, "crop": "none", "fit": "stretch"},
    tiny={
        "size": 32,
        "width": 8,
        "hidden": 64,
        "latent": 16,
        "beta": 0.02,
        "constant": False,
        "kl_weight": 0.02,
        "lr": 3e-3,
        "steps": 150,
        "batch_size": 16,
        "preprocess": {**OWN_RANGE, "scaling": "auto"},
    },
    options=schedule(lr=3e-4, batch_size=8, epochs=400),
)
def robust_vae(
    dims: int = 2,
    channels: int = 1,
    size: int = 128,
    latent: int = 64,
    width: int = 64,
    hidden: int = 2048,
    beta: float = 2.5e-5,
    constant: bool = True,
    kl_weight: float = 1.0,
    inference: Inference = "sample",
    samples: int = 1,
    **training: Unpack[Schedule],
) -> Method:
    """Variational autoencoder that outliers among its training images hardly teach.

    Akrami et al., Pattern Recognition Letters 2022: the logarithm of the likelihood, a Gaussian with
    deviation 1, gives way to the cross entropy of the beta divergence, in which an image counts the
    less the farther away it is restored, beside the summed divergence; it stays stable with a tenth
    of outliers and more, where a plain one learns to restore them. Convolutions of 64, 128 and 256
    channels, 64 numbers in the code, on slices of brains at 128 pixels in three channels, Adam 3e-4,
    batches of 8, 400 epochs. The map is the absolute residual with a drawn code. ``code`` has the
    beta of 0 that the release's script ends with, where it is a plain variational autoencoder; the
    default stands beside it as a comment. The output is a tanh: nothing above 1 is restored.

    Departures:
        beta of 0: its limit, half the summed squares and a constant; all of the squares in the
            release, as if the divergence weighed half.
        reduction: the mean over a batch of what the release sums.
        range: each scan's smallest and largest value become 0 and 1; the largest of all in the
            release.
        constant: with ``constant`` the density's constant factor counts, as in the release, where
            a large beta leaves nothing of the loss; ``laptop`` drops it, and with it goes what
            hinders a beta that tells outliers apart.
        score: the mean of the map in the foreground; the release scores pixels of one channel.
        third axis: ours.

    Args:
        size: pixels along each axis, a multiple of 8.
        latent: numbers in the code.
        width: channels of the first convolution.
        hidden: width of the linear layer before each head.
        beta: of the divergence; 0 for the likelihood. It should be about 2 over the summed squared
            error of an outlier; where ordinary images are as far from what an untrained network
            restores, none of them counts and nothing is learnt.
        constant: count the density's constant factor.
        kl_weight: of the summed divergence; the second head is log sigma^2.
        inference: ``sample`` draws the code at test as the release does; ``mean`` takes its mean.
        samples: restorations averaged at test where the code is drawn.
    """

    def loss(restored: Tensor, batch: Batch) -> dict[str, Tensor]:
        squares = (restored - batch.image).square().flatten(1)
        entropy = beta_cross_entropy(squares.sum(1), squares.shape[1], beta, constant=constant)
        return {"cross_entropy": entropy.mean()}

    network = PerceptronHeads(dims, channels, size, latent, width, hidden)
    return VariationalReconstruction(
        network, loss, absolute, training, kl_weight=kl_weight, log_variance=True,
        inference=inference, samples=samples,
    )  # fmt: skip
