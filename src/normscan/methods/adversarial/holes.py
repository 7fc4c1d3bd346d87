"""What a network puts into holes of an image: healthy tissue, whatever was there."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Unpack

import torch
from scipy.ndimage import distance_transform_edt
from torch import Tensor, nn
from torch.nn import functional as F

from normscan.errors import ArgumentError
from normscan.methods.adversarial.game import Rounds, played, rounds
from normscan.methods.base import Batch, Maps, Method, Phase, Player, adam
from normscan.methods.reconstruction import absolute
from normscan.networks.inpainting import Inpainter, hole_critic
from normscan.registry import register
from normscan.synthesis.augment import shifted
from normscan.synthesis.strokes import brushed

USUAL = 256  # pixels of the images that strokes were told for


@dataclass(frozen=True)
class Holes:
    """The holes that are slid over an image: squares with as much between them.

    Attributes:
        side: in pixels.
        step: pixels by which they are moved.
    """

    side: int
    step: int

    def masks(self, size: int) -> Tensor:
        """All positions, (n, 1, size, size); each pixel lies in a quarter of them."""
        places = torch.arange(size)
        shifts = range(0, 2 * self.side, self.step)
        lines = torch.stack([(places - s) % (2 * self.side) < self.side for s in shifts])
        both = lines[:, None, :, None] & lines[None, :, None, :]
        return both.flatten(0, 1)[:, None].float()


def discounted(hole: Tensor, gamma: float) -> Tensor:
    """Gamma to the distance from what is known, in the hole; 0 beyond (Yu et al. 2018).

    Args:
        hole: (B, 1, H, W), 1 in it and 0 beyond.
        gamma: 0 to 1.
    """
    away = [torch.from_numpy(distance_transform_edt(h)) for h in hole[:, 0].cpu().numpy()]
    return hole * gamma ** torch.stack(away)[:, None].to(hole)


@dataclass(frozen=True)
class Weights:
    """Of image and critic, and what is left of the first for each pixel into a hole."""

    image: float
    adversarial: float
    gamma: float


class Inpainting(Method):
    """Holes are filled, and what was there is compared; see ``adversarial_inpainting``."""

    def __init__(
        self, network: Inpainter, critic: nn.Module, holes: Holes, weights: Weights, phase: Phase
    ) -> None:
        super().__init__()
        self.network, self.critic = network, critic
        self.holes, self.weights, self._phase = holes, weights, phase

    def phases(self) -> list[Phase]:
        return [self._phase]

    def loss(self, batch: Batch, phase: str, player: str) -> dict[str, Tensor]:
        x, weights, size = shifted(batch.image, batch.rng, 0.1), self.weights, batch.image.shape[-1]
        turned = batch.rng.uniform((len(x), 1, 1, 1)).to(x) < 0.5
        x = torch.where(turned, x.flip(-1), x)
        hole = brushed(batch.rng, len(x), (size, size), size / USUAL, x.device).to(x)
        judge = lambda image: self.critic(torch.cat([image, hole], 1))  # noqa: E731
        if player == "critic":
            with torch.no_grad():
                fine = self.network(x, hole)[0]
            real, fake = F.relu(1 - judge(x)).mean(), F.relu(1 + judge(fine)).mean()
            return {"real": real, "fake": fake}
        fine, coarse = self.network(x, hole)
        near = discounted(hole, weights.gamma)
        error = (near * (fine - x).abs()).mean() + (near * (coarse - x).abs()).mean()
        return {
            "image": weights.image * error,
            "adversarial": -weights.adversarial * judge(fine).mean(),
        }

    @torch.no_grad()
    def maps(self, batch: Batch) -> Maps:
        x = batch.image
        total, times = torch.zeros_like(x), torch.zeros_like(x[:1, :1])
        error = torch.zeros_like(x[:, :1])
        for hole in self.holes.masks(x.shape[-1]).to(x).split(1):
            # Not len(x), which would fix the number of images in an exported graph.
            filled = self.network(x, hole.expand(x.shape[0], -1, -1, -1))[0]
            total, times = total + hole * filled, times + hole
            error = error + hole * absolute(x, filled)
        map = error / times
        regions = F.avg_pool2d(map, self.holes.side, self.holes.step)
        return Maps(map=map, score=regions.flatten(1).amax(1), reconstruction=total / times)


@register(
    "adversarial_inpainting",
    paper="Nguyen 2021",
    dims=(2,),
    presets={
        "laptop": {
            "size": 64, "width": 8, "critic_width": 16, "hole": 16, "step": 8, "batch_size": 8,
            "steps": 400, "lr": 1e-3,
        },
    },
    # What lies above 1 could not be filled in by a sigmoid.
    preprocess={"scaling": "percentile", "limit": 1.0},
    tiny={
        "size": 32, "width": 4, "critic_width": 2, "hole": 8, "step": 8, "batch_size": 8,
        "steps": 60, "lr": 5e-3,
    },
    options=rounds(lr=1e-3, batch_size=32, epochs=50),
)  # fmt: skip
def adversarial_inpainting(
    dims: int = 2,
    channels: int = 1,
    size: int = 256,
    width: int = 32,
    critic_width: int = 64,
    hole: int = 32,
    step: int = 8,
    image: float = 0.5,
    adversarial: float = 0.5,
    gamma: float = 0.99,
    decay: float = 0.96,
    **training: Unpack[Rounds],
) -> Method:
    """Holes slid over a slice and filled with healthy tissue by an adversarial network.

    Nguyen et al., ISBI 2021: a GAN learns to inpaint healthy slices of brain MRI; a hole is slid over
    a scan, each region inpainted and compared inside the hole with what was there, and the region with
    the largest error is the anomaly. Nothing was released; network, holes and training are those of
    a later system of other authors for bleeds in CT: two stages of gated convolutions (32 to 128
    channels, dilations up to 16, self-attention in the second), holes of 1 to 4 brush strokes in
    training, 0.5 the absolute error of both stages, 0.99 to the distance from what is known, and 0.5
    a hinge loss of a critic with spectral norm that also sees the hole; Adam 1e-3, betas 0.5 and
    0.999, weight decay 1e-6, batches of 32, 50 passes, the rate 0.96 times after each; slices moved
    and resized by up to a tenth and mirrored. At test squares of 32 pixels with as much between them
    move by 8, so that each pixel is filled in equally often. The map is its mean error, the score
    the mean of the square in which that is largest. Images must lie in 0..1.

    Departures:
        all values: of that other system; the article's aren't known.
        segmentation: by the detector's threshold; the article takes the superpixels that overlap with
            the region.
        training: no rotation, no dots in the holes and no batch norm in the critic, which that
            system has.

    Args:
        size: pixels along each axis, a multiple of 4.
        width: channels of the first convolution, even.
        critic_width: channels of the critic's first convolution.
        hole: side of the squares at test, in pixels.
        step: pixels by which they move, a divisor of ``hole``.
        image: weight of the absolute error.
        adversarial: weight of the critic.
        gamma: what is left of the error for each pixel into a hole.
        decay: factor of the rate after each pass.
    """
    if hole % step or hole > size:
        raise ArgumentError(
            f"hole={hole}, step={step}: give a hole of at most {size} pixels and a step that divides "
            "it, so that each pixel lies in as many holes."
        )
    network, critic = Inpainter(channels, size, width), hole_critic(channels, critic_width)
    optimizer = adam(training["lr"], betas=(0.5, 0.999), weight_decay=1e-6)
    rate = lambda at, all: decay ** int(at / all * training["epochs"])  # noqa: E731
    players = [
        Player("critic", [critic], optimizer, schedule=rate),
        Player("network", [network], optimizer, schedule=rate),
    ]
    phase = played("inpaint", players, training)
    weights = Weights(image, adversarial, gamma)
    return Inpainting(network, critic, Holes(hole, step), weights, phase)
