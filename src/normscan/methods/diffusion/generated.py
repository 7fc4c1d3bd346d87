"""A segmenter that learns from images and masks which Stable Diffusion generated."""

from __future__ import annotations

from collections.abc import Callable
from typing import TypedDict, get_type_hints

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from normscan.methods.base import Batch, Maps, Method, Phase, Player, adam
from normscan.methods.synthesis.draem import two_steps
from normscan.networks.discriminative import SegmentingNetwork
from normscan.networks.stable import StableDiffusion, colours
from normscan.objectives.segmentation import focal
from normscan.signatures import Options

SEGMENT = "segment"


class GeneratedPairs(Method):
    """Each update of the segmenter's phase generates one anomaly more, till there are enough.

    So a run that is killed goes on with those that it has, which are part of its state.

    Args:
        stable: what generates.
        size: pixels along each axis of the images.
        pairs: anomalies that are generated.
        width: channels of the segmenter's first level.
        segmenting: the segmenter to its phase.
    """

    images: Tensor
    masks: Tensor
    number: Tensor

    def __init__(
        self, stable: StableDiffusion, size: int, pairs: int, width: int,
        segmenting: Callable[[nn.Module], Phase],
    ) -> None:  # fmt: skip
        super().__init__()
        self.stable, self._segmenting = stable, segmenting
        self.segmenter = SegmentingNetwork(3, width=width)
        self.register_buffer("images", torch.zeros(pairs, 3, size, size, dtype=torch.uint8))
        self.register_buffer("masks", torch.zeros(pairs, 1, size, size, dtype=torch.bool))
        self.register_buffer("number", torch.zeros((), dtype=torch.long))

    def phases(self) -> list[Phase]:
        return [self._segmenting(self.segmenter)]

    def pair(self, batch: Batch) -> tuple[Tensor, Tensor]:
        """An image (1, 3, H, W) from 0 to 1 with an anomaly, and its mask (1, 1, H, W) bool."""
        raise TypeError(f"{type(self).__name__} doesn't say how it generates anomalies")

    def loss(self, batch: Batch, phase: str, player: str) -> dict[str, Tensor]:
        if (at := int(self.number)) < len(self.images):
            image, mask = self.pair(batch)
            self.images[at], self.masks[at] = (255 * image[0]).round(), mask[0]
            self.number += 1
        x, made = colours(batch.image), int(self.number)
        chosen = batch.rng.integers(0, made, (len(x),)).to(x.device)
        fake = (batch.rng.uniform((len(x), 1)) < 0.5).to(x.device).reshape(-1, 1, 1, 1)
        x = torch.where(fake, self.images[chosen] / 255, x)
        mask = fake & self.masks[chosen]
        return {"focal": focal(self.segmenter(x).softmax(1)[:, 1:], mask)}

    @torch.no_grad()
    def maps(self, batch: Batch) -> Maps:
        found = self.segmenter(colours(batch.image)).softmax(1)[:, 1:]
        score = F.avg_pool2d(found, 21, 1, 10).flatten(1).amax(1)
        return Maps(found, score)


class Generating(TypedDict):
    """The arguments that these methods share."""

    size: int
    stable: str
    stable_weights: str
    pairs: int
    segment_steps: int
    segment_batch: int
    segment_width: int
    segment_lr: float


generating = Options(
    get_type_hints(Generating),
    {
        "size": 512, "stable": "stable-diffusion-v1-5/stable-diffusion-v1-5",
        "stable_weights": "hub", "pairs": 500, "segment_steps": 6250, "segment_batch": 16,
        "segment_width": 64, "segment_lr": 1e-4,
    },
    {
        "size": "pixels along each axis.",
        "stable": "repository of Stable Diffusion 1.x on the hub.",
        "stable_weights": "``hub``, a folder laid out like the repository, or ``random`` for tests.",
        "pairs": "anomalies that are generated; 1 MB of the detector each at 512 pixels.",
        "segment_steps": "updates of the segmenter, each of the first ones generates an anomaly.",
        "segment_batch": "images in one of them.",
        "segment_width": "channels of the segmenter's first level.",
        "segment_lr": "learning rate of Adam for it.",
    },
)  # fmt: skip


def segment_phase(o: Generating) -> Callable[[nn.Module], Phase]:
    """Adam at a rate of which a fifth is left after 80 % of the steps, and again after 90 %."""

    def phase(segmenter: nn.Module) -> Phase:
        player = Player("segmenter", [segmenter], adam(o["segment_lr"]), schedule=two_steps)
        return Phase(SEGMENT, [player], o["segment_steps"], batch_size=o["segment_batch"])

    return phase


TINY = {
    "size": 32, "stable": "tiny", "stable_weights": "random", "pairs": 6, "segment_steps": 40,
    "segment_batch": 4, "segment_width": 4, "segment_lr": 5e-3,
    "preprocess": {"crop": "foreground", "fit": "pad"},
}  # fmt: skip
PICTURE = {"scaling": "file", "crop": "none", "fit": "stretch"}
