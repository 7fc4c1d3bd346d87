"""Autoencoders of the comparative study of Baur et al.: dense, spatial and constrained code."""

from __future__ import annotations

from typing import Any, Literal, Unpack

from torch import Tensor, nn
from torch.nn import functional as F

from normscan.methods.base import Batch, Method, Phase
from normscan.methods.reconstruction import Reconstruction, positive
from normscan.methods.schedule import Schedule, phase, with_training
from normscan.networks.autoencoder import BaurAutoencoder, Code, Head, Levels, Norm
from normscan.networks.norms import kept_statistics
from normscan.objectives.losses import per_image_sum
from normscan.registry import register

# The brain is eroded by 12 of the 128 pixels.
BAUR_POSTPROCESS = ("erode=12", "median=5")
PRIOR = {"postprocess": ("erode=12", "hyperintense=0.9", "median=5")}
# The whole frame, cut at the 99.8th percentile of the volume, background counted.
BAUR_RANGE: dict[str, Any] = {
    "scaling": "percentile",
    "percentile": 99.8,
    "over": "image",
    "limit": 1.0,
    "crop": "none",
    "fit": "stretch",
}
# What the presets that are not the study's take instead.
OWN_RANGE: dict[str, Any] = {
    "over": "foreground",
    "limit": 3.0,
    "crop": "foreground",
    "fit": "pad",
}
LAPTOP_POSTPROCESS = ("erode=2", "median=3")
LAPTOP: dict[str, Any] = {
    "size": 64,
    "width": 16,
    "latent": 64,
    "dropout": 0.1,
    "lr": 1e-3,
    "steps": 600,
    "patience": None,
    "batch_size": 16,
    "postprocess": LAPTOP_POSTPROCESS,
    "preprocess": {**OWN_RANGE, "scaling": "median"},
}
TINY: dict[str, Any] = {
    "size": 32,
    "width": 16,
    "latent": 16,
    "dropout": 0.0,
    "lr": 2e-3,
    "steps": 300,
    "patience": None,
    "postprocess": (),
    "preprocess": {**OWN_RANGE, "scaling": "auto"},
}
# The released graph never switches its batch norms to training, and the last weights are scored.
BAUR_CODE: dict[str, Any] = {"norm": "affine", "keep": "last"}
BAUR_PRESETS = {"code": BAUR_CODE, "prior": PRIOR, "laptop": LAPTOP}


class Baur(Schedule):
    """The arguments that the study's networks share, those of ``schedule`` among them."""

    size: int
    latent: int
    width: int
    dropout: float
    norm: Norm
    keep: Literal["best", "last"]


BAUR = with_training(
    Baur,
    {"size": 128, "latent": 128, "width": 32, "dropout": 0.2, "norm": "batch", "keep": "best"},
    {
        "size": "pixels along each axis, a power of two times 8.",
        "latent": "numbers in the code.",
        "width": "channels of the first convolution; the widest has four times as many.",
        "dropout": "after the linear layers, or on a spatial code.",
        "norm": "``batch``, or ``affine`` for a learned scale and shift only.",
        "keep": "the weights with the ``best`` healthy validation loss, or the ``last`` ones.",
    },
    lr=1e-4,
    beta1=0.5,
    batch_size=8,
    epochs=1000,
    patience=5,
)


def baur_network(
    dims: int, channels: int, options: Baur, *, heads: int = 1, head: Head = "dense",
    smallest: int = 8, restoring_dropout: float | None = None,
) -> BaurAutoencoder:  # fmt: skip
    """Return the study's network, with what one of its methods changes."""
    levels = Levels(options["width"], smallest=smallest, norm=options["norm"])
    return BaurAutoencoder(
        dims, channels, options["size"], Code(options["latent"], heads, head), levels,
        dropout=options["dropout"], restoring_dropout=restoring_dropout,
    )  # fmt: skip


def baur_phases(network: nn.Module, options: Baur) -> list[Phase]:
    """The study's training, with the weights that ``keep`` asks for."""
    return [phase(network, options, keep=options["keep"])]


def mean_squared(restored: Tensor, batch: Batch) -> dict[str, Tensor]:
    """Mean squared error."""
    return {"l2": F.mse_loss(restored, batch.image)}


def absolute_sum(restored: Tensor, batch: Batch) -> dict[str, Tensor]:
    """Absolute error, summed over an image."""
    return {"l1": per_image_sum((restored - batch.image).abs())}


@register(
    "ae_dense",
    paper="Baur 2021",
    dims=(2, 3),
    presets=BAUR_PRESETS,
    postprocess=BAUR_POSTPROCESS,
    smallest_component=7,
    preprocess=BAUR_RANGE,
    tiny={**TINY, "width": 8, "steps": 500},
    options=BAUR,
)
def dense_autoencoder(dims: int = 2, channels: int = 1, **options: Unpack[Baur]) -> Method:
    """Autoencoder with a dense code, in the form of a comparative study.

    Baur et al., Medical Image Analysis 2021: four convolutions of stride 2 to 8 x 8, 128 numbers,
    the same way back, dropout 0.2 on the code; summed absolute error, Adam 1e-4 with beta1 0.5,
    batches of 8, training ends after 5 epochs without gain on the healthy validation loss. Volumes
    are cut at their 99.8th percentile and brought to 0..1. The map is what is brighter than the
    restoration, in the brain eroded by 12 pixels, median filtered by 5; components of 7 voxels or
    fewer are dropped. Each figure is given a second time with the preset ``prior``, which keeps the
    brightest tenth of the volume only. The form of Cai et al. 2025 is ``ae4ad``.

    Departures:
        norm: batch norms that normalise; in the release they never do (``code``), since its graph
            isn't told that it trains.
        weights: the best ones are kept; the release scores the last, 5 epochs later (``code``).
        initial weights: PyTorch's; Glorot with zero biases in the release.
        score: the mean of the map over the foreground; the study scores voxels only.
        third axis: ours.
    """
    network = baur_network(dims, channels, options, restoring_dropout=0.0)
    return Reconstruction(
        network, absolute_sum, positive, lambda network: baur_phases(network, options)
    )


@register(
    "ae_spatial",
    paper="Baur 2021",
    dims=(2, 3),
    presets=BAUR_PRESETS,
    postprocess=BAUR_POSTPROCESS,
    smallest_component=7,
    preprocess=BAUR_RANGE,
    tiny={**TINY, "width": 4, "dropout": 0.5, "steps": 300},
    options=BAUR,
)
def spatial_autoencoder(dims: int = 2, channels: int = 1, **options: Unpack[Baur]) -> Method:
    """Autoencoder with a spatial code, in the form of a comparative study.

    Baur et al., Medical Image Analysis 2021: as ``ae_dense``, but the 8 x 8 x 128 features of the
    encoder are the code, with dropout 0.2. Mind the capacity when methods are compared: these are
    8192 numbers against the 128 of ``ae_dense``, enough to copy a lesion, and the study finds it
    worse than the dense code. The form of Cai et al. 2025 is ``ae_spatial_compact``.

    Departures:
        all those of ``ae_dense``.

    Args:
        latent: not used; the code has four times ``width`` channels.
    """
    network = baur_network(dims, channels, options, head="spatial")
    return Reconstruction(
        network, absolute_sum, positive, lambda network: baur_phases(network, options)
    )


class ConstrainedReconstruction(Reconstruction):
    """The restoration must have the code of the image; see ``constrained_autoencoder``.

    Args:
        *parts: of ``Reconstruction``, whose network has a code.
        code_weight: of the squared distance of the two codes.
        **options: of ``Reconstruction``.
    """

    network: Any

    def __init__(self, *parts: Any, code_weight: float, **options: Any) -> None:
        super().__init__(*parts, **options)
        self.code_weight = code_weight

    def loss(self, batch: Batch, phase: str, player: str) -> dict[str, Tensor]:
        batch = self.scaled(batch)
        (z,) = self.network.encode(batch.image)
        restored = self.network.decode(z)
        again = self.second_code(restored)
        code = self.code_weight * F.mse_loss(again, z)  # Gradients through both.
        return {**self._loss(restored, batch), "code": code}

    def second_code(self, restored: Tensor) -> Tensor:
        """The code of a restoration, whose statistics don't join those that serve at test."""
        with kept_statistics(self.network):
            (again,) = self.network.encode(restored)
        return again


@register(
    "constrained_ae",
    paper="Chen 2018; Baur 2021",
    dims=(2, 3),
    presets=BAUR_PRESETS,
    postprocess=BAUR_POSTPROCESS,
    smallest_component=7,
    preprocess=BAUR_RANGE,
    tiny=TINY,
    options=BAUR(lr=1e-3, latent=1024, dropout=0.1),
)
def constrained_autoencoder(
    dims: int = 2, channels: int = 1, code_weight: float = 1.0, **options: Unpack[Baur]
) -> Method:
    """Autoencoder whose restoration has the code of the image, in the form of a comparative study.

    The idea of Chen and Konukoglu, MIDL 2018, without its adversary, as in Baur et al., Medical
    Image Analysis 2021: squared error plus the squared distance of the codes of image and
    restoration, means both, with gradients through both codes; 16 x 16 features before a code of
    1024 numbers, dropout 0.1, Adam 1e-3. Only the restoration counts at test; range, map and
    post-processing are those of ``ae_dense``. The form of Cai et al. 2025 is
    ``constrained_ae_compact``.

    Departures:
        all those of ``ae_dense``.
        statistics: the batch norms take those of the restorations while these are encoded, and the
            running ones are of images alone; the release's norms have no statistics.

    Args:
        size: pixels along each axis, a power of two times 16.
        code_weight: weight of the distance of the codes.
    """
    network = baur_network(dims, channels, options, smallest=16)
    return ConstrainedReconstruction(
        network, mean_squared, positive, lambda network: baur_phases(network, options),
        code_weight=code_weight,
    )  # fmt: skip
