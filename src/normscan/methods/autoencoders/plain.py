"""Autoencoders of the comparative studies: dense, spatial and constrained code."""

from __future__ import annotations

import contextlib
from typing import Literal, Unpack

from torch import Tensor
from torch.nn import functional as F

from normscan.methods.base import Batch, Method
from normscan.methods.reconstruction import Reconstruction, absolute, squared
from normscan.methods.schedule import Schedule, schedule
from normscan.networks.autoencoder import BaurAutoencoder, CompactAutoencoder, Head, Norm
from normscan.networks.norms import kept_statistics
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
    dropout: float, norm: Norm, head: Head = "dense", smallest: int = 8,
) -> BaurAutoencoder | CompactAutoencoder:  # fmt: skip
    """Return the encoder and decoder of one of the two comparative studies."""
    if design == "baur":
        return BaurAutoencoder(
            dims, channels, size, latent, heads, width, dropout, norm, head, smallest
        )
    # Its first layer has half the channels of the other design's.
    return CompactAutoencoder(dims, channels, size, latent, heads, width // 2, head=head)


def mean_squared(restored: Tensor, batch: Batch) -> dict[str, Tensor]:
    """Mean squared error."""
    return {"l2": F.mse_loss(restored, batch.image)}


def absolute_sum(restored: Tensor, batch: Batch) -> dict[str, Tensor]:
    """Absolute error, summed over an image."""
    return {"l1": per_image_sum((restored - batch.image).abs())}


def restoring(
    network: BaurAutoencoder | CompactAutoencoder, design: Design, training: Schedule
) -> Method:
    """Return the method with the loss and the residual of one of the two comparative studies."""
    if design == "compact":
        return Reconstruction(network, mean_squared, squared, training, centred=True)
    return Reconstruction(network, absolute_sum, absolute, training)


@register(
    "ae_dense",
    paper="Baur 2021",
    dims=(2, 3),
    presets={"code": {"norm": "affine"}, "medianomaly": MEDIANOMALY, "laptop": LAPTOP},
    postprocess=BAUR_POSTPROCESS,
    smallest_component=7,
    preprocess={"percentile": 99.8},
    tiny={**TINY, "width": 8, "steps": 500},
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
    return restoring(network, design, training)


@register(
    "ae_spatial",
    paper="Baur 2021",
    dims=(2, 3),
    presets={
        "code": {"norm": "affine"},
        "medianomaly": MEDIANOMALY,
        "laptop": {**LAPTOP, "design": "compact", "latent": 4},
    },
    postprocess=BAUR_POSTPROCESS,
    smallest_component=7,
    preprocess={"percentile": 99.8},
    tiny={**TINY, "design": "compact", "latent": 2, "steps": 200},
    options=BAUR_TRAINING,
)
def spatial_autoencoder(
    dims: int = 2,
    channels: int = 1,
    size: int = 128,
    design: Design = "baur",
    latent: int = 16,
    width: int = 32,
    dropout: float = 0.2,
    norm: Norm = "batch",
    **training: Unpack[Schedule],
) -> Method:
    """Autoencoder with a spatial code.

    Baur et al., Medical Image Analysis 2021: as ``ae_dense``, but the 8 x 8 x 128 features of the
    encoder are the code. ``medianomaly`` is the form of Cai et al. 2025 with 4 x 4 x 16 numbers.
    Mind the capacity when methods are compared: 8192 numbers against the 128 of ``ae_dense`` at the
    articles' sizes, enough to copy a lesion, and both studies find it worse than the dense code.
    ``laptop`` takes the ``compact`` form with 4 x 4 x 4 numbers, as many as ``ae_dense`` has there.

    Args:
        size: pixels along each axis, a power of two times 8 (4 for ``compact``).
        design: ``baur`` or ``compact`` (Cai et al. 2025, squared error of images in -1..1).
        latent: channels of the code of ``compact``; that of ``baur`` has four times ``width``.
        dropout: on the code of ``baur``.
        norm: ``batch``, or ``affine`` for a learned scale and shift only.
    """
    network = build_network(
        design, dims, channels, size, latent, 1, width, dropout, norm, head="spatial"
    )
    return restoring(network, design, training)


class ConstrainedReconstruction(Reconstruction):
    """The restoration must have the code of the image; see ``constrained_autoencoder``."""

    network: BaurAutoencoder | CompactAutoencoder

    def __init__(
        self, network: BaurAutoencoder | CompactAutoencoder, compact: bool, training: Schedule,
        code_weight: float, second_statistics: bool,
    ) -> None:  # fmt: skip
        residual = squared if compact else absolute
        super().__init__(network, mean_squared, residual, training, centred=compact)
        self.code_weight = code_weight
        self.second_statistics = second_statistics

    def loss(self, batch: Batch, phase: str, player: str) -> dict[str, Tensor]:
        batch = self.scaled(batch)
        (z,) = self.network.encode(batch.image)
        restored = self.network.decode(z)
        with contextlib.nullcontext() if self.second_statistics else kept_statistics(self.network):
            (again,) = self.network.encode(restored)
        code = self.code_weight * F.mse_loss(again, z)  # Gradients through both.
        return {**mean_squared(restored, batch), "code": code}


@register(
    "constrained_ae",
    paper="Chen 2018; Baur 2021",
    dims=(2, 3),
    presets={
        "code": {"norm": "affine"},
        "medianomaly": {**MEDIANOMALY, "second_statistics": True},
        "laptop": LAPTOP,
    },
    postprocess=BAUR_POSTPROCESS,
    smallest_component=7,
    preprocess={"percentile": 99.8},
    tiny=TINY,
    options=BAUR_TRAINING(lr=1e-3),
)
def constrained_autoencoder(
    dims: int = 2,
    channels: int = 1,
    size: int = 128,
    design: Design = "baur",
    latent: int = 1024,
    width: int = 32,
    dropout: float = 0.1,
    norm: Norm = "batch",
    code_weight: float = 1.0,
    second_statistics: bool = False,
    **training: Unpack[Schedule],
) -> Method:
    """Autoencoder whose restoration has the code of the image.

    The idea of Chen and Konukoglu, MIDL 2018, without its adversary, as in Baur et al., Medical
    Image Analysis 2021: squared error plus the squared distance of the codes of image and
    restoration, means both, with gradients through both codes; only the restoration counts at
    test. ``medianomaly`` switches to the network and the schedule of Cai et al. 2025.

    The restoration is encoded by the same network. In training its batch norms take the statistics
    of the restorations then; the running ones, which serve at test, are those of images alone. That
    is our choice: the code of Cai lets the second encoding move them, too.

    Args:
        size: pixels along each axis, a power of two times 16 (4 for ``compact``).
        design: ``baur`` with 16 x 16 features before the code, or ``compact`` (Cai et al. 2025,
            images in -1..1, squared residual).
        dropout: after the linear layers of ``baur``.
        norm: ``batch``, or ``affine`` for a learned scale and shift only.
        code_weight: weight of the distance of the codes.
        second_statistics: the second encoding moves the running statistics, too.
    """
    network = build_network(
        design, dims, channels, size, latent, 1, width, dropout, norm, smallest=16
    )
    return ConstrainedReconstruction(
        network, design == "compact", training, code_weight, second_statistics
    )
