"""Networks whose score of an anomaly stands out from a prior of scores."""

from __future__ import annotations

from typing import Unpack

import torch
from torch import Tensor, nn

from normscan.methods.base import Batch, Maps, Method, Phase
from normscan.methods.features.common import PICTURE
from normscan.methods.supervised.common import (
    LAPTOP,
    TINY,
    OpenSet,
    Pyramid,
    any_turn,
    deviates,
    ill,
    open_phase,
    open_set,
)
from normscan.objectives.deviation import highest_mean
from normscan.objectives.optimizers import stairs
from normscan.registry import register


def clipped_to_1(x: Tensor, share: float = 0.99) -> Tensor:
    """Each of (B, ...) from its lowest value at 0 to its 99th percentile and more at 1."""
    flat = x.flatten(1)
    low, high = flat.amin(1), torch.quantile(flat, share, dim=1)
    low, high = (v.reshape(-1, *[1] * (x.ndim - 1)) for v in (low, high))
    return torch.where(high > 0, ((x - low) / (high - low).clamp_min(1e-30)).clamp(0, 1), x)


class DeviationNetwork(Method):
    """Scores an image by the highest responses to a learnt filter; see ``devnet``."""

    needs_grad = True

    def __init__(self, pyramid: Pyramid, o: OpenSet) -> None:
        super().__init__()
        self.pyramid, self.head = pyramid, nn.Conv2d(pyramid.width, 1, 1)
        self._options = o

    def phases(self) -> list[Phase]:
        modules = [self.pyramid, self.head]
        return [open_phase(modules, self._options, stairs(5), "healthy+labelled")]

    def score(self, image: Tensor) -> Tensor:
        """How anomalous images are, (B,)."""
        places = [self.head(features).flatten(1).abs() for features in self.pyramid(image)]
        share = self._options["share"]
        return torch.stack([highest_mean(found, share)[0] for found in places]).mean(0)

    def loss(self, batch: Batch, phase: str, player: str) -> dict[str, Tensor]:
        score = self.score(any_turn(batch))
        return {"deviation": deviates(score, ill(batch), batch.rng, self._options["margin"])}

    def maps(self, batch: Batch) -> Maps:
        backbone = self.pyramid.backbone
        assert isinstance(backbone.std, Tensor)
        with torch.enable_grad():
            # Each channel that the network sees has a gradient of its own, also of a grey image.
            image = batch.image.expand(-1, backbone.inputs, -1, -1).clone().requires_grad_()
            score = self.score(image)
            (slope,) = torch.autograd.grad(score.sum(), image)
        slope = slope * backbone.std  # of the normalised image
        return Maps(clipped_to_1(slope.abs().sum(1, keepdim=True)), score.detach())


@register(
    "devnet",
    paper="Pang 2021",
    regime="few-anomalies",
    preprocess=PICTURE,
    postprocess=("smooth=4",),
    presets={"laptop": LAPTOP},
    tiny={**TINY, "postprocess": ("smooth=1",)},
    options=open_set,
)
def devnet(dims: int = 2, channels: int = 1, **options: Unpack[OpenSet]) -> Method:
    """Deviation network: anomalies stand out by a Z score, learnt from a few of them.

    Pang et al., 2021 (arXiv 2108.00462), after Pang et al., KDD 2019: a ResNet-18 and a 1x1
    convolution on its last stage learn; an image's score is the mean of the highest tenth of the
    absolute responses, averaged over the image at 448 pixels and at half of that. The loss takes
    5000 draws of a standard normal distribution at each update as scores that are to be expected:
    |z| for healthy images, max(0, 5 - z) for anomalous ones. Batches of 48, half of them anomalous,
    turned by any angle on black; 50 epochs of 20 updates with Adam 2e-4, decay 1e-5, a gradient of
    norm 1 at most, the rate a tenth every 10 epochs. The map is the gradient of the score in the
    normalised image: absolute, summed over the channels, from its lowest value to its 99th percentile,
    smoothed by 4 pixels.

    Departures:
        turning: reads between pixels linearly; the release takes the nearest ones.

    Args:
        size: pixels along each axis.
        taps: the stage whose features are scored, one.
    """
    return DeviationNetwork(Pyramid(options, channels), options)
