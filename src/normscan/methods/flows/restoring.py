"""A flow between the two halves of an autoencoder."""

from __future__ import annotations

import math
from typing import Unpack

import torch
from torch import Tensor, nn

from normscan.errors import ArgumentError
from normscan.methods.base import Batch, Maps, Method, Phase
from normscan.methods.features.common import (
    LAPTOP,
    LITE0_STAGES,
    PICTURE,
    TINY,
    Trained,
    backbone_of,
    lite0,
    tapped,
)
from normscan.methods.reconstruction import absolute
from normscan.methods.schedule import phase, schedule
from normscan.networks.backbones import Backbone
from normscan.networks.flows import Flow, Flowed, convolutions, coupled, surprise
from normscan.objectives.similarity import ssim_map
from normscan.registry import register

# Shares of the features' channels behind each doubling but the last.
SHARES = (2, 4, 16)


def enlarging(channels: int, stride: int, out: int) -> nn.Sequential:
    """Transposed convolutions from features to images in -1..1, each twice as large as the last.

    Args:
        channels: of the features.
        stride: pixels to a cell, 2, 4, 8 or 16.
        out: channels of the image.

    Raises:
        ArgumentError: another stride.
    """
    times = int(math.log2(stride))
    if 2**times != stride or not 1 <= times <= len(SHARES) + 1:
        raise ArgumentError(f"the tap has {stride} pixels to a cell: give one with 2, 4, 8 or 16.")
    widths = [channels, *(channels // s for s in SHARES)][:times]
    parts: list[nn.Module] = []
    for a, b in zip(widths, widths[1:], strict=False):
        parts += [nn.ConvTranspose2d(a, a, 2, 2, bias=False), nn.BatchNorm2d(a), nn.ReLU()]
        parts += [nn.Conv2d(a, b, 3, padding=1), nn.BatchNorm2d(b), nn.ReLU()]
    return nn.Sequential(*parts, nn.ConvTranspose2d(widths[-1], out, 2, 2, bias=False), nn.Tanh())


class FlowAutoencoder(Method):
    """Features are made normal, and the image is restored from that; see ``ae_flow``."""

    def __init__(
        self, backbone: Backbone, flow: Flow, decoder: nn.Module, alpha: float, beta: float,
        training: Trained,
    ) -> None:  # fmt: skip
        super().__init__()
        self.backbone, self.flow, self.decoder = backbone, flow, decoder
        self.alpha, self.beta = alpha, beta
        self._training = training

    def phases(self) -> list[Phase]:
        return [phase([self.flow, self.decoder], self._training, "restore", keep="last")]

    def restored(self, image: Tensor) -> tuple[Flowed, Tensor]:
        """Where the features are led, and the restoration (B, C, H, W) in -1..1."""
        (features,) = self.backbone(image).values()
        flowed: Flowed = self.flow(features)
        return flowed, self.decoder(flowed.z)

    def loss(self, batch: Batch, phase: str, player: str) -> dict[str, Tensor]:
        flowed, restored = self.restored(batch.image)
        bits = surprise(flowed, mean=True) / math.log(2)
        error = (restored - (2 * batch.image - 1)).square()
        return {"flow": self.alpha * bits.mean(), "restoration": (1 - self.alpha) * error.mean()}

    @torch.no_grad()
    def maps(self, batch: Batch) -> Maps:
        x = 2 * batch.image - 1
        flowed, restored = self.restored(batch.image)
        # The density of z alone, without the determinant.
        likely = (-surprise(Flowed(flowed.z, torch.zeros_like(flowed.log_det)), mean=True)).exp()
        alike = ssim_map(x, restored, data_range=2.0).flatten(1).mean(1)
        return Maps(
            map=absolute(x, restored) / 2,
            score=-self.beta * likely - (1 - self.beta) * alike,
            reconstruction=(restored + 1) / 2,
        )


_LAPTOP = {**LAPTOP, "taps": ("layer3",), "steps": 400, "batch_size": 8, "lr": 1e-3}
_LAPTOP["preprocess"] = {**_LAPTOP["preprocess"], "limit": 1.0}


@register(
    "ae_flow",
    paper="Zhao 2023",
    dims=(2,),
    presets={"laptop": _LAPTOP, "lite0": lite0(_LAPTOP, LITE0_STAGES[3:])},
    # What lies above 1 could not be restored by a tanh.
    preprocess={**PICTURE, "limit": 1.0},
    tiny={
        **TINY, "taps": ("layer2",), "size": 48, "blocks": 2, "batch_size": 8, "steps": 50,
        "lr": 4e-3,
    },
    options=tapped(taps=("layer3",))
    | schedule(lr=2e-3, weight_decay=1e-4, batch_size=64, epochs=100),
)  # fmt: skip
def ae_flow(
    dims: int = 2,
    channels: int = 1,
    blocks: int = 8,
    alpha: float = 0.5,
    beta: float = 0.9,
    **options: Unpack[Trained],
) -> Method:
    """Autoencoder around a flow that makes the features of healthy images normal (AE-FLOW).

    Zhao et al., ICLR 2023: the features of the third stage of a frozen Wide ResNet-50 go through 8
    affine couplings (a 3x3 and a 1x1 convolution each); four transposed convolutions that end in
    tanh restore the image from what comes out. Training lowers 1/2 bits per dimension of the
    features + 1/2 mean squared error (Adam 2e-3, decay 1e-4, batches of 64, 100 epochs; 1e-3 without
    decay for chest X-rays). The image score is 0.9 S + 0.1 (-SSIM), S = -exp(log N(z) / numbers in
    z), without the determinant. There is no released code of the authors. Image and network work in
    -1..1, as in the port whose figures are published; images must lie in 0..1.

    Departures:
        decoder: each doubling has batch norms, ReLUs and a 3x3 convolution as in a second port,
            whose text says that the article has them; in the first one four tanh stand in a row.
        channels: the image's own; the ports restore three equal ones.
        encoder: frozen and in evaluation mode; the ports freeze its weights, but normalise with the
            batch's statistics, or train it.
        SSIM: the data range is 2, in the ports that of the batch, by which scores hang on others.
        map: |x - restoration|, ours; the article scores images.
        residual couplings: the article's second kind of network isn't built.

    Args:
        size: pixels along each axis, a multiple of the stride of the tap, 11 or more.
        taps: the one stage that is used.
        blocks: couplings in the flow.
        alpha: weight of the flow's term in the loss; the restoration has the rest.
        beta: weight of the flow's part of the score; the similarity has the rest.
    """
    if len(options["taps"]) != 1:
        raise ArgumentError(f"ae_flow restores from one stage, not from {len(options['taps'])}.")
    backbone = backbone_of(options, channels, scaling="centred")
    (wide,), (stride,) = backbone.channels, backbone.strides
    flow = coupled(wide, [convolutions(3, 1)] * blocks)
    return FlowAutoencoder(backbone, flow, enlarging(wide, stride, channels), alpha, beta, options)
