"""Whether a patch belongs where it is."""

from __future__ import annotations

from typing import Unpack

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from normscan.methods.base import Batch, Maps, Method, Phase
from normscan.methods.schedule import Schedule, phase, schedule
from normscan.networks.blind import BlindNetwork, plain_convolutions
from normscan.networks.blocks import pad_to_multiple
from normscan.registry import register
from normscan.synthesis.augment import brightness, gamma, sharpness, turned
from normscan.synthesis.draws import spread_out

CHANGES = (gamma, brightness, sharpness, turned)


def changed_copy(batch: Batch) -> Tensor:
    """Each image changed in one of four ways, with normal noise of up to 0.1."""
    x, n = batch.image, len(batch)
    which = batch.rng.integers(0, len(CHANGES), (n, 1)).to(x.device)
    result = x
    for number, change in enumerate(CHANGES):
        result = torch.where(spread_out(which == number, 2), change(x, batch.rng), result)
    deviation = spread_out(0.1 * batch.rng.uniform((n, 1)).to(x), 2)
    return result + deviation * batch.rng.normal(tuple(x.shape)).to(x)


class Matching(Method):
    """Context and local features that belong together or not; see the registered method."""

    def __init__(
        self, context: BlindNetwork, local: nn.Sequential, width: int, training: Schedule
    ) -> None:
        super().__init__()
        self.surround, self.local = context, local
        self.head = nn.Sequential(
            nn.Conv2d(3 * width, width, 1), nn.LeakyReLU(0.1), nn.Conv2d(width, 1, 1)
        )
        self._training = training

    def phases(self) -> list[Phase]:
        return [phase([self.surround, self.local, self.head], self._training, "match")]

    def features(self, image: Tensor) -> Tensor:
        """Of the surroundings of each pixel, (B, width, H, W)."""
        padded, cut = pad_to_multiple(image, self.surround.multiple)
        found: Tensor = self.surround(padded)[cut]
        return found

    def logits(self, surround: Tensor, local: Tensor) -> Tensor:
        """How well features belong together, (B, 1, H, W)."""
        # Whether two vectors match is told by their products, which layers of sums learn slowly.
        found: Tensor = self.head(torch.cat([surround, local, surround * local], 1))
        return found

    def loss(self, batch: Batch, phase: str, player: str) -> dict[str, Tensor]:
        surround, local = self.features(batch.image), self.local(batch.image)
        other = self.local(changed_copy(batch))
        inside = batch.foreground

        def term(logits: Tensor, mask: Tensor, sign: int) -> Tensor:
            return F.softplus(-sign * logits)[mask].sum() / mask.sum().clamp_min(1)

        terms = {
            "together": term(self.logits(surround, local), inside, 1),
            "changed": 0.5 * term(self.logits(surround, other), inside, -1),
        }
        if len(batch) > 1:  # of the next image, where both show tissue
            both = inside & inside.roll(1, 0)
            moved = self.logits(surround, local.roll(1, 0))
            terms["exchanged"] = 0.5 * term(moved, both, -1)
        return terms

    @torch.no_grad()
    def maps(self, batch: Batch) -> Maps:
        logits = self.logits(self.features(batch.image), self.local(batch.image))
        return Maps(map=(-logits).sigmoid())


@register(
    "context_feature_matching",
    paper="Kascenas 2022 (ISBI)",
    dims=(2,),
    presets={"laptop": {"size": 64, "width": 16, "steps": 300, "batch_size": 8}},
    postprocess=("median=5",),
    reduction="top_1_percent",
    tiny={
        "size": 32, "width": 8, "levels": 2, "side": 5, "lr": 1e-2, "steps": 60,
        "batch_size": 8, "postprocess": (),
    },
    options=schedule(lr=1e-3, batch_size=16, epochs=50),
)  # fmt: skip
def context_feature_matching(
    dims: int = 2,
    channels: int = 1,
    size: int = 128,
    width: int = 64,
    levels: int = 4,
    side: int = 9,
    **training: Unpack[Schedule],
) -> Method:
    """Whether the features of a patch belong to those of what lies around it.

    Kascenas et al., ISBI 2022, on brain MRI: one network sees a small patch around each pixel, another
    one its context, and a third learns whether both are from the same healthy image: pairs are made
    wrong by changing the image that the patch is from, or by exchanging patches and contexts. The map
    is how probably a pixel's patch doesn't belong there. The article reports significant gains over
    its baselines on tumours.

    Departures:
        everything but the principle: no code was released, and of the article the abstract was known.
            The context comes from a U-Net in four directions, which sees all but the patch; a patch is
            exchanged for that of the next image at the same place, where both show tissue; changes are
            of gamma, brightness, sharpness or angle, with noise; right and wrong pairs weigh the same;
            the third network also sees the products of both features.
        numbers: sides, widths and the training's are ours; median and highest hundredth as the image
            score are those of the group's later work and ours.

    Args:
        size: pixels along each axis.
        width: channels of the patch's network and of the context's first level.
        levels: that the context's network halves the image to.
        side: of the patch in pixels, odd.
    """
    local = plain_convolutions(channels, width, side)
    return Matching(BlindNetwork(channels, width, levels, side), local, width, training)
