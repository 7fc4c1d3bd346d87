"""An autoencoder for training scans of which some are not healthy."""

from __future__ import annotations

from typing import Unpack

from torch import Tensor

from normscan.methods.autoencoders.plain import LAPTOP, TINY
from normscan.methods.base import Batch, Method
from normscan.methods.impure_training import WARM_UP, ImpureTraining
from normscan.methods.reconstruction import Reconstruction, absolute
from normscan.methods.schedule import Schedule, schedule
from normscan.networks.autoencoder import BaurAutoencoder, Code, Levels
from normscan.registry import register


@register(
    "impure_training",
    paper="Behrendt 2022",
    dims=(2,),
    presets={"laptop": LAPTOP},
    postprocess=("erode=5", "median=5"),
    tiny={**TINY, "batch_size": 8},
    options=schedule(batch_size=32, epochs=1000, patience=None),
)
def impure_training(
    dims: int = 2,
    channels: int = 1,
    size: int = 128,
    latent: int = 128,
    width: int = 32,
    dropout: float = 0.0,
    cut: float | None = 1.5,
    warm_up: float = WARM_UP,
    **training: Unpack[Schedule],
) -> Method:
    """Autoencoder that leaves training scans out which look unhealthy.

    Behrendt et al., ISBI 2022, found that unhealthy scans among the training scans can be told by
    their error, and that without them training is robust: an autoencoder with a dense code and the
    absolute error. Here that is the wrapper ``impure`` around the network of ``ae_dense``. Names of
    the scans that were left out stand in ``training.dropped`` of the detector.

    Departures:
        sizes: no code was released: network, size and schedule are ours.
        rule: errors beyond the third quartile by 1.5 quartile ranges, by subject: ours.
        erosion and median: a twenty-fifth of the size and 5, as in the group's later code.

    Args:
        size: pixels along each axis, a power of two times 8.
        dropout: after the linear layers.
        cut: subjects are left out whose error lies beyond the third quartile by so many quartile
            ranges; None keeps all.
        warm_up: share of the training before errors count.
    """

    def loss(restored: Tensor, batch: Batch) -> dict[str, Tensor]:
        return {"l1": (restored - batch.image).abs().mean()}

    network = BaurAutoencoder(dims, channels, size, Code(latent), Levels(width), dropout=dropout)
    method = Reconstruction(network, loss, absolute, training)
    return method if cut is None else ImpureTraining(method, cut, warm_up)
