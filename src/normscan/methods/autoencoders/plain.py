"""Autoencoders with a narrow dense code."""

from __future__ import annotations

from typing import Literal, Unpack

from torch import Tensor

from normscan.methods.base import Batch, Method
from normscan.methods.reconstruction import Reconstruction, absolute, squared
from normscan.methods.schedule import Schedule, schedule
from normscan.networks.autoencoder import BaurAutoencoder, CompactAutoencoder, Norm
from normscan.objectives.losses import per_image_sum
from normscan.registry import register

Design = Literal["baur", "compact"]

# The comparative study (Baur 2021) erodes the brain by 12 of its 128 pixels; scaled with the size.
BAUR_POSTPROCESS = ("erode=12", "median=5")
BAUR_TRAINING = schedule(lr=1e-4, beta1=0.5, batch_size=8, epochs=1000, patience=5)
LAPTOP_POSTPROCESS = ("erode=2", "median=3")
MEDIANOMALY = {
    "design": "compact",
    "size": 64,
    "latent": 16,
    "lr": 1e-3,
    "beta1": 0.9,
    "batch_size": 64,
    "epochs": 250,
    "patience": None,
    "postprocess": (),
    "reduction": "mean",
}
LAPTOP = {
    "size": 64,
    "width": 16,
    "latent": 64,
    "dropout": 0.1,
    "lr": 1e-3,
    "steps": 600,
    "patience": None,
    "batch_size": 16,
    "postprocess": LAPTOP_POSTPROCESS,
    "preprocess": {"scaling": "median"},
}
TINY = {
    "size": 32,
    "width": 16,
    "latent": 16,
    "dropout": 0.0,
    "lr": 2e-3,
    "steps": 300,
    "patience": None,
    "postprocess": (),
}


def build_network(
    design: Design, dims: int, channels: int, size: int, latent: int, heads: int, width: int,
    dropout: float, norm: Norm,
) -> BaurAutoencoder | CompactAutoencoder:  # fmt: skip
    """Return the encoder and decoder of one of the two comparative studies."""
    if design == "baur":
        return BaurAutoencoder(dims, channels, size, latent, heads, width, dropout, norm)
    # Its first layer has half the channels of the other design's.
    return CompactAutoencoder(dims, channels, size, latent, heads, width // 2)


@register(
    "ae_dense",
    paper="Baur 2021",
    dims=(2, 3),
    presets={"code": {"norm": "affine"}, "medianomaly": MEDIANOMALY, "laptop": LAPTOP},
    postprocess=BAUR_POSTPROCESS,
    smallest_component=7,
    preprocess={"percentile": 99.8},
    tiny=TINY,
    options=BAUR_TRAINING,
)
def dense_autoencoder(
    dims: int = 2,
    channels: int = 1,
    size: int = 128,
    design: Design = "baur",
    latent: int = 128,
    width: int = 32,
    dropout: float = 0.2,
    norm: Norm = "batch",
    **training: Unpack[Schedule],
) -> Method:
    """Autoencoder with a dense code.

    Baur et al., Medical Image Analysis 2021: summed absolute error, early stopping on the healthy
    validation loss, absolute residual, eroded foreground and median filter. ``medianomaly``
    switches to the network, the squared error and the schedule of Cai et al. 2025. ``code`` uses
    batch norms that never normalise, as the released graph does.

    Args:
        size: pixels along each axis, a power of two times 8 (4 for ``compact``).
        design: ``baur`` or ``compact`` (Cai et al. 2025, squared error of images in -1..1).
        dropout: after the linear layers of ``baur``.
        norm: ``batch``, or ``affine`` for a learned scale and shift only.
    """
    network = build_network(design, dims, channels, size, latent, 1, width, dropout, norm)
    compact = design == "compact"

    def loss(restored: Tensor, batch: Batch) -> dict[str, Tensor]:
        if compact:
            return {"l2": (restored - batch.image).square().mean()}
        return {"l1": per_image_sum((restored - batch.image).abs())}

    residual = squared if compact else absolute
    return Reconstruction(network, loss, residual, training, centred=compact)
