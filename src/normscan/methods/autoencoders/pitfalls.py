"""The autoencoders of the study on what a residual can't find; its experiments are in diagnostics."""

from __future__ import annotations

from typing import Literal, Unpack

import torch
from torch import Tensor, nn

from normscan.methods.autoencoders.compact import PICTURE
from normscan.methods.autoencoders.plain import LAPTOP, OWN_RANGE
from normscan.methods.base import Batch, Method, Phase
from normscan.methods.reconstruction import Reconstruction, absolute
from normscan.methods.schedule import Schedule, phase, schedule
from normscan.networks.quantised import QuantisedAutoencoder
from normscan.networks.strided import StridedAutoencoder
from normscan.registry import register


class QuantisedReconstruction(Reconstruction):
    """Reconstruction by a network with codebooks, whose commitment joins the loss."""

    commitment_weight = 0.25

    def loss(self, batch: Batch, phase: str, player: str) -> dict[str, Tensor]:
        assert isinstance(self.network, QuantisedAutoencoder)
        restored, commitment = self.network.restore(batch.image)
        return {**self._loss(restored, batch), "commitment": self.commitment_weight * commitment}


@register(
    "residual_pitfalls",
    paper="Meissen 2022",
    dims=(2, 3),
    presets={
        "code": {"latent": 256},
        "laptop": {k: v for k, v in LAPTOP.items() if k not in ("dropout", "patience")},
    },
    tiny={
        "size": 32,
        "latent": 32,
        "width": 16,
        "lr": 5e-3,
        "batch_size": 16,
        "steps": 150,
        "preprocess": {**OWN_RANGE, "scaling": "auto"},
    },
    preprocess={**PICTURE, "scaling": "minmax"},
    options=schedule(lr=1e-3, weight_decay=2e-2, batch_size=128, steps=10_000),
)
def residual_pitfalls(
    dims: int = 2,
    channels: int = 1,
    size: int = 256,
    code: Literal["dense", "spatial", "quantised"] = "dense",
    latent: int = 128,
    code_channels: int = 2,
    codes: int = 512,
    width: int = 32,
    **training: Unpack[Schedule],
) -> Method:
    """Autoencoders of the study on what a residual can't find.

    Meissen, Wiestler, Kaissis and Rueckert, MIDL 2022: the absolute residual misses an anomaly
    whose intensity is one of healthy tissue, however well the network restores. These are the three
    networks that it was shown on, trained on the absolute error of slices 120 to 140 of the brains
    of MOOD at 256 pixels: AdamW 1e-3 with decay 0.02, batches of 128, 10,000 updates. ``code`` has
    the length of the code that the released script takes by itself. ``normscan.diagnostics`` holds
    the experiments.

    Departures:
        range: each scan's smallest and largest value become 0 and 1; the release takes the values
            of MOOD, which lie in 0..1, as they are.
        weights: those with the best healthy validation loss, as one of the three files that the
            release keeps; the others are the last and those with the best AP on painted disks.
        score: the mean of the map over the foreground; the article scores pixels only.
        third axis: ours.

    Args:
        size: pixels along each axis, a power of two times 8.
        code: ``dense`` (32, 64, 128 or 256 numbers in the article), ``spatial`` (a grid of 8x8
            with one or two channels), or ``quantised`` (two codebooks, VQ-VAE-2).
        latent: numbers in the dense code.
        code_channels: of the spatial code.
        codes: vectors in each codebook of the quantised code.
        width: channels of the first convolution; a quarter of the widest layers, also of the
            quantised network (128).
        lr: learning rate of AdamW.
        beta1: first momentum of AdamW.
        weight_decay: of AdamW.
    """

    def loss(restored: Tensor, batch: Batch) -> dict[str, Tensor]:
        return {"l1": (restored - batch.image).abs().mean()}

    def phases(network: nn.Module) -> list[Phase]:
        return [phase(network, training, optimizer=torch.optim.AdamW)]

    if code == "quantised":
        quantised = QuantisedAutoencoder(dims, channels, 4 * width, codes=codes)
        return QuantisedReconstruction(quantised, loss, absolute, phases)
    spatial = code == "spatial"
    network = StridedAutoencoder(
        dims, channels, size, code_channels if spatial else latent, width, spatial
    )
    return Reconstruction(network, loss, absolute, phases)
