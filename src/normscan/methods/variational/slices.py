"""A variational autoencoder of slices whose codes know the slices around them."""

from __future__ import annotations

from typing import Any, Unpack

import torch
from torch import Tensor

from normscan.errors import ArgumentError
from normscan.methods.base import Batch, Maps, Method
from normscan.methods.reconstruction import absolute
from normscan.methods.variational.erasing import CLEANED, RANGE, SMALL, TINY, VOLUME, Volume
from normscan.methods.variational.vae import VariationalReconstruction
from normscan.networks.autoencoder import BaurAutoencoder, Code, Levels
from normscan.networks.divergences import kl_standard_normal
from normscan.networks.sequences import Between, SliceSequence
from normscan.registry import register


class Neighbouring(VariationalReconstruction):
    """Restores a slice with its neighbours; see ``inter_slice``.

    Args:
        *parts: of ``VariationalReconstruction``, with ``SliceSequence``.
        context: neighbours on each side.
        **options: of ``VariationalReconstruction``.
    """

    def __init__(self, *parts: Any, context: int, **options: Any) -> None:
        super().__init__(*parts, **options)
        self.context = context

    def around(self, batch: Batch) -> Tensor:
        """Slices (B, C, 2 n + 1, H, W) with their neighbours."""
        return batch.image[:, :, None] if batch.context is None else batch.context

    def loss(self, batch: Batch, phase: str, player: str) -> dict[str, Tensor]:
        x = self.around(batch)
        mean, log_std = self.encode(x)
        restored = self.network.decode(self.draw(mean, log_std, batch))
        slices = len(x) * x.shape[2]
        return {
            "l1": (x - restored).abs().sum() / slices,
            "kl": self.kl_weight * kl_standard_normal(mean, log_std).sum() / slices,
        }

    @torch.no_grad()
    def maps(self, batch: Batch) -> Maps:
        # All codes know each other, but only that of the slice itself is decoded.
        mean, _ = self.encode(self.around(batch))
        middle = mean.shape[1] // 2
        restored = self.network.decode(mean[:, middle : middle + 1])[:, :, 0]
        return Maps(absolute(batch.image, restored), reconstruction=restored)


@register(
    "inter_slice",
    paper="Behrendt 2022 (MIDL)",
    presets={"laptop": {**SMALL, "size": 64, "context": 3, "heads": 4}},
    preprocess=RANGE,
    postprocess=CLEANED,
    smallest_component=7,
    tiny={**TINY, "context": 1, "layers": 1, "heads": 2, "steps": 120},
    options=VOLUME(latent=128, batch_size=8),
)
def inter_slice_vae(
    dims: int = 2,
    channels: int = 1,
    kl_weight: float = 1.0,
    between: Between = "transformer",
    context: int = 8,
    layers: int = 4,
    heads: int = 8,
    **options: Unpack[Volume],
) -> Method:
    """Variational autoencoder of slices whose codes depend on the neighbouring slices.

    Behrendt et al., MIDL 2022 (short paper), on T1-weighted volumes: an encoder and a decoder of
    slices, between which a recurrent network or a transformer runs over the sequence of a volume's
    codes. The article finds slices restored, and lesions segmented, better than by a network of
    single slices about as large.

    Departures:
        sizes: no code was released, and of the article the abstract was known: the network of
            slices is the study's of Baur et al. 2021 with 32 to 256 channels; length of a sequence,
            layers and heads are ours. The correction of mean and spread is added to them.
        sequence: a slice and its neighbours, the ends repeated; the article's may be a volume.
        loss: summed absolute error and summed divergence of every slice of a sequence; their
            weights weren't known.
        range, erosion, median, rate: of the group's later code, whose smoothing by curvature flow
            and threshold from lesions are left out.

    Args:
        dims: spatial axes, 2: slices of volumes.
        size: pixels along each axis, a power of two times 8.
        kl_weight: of the summed divergence beside the summed error.
        between: ``transformer``, ``gru`` (both directions), or ``none`` for slices by themselves.
        context: neighbours on each side of a slice.
        layers: of the sequence model.
        heads: of the transformer's attention, a divisor of twice ``latent``.

    """
    latent, width = options["latent"], options["width"]
    if 2 * latent % heads:
        raise ArgumentError(
            f"heads={heads} doesn't divide twice latent={latent}. Use heads=8 or 4."
        )
    slices = BaurAutoencoder(
        dims, channels, options["size"], Code(latent, 2), Levels(width, 8 * width), dropout=0.0
    )
    network = SliceSequence(slices, latent, 2 * context + 1, between, layers, heads)
    return Neighbouring(
        network, lambda restored, batch: {}, absolute, options, context=context,
        kl_weight=kl_weight,
    )  # fmt: skip
