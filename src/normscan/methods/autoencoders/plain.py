"""Autoencoders of the comparative study of Baur et al. 2021: dense, spatial and constrained code."""

from __future__ import annotations

from typing import Unpack, get_type_hints

from torch import Tensor, nn
from torch.nn import functional as F

from normscan.methods.base import Batch, Method
from normscan.methods.reconstruction import Reconstruction, Residual, positive
from normscan.methods.schedule import Schedule, schedule
from normscan.networks.autoencoder import BaurAutoencoder, CompactAutoencoder, Head, Norm
from normscan.networks.norms import kept_statistics
from normscan.objectives.losses import per_image_sum
from normscan.registry import register
from normscan.signatures import Options

# The study erodes the brain by 12 of its 128 pixels; scaled with the size.
POSTPROCESS = ("erode=12", "median=5")
LAPTOP_POSTPROCESS = ("erode=2", "median=3")
PREPROCESS = {"percentile": 99.8}
CODE = {"norm": "affine"}
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


class Baur(Schedule):
    """What the study's methods share: the network's arguments and those of ``schedule``."""

    size: int
    latent: int
    width: int
    dropout: float
    norm: Norm


_TRAINING = schedule(lr=1e-4, beta1=0.5, batch_size=8, epochs=1000, patience=5)
BAUR = Options(
    get_type_hints(Baur),
    {
        "size": 128,
        "latent": 128,
        "width": 32,
        "dropout": 0.2,
        "norm": "batch",
        **_TRAINING.defaults,
    },
    {
        "size": "pixels along each axis, a power of two times 8.",
        "latent": "numbers in the code.",
        "width": "channels of the first convolution.",
        "dropout": "share of the features that are dropped in training, after the linear layers.",
        "norm": "``batch``, or ``affine`` for a learned scale and shift only.",
        **_TRAINING.descriptions,
    },
)


def baur_network(
    dims: int, channels: int, study: Baur, heads: int = 1, head: Head = "dense", smallest: int = 8
) -> BaurAutoencoder:
    """Return the study's encoder and decoder for its shared arguments."""
    return BaurAutoencoder(
        dims, channels, study["size"], study["latent"], heads, study["width"], study["dropout"],
        study["norm"], head, smallest,
    )  # fmt: skip


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
    presets={"code": CODE, "laptop": LAPTOP},
    postprocess=POSTPROCESS,
    smallest_component=7,
    preprocess=PREPROCESS,
    tiny={**TINY, "width": 8, "steps": 500},
    options=BAUR,
)
def dense_autoencoder(dims: int = 2, channels: int = 1, **study: Unpack[Baur]) -> Method:
    """Autoencoder with a dense code.

    Baur et al., Medical Image Analysis 2021: a network shared by the whole study, a code of 128
    numbers, summed absolute error, early stopping on the healthy validation loss. Only what is
    brighter than its restoration counts, inside the eroded foreground and median filtered. The form
    of Cai et al. 2025 with this name is ``ae4ad``.

    Departures:
        norm: ``code`` has batch norms that never normalise, as the released graph; the article's
            normalise.
        dropout: in the release the one behind the decoder's linear layer is never active.
        early stopping: the weights with the least validation loss stay; the release evaluates
            those of five epochs later.
        prior: the release also reports residuals among the brightest tenth of the volume; that is
            ``postprocess=["hyperintense=0.9", ...]`` here.
    """
    return Reconstruction(baur_network(dims, channels, study), absolute_sum, positive, study)


@register(
    "ae_spatial",
    paper="Baur 2021",
    dims=(2, 3),
    presets={"code": CODE, "laptop": {**LAPTOP, "width": 8, "steps": 800}},
    postprocess=POSTPROCESS,
    smallest_component=7,
    preprocess=PREPROCESS,
    tiny={**TINY, "width": 4, "size": 64, "lr": 4e-3},
    options=BAUR,
)
def spatial_autoencoder(dims: int = 2, channels: int = 1, **study: Unpack[Baur]) -> Method:
    """Autoencoder with a spatial code.

    Baur et al., Medical Image Analysis 2021: as ``ae_dense``, but the 8 x 8 x 128 features of the
    encoder are the code. Mind the capacity when methods are compared: 8192 numbers against the 128
    of ``ae_dense``, enough to copy a lesion, and the study finds it worse than the dense code.

    Departures:
        norm, early stopping, prior: as in ``ae_dense``.

    Args:
        latent: not used; the code has four times ``width`` channels.
        dropout: share of the code that is dropped in training.
    """
    network = baur_network(dims, channels, study, head="spatial")
    return Reconstruction(network, absolute_sum, positive, study)


class ConstrainedReconstruction(Reconstruction):
    """The restoration must have the code of the image; see ``constrained_autoencoder``."""

    network: BaurAutoencoder | CompactAutoencoder

    def __init__(
        self, network: nn.Module, residual: Residual, training: Schedule, code_weight: float,
        centred: bool = False,
    ) -> None:  # fmt: skip
        super().__init__(network, mean_squared, residual, training, centred=centred)
        self.code_weight = code_weight

    def loss(self, batch: Batch, phase: str, player: str) -> dict[str, Tensor]:
        batch = self.scaled(batch)
        (z,) = self.network.encode(batch.image)
        restored = self.network.decode(z)
        code = self.code_weight * F.mse_loss(self.again(restored), z)  # Gradients through both.
        return {**mean_squared(restored, batch), "code": code}

    def again(self, restored: Tensor) -> Tensor:
        """The code of a restoration; the running statistics stay those of images."""
        with kept_statistics(self.network):
            return self.network.encode(restored)[0]


@register(
    "constrained_ae",
    paper="Chen 2018; Baur 2021",
    dims=(2, 3),
    presets={"code": CODE, "laptop": LAPTOP},
    postprocess=POSTPROCESS,
    smallest_component=7,
    preprocess=PREPROCESS,
    tiny=TINY,
    options=BAUR(lr=1e-3, latent=1024, dropout=0.1),
)
def constrained_autoencoder(
    dims: int = 2, channels: int = 1, code_weight: float = 1.0, **study: Unpack[Baur]
) -> Method:
    """Autoencoder whose restoration has the code of the image.

    The idea of Chen and Konukoglu, MIDL 2018, without its adversary, as in Baur et al., Medical
    Image Analysis 2021: squared error plus the squared distance of the codes of image and
    restoration, means both, with gradients through both codes; only the restoration counts at
    test. The bottleneck has 16 x 16 features, the code 1024 numbers. The residual is that of
    ``ae_dense``.

    Departures:
        statistics: the second encoding is normalised by the restorations of the batch and leaves
            the running statistics alone, which are those of images; the article says nothing, and
            in ``code`` nothing normalises.
        norm, dropout, early stopping, prior: as in ``ae_dense``.

    Args:
        size: pixels along each axis, a power of two times 16.
        code_weight: weight of the distance of the codes.
    """
    network = baur_network(dims, channels, study, smallest=16)
    return ConstrainedReconstruction(network, positive, study, code_weight)
