"""Autoencoders over the scales of an image."""

from __future__ import annotations

from typing import Unpack

import torch
from torch import Tensor

from normscan.methods.base import Batch, Maps, Method, Phase
from normscan.methods.schedule import Schedule, phase, schedule
from normscan.networks.pyramid import ScaleSpaceAutoencoder, mean_residual
from normscan.registry import register


class ScaleSpace(Method):
    """Autoencoders of the bands of a Laplacian pyramid, trained together."""

    def __init__(self, network: ScaleSpaceAutoencoder, training: Schedule) -> None:
        super().__init__()
        self.network = network
        self._training = training

    def phases(self) -> list[Phase]:
        return [phase(self.network, self._training)]

    def loss(self, batch: Batch, phase: str, player: str) -> dict[str, Tensor]:
        pairs = zip(*self.network(batch.image), strict=True)
        return {f"l2_level_{i}": (x - y).square().mean() for i, (x, y) in enumerate(pairs)}

    @torch.no_grad()
    def maps(self, batch: Batch) -> Maps:
        pyramid, restored = self.network(batch.image)
        residual = mean_residual(pyramid, restored).clamp_min(0).mean(dim=1, keepdim=True)
        return Maps(map=residual, reconstruction=restored[0])


@register(
    "scale_space_ae",
    paper="Baur 2020 (MICCAI)",
    dims=(2, 3),
    presets={
        "laptop": {
            "size": 64, "code": 4, "width": 16, "lr": 1e-3, "batch_size": 16, "steps": 400,
            "patience": None, "postprocess": ("erode=2", "median=3"), "preprocess": {"scaling": "median"},
        }
    },
    postprocess=("erode=12", "median=5"),
    smallest_component=7,
    preprocess={"percentile": 99.8},
    tiny={
        "size": 32, "width": 8, "code": 2, "lr": 5e-3, "steps": 300, "patience": None,
        "postprocess": (),
    },
    options=schedule(lr=1e-4, batch_size=8, epochs=1000, patience=5),
)  # fmt: skip
def scale_space_autoencoder(
    dims: int = 2,
    channels: int = 1,
    size: int = 256,
    bands: int = 3,
    code: int = 8,
    width: int = 32,
    **training: Unpack[Schedule],
) -> Method:
    """Scale-space autoencoders on the bands of a Laplacian pyramid, for small bright lesions.

    Baur et al., MICCAI 2020: each of three bands has an autoencoder with an 8x8 code; the low-pass
    image passes by unchanged, so a lesion that fills several of its pixels stays. The squared
    errors of the re-assembled levels are summed. The map is the residual where it is positive,
    inside the eroded foreground, median filtered.

    Departures:
        sizes: no code was released: widths and schedule are ours.
        map: the residuals of the levels, enlarged and averaged.
        range, erosion and median: those of the group's later study (``ae_dense``).
        third axis: ours.

    Args:
        size: pixels along each axis, ``code`` times a power of two, 2**bands at least.
        bands: of the pyramid.
        code: pixels of each code along each axis.
        width: channels of the first convolution of each autoencoder; each further one doubles them.
    """
    return ScaleSpace(ScaleSpaceAutoencoder(dims, channels, size, bands, width, code), training)
