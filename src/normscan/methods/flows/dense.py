"""Flows over whole feature maps of a frozen network."""

from __future__ import annotations

from typing import Unpack

import torch
from torch import Tensor, nn
from torch.nn import functional as F

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
from normscan.methods.schedule import phase, schedule
from normscan.networks.backbones import Backbone
from normscan.networks.flows import Flowed, convolutions, coupled
from normscan.registry import register


class FastFlow(Method):
    """One convolutional flow for each level of features; see ``fastflow``."""

    def __init__(
        self, backbone: Backbone, flow_steps: int, alternate: bool, hidden: float, training: Trained
    ) -> None:
        super().__init__()
        self.backbone = backbone
        kernels = [1 if alternate and i % 2 else 3 for i in range(flow_steps)]
        subnets = [convolutions(k, k, hidden) for k in kernels]
        grids = [training["size"] // stride for stride in backbone.strides]
        self.norms = nn.ModuleList(
            nn.LayerNorm([c, n, n]) for c, n in zip(backbone.channels, grids, strict=True)
        )
        self.flows = nn.ModuleList(coupled(c, subnets) for c in backbone.channels)
        self._training = training

    def phases(self) -> list[Phase]:
        return [phase([self.norms, self.flows], self._training, "flow", keep="last")]

    def flowed(self, image: Tensor) -> list[Flowed]:
        """Where the features of each level are led."""
        levels = zip(self.backbone(image).values(), self.norms, self.flows, strict=True)
        return [flow(norm(features)) for features, norm, flow in levels]

    def loss(self, batch: Batch, phase: str, player: str) -> dict[str, Tensor]:
        flowed = self.flowed(batch.image)
        return {
            tap: (0.5 * f.z.square().flatten(1).sum(1) - f.log_det).mean()
            for tap, f in zip(self.backbone.taps, flowed, strict=True)
        }

    @torch.no_grad()
    def maps(self, batch: Batch) -> Maps:
        likely = [
            F.interpolate(
                (-0.5 * f.z.square().mean(1, keepdim=True)).exp(), batch.image.shape[2:],
                mode="bilinear", align_corners=False,
            )
            for f in self.flowed(batch.image)
        ]  # fmt: skip
        return Maps(map=-torch.stack(likely).mean(0))


_LAPTOP = {**LAPTOP, "alternate": False, "steps": 200, "batch_size": 8}


@register(
    "fastflow",
    paper="Yu 2021",
    dims=(2,),
    presets={"laptop": _LAPTOP, "lite0": lite0(_LAPTOP, LITE0_STAGES[1:])},
    reduction="max",
    preprocess=PICTURE,
    tiny={
        **TINY, "size": 48, "alternate": False, "flow_steps": 2, "batch_size": 8, "steps": 40,
        "lr": 2e-3,
    },
    options=tapped | schedule(lr=1e-3, weight_decay=1e-5, batch_size=32, epochs=500),
)  # fmt: skip
def fastflow(
    dims: int = 2,
    channels: int = 1,
    flow_steps: int = 8,
    alternate: bool = True,
    hidden: float = 1.0,
    **options: Unpack[Trained],
) -> Method:
    """Convolutional flows that lead healthy feature maps to a standard normal (FastFlow).

    Yu et al., 2021: the features of three stages of a frozen Wide ResNet-50 are normalised by a
    learnt layer norm each and go through a flow each: 8 affine couplings between halves of the
    channels, whose networks are two convolutions with a ReLU, 3x3 and 1x1 by turns. Training lowers
    mean(1/2 |z|^2 - log |det J|), summed over the stages (Adam 1e-3, decay 1e-5, batches of 32, 500
    epochs). The map is the mean over the stages of -exp(-1/2 mean_c z^2), enlarged to the image; the
    image score its maximum. There is no released code of the authors; couplings (log scale
    2 tanh(0.1 s), a learnt scale and offset of each channel, a random order of the channels) are
    those of two ports, which agree. For a ResNet-18 the ports have ``alternate=False``.

    Departures:
        range: the ports keep whole pictures at 256 pixels and drop a pass's last, smaller batch;
            here the batch is filled from the next pass.
        transformers: the ports send one block's tokens through the network's own last norm, and have
            20 couplings with ``hidden=0.16``; here each tap has a learnt norm, as for stages.

    Args:
        size: pixels along each axis, a multiple of the stride of the last stage.
        flow_steps: couplings in each flow.
        alternate: every other coupling's kernels are 1x1; else all are 3x3.
        hidden: channels inside a coupling's network, as a share of those that it sees.
    """
    return FastFlow(backbone_of(options, channels), flow_steps, alternate, hidden, options)
