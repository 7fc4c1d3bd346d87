"""Variational autoencoders of whole volumes."""

from __future__ import annotations

from typing import Unpack

from torch import Tensor

from normscan.methods.autoencoders.plain import LAPTOP_POSTPROCESS
from normscan.methods.base import Batch, Method
from normscan.methods.reconstruction import absolute
from normscan.methods.schedule import Schedule, schedule
from normscan.methods.variational.vae import Inference, VariationalReconstruction
from normscan.networks.volumes import StridedGrid
from normscan.objectives.losses import optimal_surprise
from normscan.registry import register


@register(
    "vae_3d",
    paper="Lambert 2021",
    dims=(2, 3),
    presets={
        "laptop": {
            "size": 48,
            "width": 8,
            "lr": 1e-3,
            "batch_size": 2,
            "steps": 150,
            "postprocess": LAPTOP_POSTPROCESS,
            "preprocess": {"scaling": "median"},
        }
    },
    tiny={
        "size": 32,
        "width": 8,
        "stages": 3,
        "latent": 8,
        "lr": 3e-3,
        "batch_size": 16,
        "steps": 120,
    },
    options=schedule(lr=1e-4, batch_size=2, epochs=200),
)
def vae_3d(
    dims: int = 3,
    channels: int = 1,
    size: int = 128,
    latent: int = 16,
    width: int = 16,
    stages: int = 4,
    kl_weight: float = 1.0,
    inference: Inference = "mean",
    samples: int = 1,
    **training: Unpack[Schedule],
) -> Method:
    """Variational autoencoder of whole volumes with a grid of codes.

    Lambert et al., ISBI 2021, on FLAIR volumes of several centres, white matter lesions and tumours:
    a fully three-dimensional variational autoencoder, with a new loss for robust training, finds
    both better than one of slices (``dims=2``). Here that loss is the bound with the best deviation
    for each scan, half the number of values times the logarithm of the mean squared error, which
    needs no weight between error and divergence (Rybkin et al. 2021). The map is the absolute
    residual.

    Departures:
        everything but the idea: only the abstract was known, and there is no code. The loss, the
            convolutions (3x3x3 of stride 2, instance norms), their number and width, the schedule
            and the range are ours.
        score: the mean of the map over the foreground, ours.

    Args:
        size: pixels along each axis, a multiple of 2 to the power of ``stages``.
        latent: channels of the code.
        width: channels of the first convolution; each further one doubles them.
        stages: how often the grid is halved.
        kl_weight: of the summed divergence; the second head is log sigma.
        inference: ``mean`` takes the code's mean at test, ``sample`` draws it.
        samples: restorations averaged at test where the code is drawn.
    """

    def loss(restored: Tensor, batch: Batch) -> dict[str, Tensor]:
        return {"likelihood": optimal_surprise(batch.image, restored).mean()}

    network = StridedGrid(dims, channels, latent, width, stages)
    return VariationalReconstruction(
        network, loss, absolute, training, kl_weight=kl_weight, inference=inference, samples=samples,
    )  # fmt: skip
