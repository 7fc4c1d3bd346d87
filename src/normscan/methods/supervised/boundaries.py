"""Flows that push known anomalies behind a boundary of healthy likelihoods."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any, Unpack

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from normscan.methods.base import Batch, Method, Phase
from normscan.methods.features.common import LAPTOP, PICTURE, TINY, Trained, backbone_of, tapped
from normscan.methods.flows.fibres import STAGES, ConditionalFlows, staged_cosine
from normscan.methods.schedule import phase, schedule
from normscan.methods.supervised.common import ill
from normscan.networks.flows import surprise
from normscan.registry import register
from normscan.synthesis.draws import between, rotations, spread_out, taken_from

UNIT = 10  # what log likelihoods are divided by before they are compared with boundaries


def healthy_weights(likely: Tensor) -> Tensor:
    """Weights of healthy log likelihoods (N,): more than 1 where they are low."""
    low = likely / UNIT
    focal = 11.7 * (1 - low.exp()).clamp_min(0).sqrt() * low.abs()
    return torch.where(low > -0.2, torch.ones_like(low), focal)


def anomalous_weights(likely: Tensor) -> Tensor:
    """Weights of anomalous log likelihoods (N,): more than 1 where they are high."""
    high = likely / UNIT
    focal = 0.53 * (1 + high.exp()).square() / high.abs()
    return torch.where(high > -1, focal, torch.ones_like(high))


@dataclass(frozen=True)
class Boundary:
    """Where healthy likelihoods are to end and anomalous ones to begin.

    Attributes:
        beta: share of the healthy vectors that lie below their boundary.
        tau: by how much that of anomalous ones is lower.
    """

    beta: float
    tau: float

    def among(self, healthy: Tensor) -> tuple[Tensor, Tensor]:
        """Both, for healthy log likelihoods (N,) in units."""
        low = healthy.detach().sort().values[int(len(healthy) * self.beta)]
        return low, low - self.tau


def mean_of(values: Tensor) -> Tensor:
    """The mean, 0 of nothing."""
    return values.sum() / max(1, len(values))


def pulled_and_pushed(
    healthy: Tensor, anomalous: Tensor, boundary: Boundary, weights: tuple[Tensor, Tensor]
) -> tuple[Tensor, Tensor]:
    """How far healthy log likelihoods lie below their boundary, and anomalous ones above theirs.

    Args:
        healthy: (N,).
        anomalous: (M,).
        boundary: set by the healthy ones.
        weights: of both.
    """
    healthy, anomalous = healthy / UNIT, anomalous / UNIT
    low, lower = boundary.among(healthy)
    below, above = healthy <= low, anomalous >= lower
    pulled = (low - healthy)[below] * weights[0][below]
    pushed = (anomalous - lower)[above] * weights[1][above]
    return mean_of(pulled), mean_of(pushed)


def transplanted(batch: Batch, share: float = 0.5) -> tuple[Tensor, Tensor]:
    """Images of which some anomalous ones give place to a healthy one with their lesion in it.

    The lesion is turned by up to 45 degrees, moved by up to a quarter of the image, made 0.8 to 1.2
    times as large and as bright, and put where it lies on the anatomy.

    Args:
        batch: with lesions.
        share: of the anomalous images.

    Returns:
        Images and lesions (B, 1, H, W).
    """
    assert batch.lesion is not None
    n, sick = len(batch), ill(batch)
    image, lesion, device = batch.image, batch.lesion.bool(), batch.image.device
    healthy = (~sick).nonzero()[:, 0]
    chosen = sick & (batch.rng.uniform((n,)) < share).to(device)
    host = batch.rng.integers(0, max(1, len(healthy)), (n,)).to(device)
    sizes = torch.tensor(image.shape[2:])
    middle = ((sizes - 1) / 2).expand(n, -1)
    moved = middle + between(batch.rng, (n, 2), -0.25, 0.25) * sizes
    scale, turn = between(batch.rng, (n, 1), 0.8, 1.2), rotations(batch.rng, n, 2, torch.pi / 4)
    bright = spread_out(between(batch.rng, (n, 1), 0.8, 1.2), 2).to(image)
    if not len(healthy):
        return image, lesion
    both = torch.cat([image, lesion.to(image)], 1)
    other = taken_from(both, middle, moved, scale, turn, beyond="zeros")
    ground = healthy[host]
    where = (other[:, -1:] > 0.5) & batch.foreground[ground]
    pasted = torch.where(where, bright * other[:, :-1], image[ground])
    # A lesion that has left the anatomy makes no anomaly.
    on = (chosen & where.flatten(1).any(1))[:, None, None, None]
    return torch.where(on, pasted, image), torch.where(on, where, lesion)


class GuidedFlows(ConditionalFlows):
    """Conditional flows with a boundary for anomalies; see ``bgad``."""

    def __init__(self, *parts: Any, boundary: Boundary) -> None:
        super().__init__(*parts)
        self.boundary = boundary

    def phases(self) -> list[Phase]:
        flows: list[nn.Module] = list(self.flows)
        o, share = self._training, 1 / STAGES
        steps = None if o["steps"] is None else max(1, round(o["steps"] * share))
        first: Trained = {**o, "steps": steps, "epochs": max(1, round(o["epochs"] * share))}
        rest = None if o["steps"] is None or steps is None else max(1, o["steps"] - steps)
        last: Trained = {**o, "steps": rest, "epochs": max(1, o["epochs"] - first["epochs"])}

        def rise(step: int, steps: int) -> float:
            return staged_cosine(step, STAGES * steps)

        def fall(step: int, steps: int) -> float:
            return staged_cosine((STAGES - 1) * step + steps, STAGES * steps)

        guided = phase(
            flows, last, "boundary", "healthy+healthy+anomalous", keep="last", rhythm=fall
        )
        return [
            replace(phase(flows, first, "flow", keep="last", rhythm=rise), validate_every=0),
            replace(guided, balanced=True, validate_every=0),
        ]

    def loss(self, batch: Batch, phase: str, player: str) -> dict[str, Tensor]:
        if phase == "flow":
            return self.flowing(batch, batch.image, None)
        image, lesion = transplanted(batch)
        return self.flowing(batch, image, lesion)

    def flowing(self, batch: Batch, image: Tensor, lesion: Tensor | None) -> dict[str, Tensor]:
        """The terms of each level; without lesions all vectors are healthy and weigh alike."""
        terms = {}
        for tap, flow, (vectors, places, grid) in zip(
            self.backbone.taps, self.flows, self.levels(image), strict=True
        ):
            some = batch.rng.uniform((len(vectors),)).argsort()[: self.fibres].to(image.device)
            likely = -surprise(flow(vectors[some], places[some]), mean=True)
            if lesion is None:
                terms[tap] = -F.logsigmoid(likely).mean()
                continue
            marked = F.interpolate(lesion.to(image), grid, mode="nearest").flatten() > 0.5
            drawn = lesion.flatten(1).any(1).repeat_interleave(grid[0] * grid[1])
            # Of an anomalous image whose lesion nobody drew, no place is known to be healthy.
            unknown = ill(batch).repeat_interleave(grid[0] * grid[1]) & ~drawn
            inside, outside = marked[some], ~(marked | unknown)[some]
            terms |= self.guided(tap, likely[outside], likely[inside])
        return terms

    def guided(self, tap: str, healthy: Tensor, anomalous: Tensor) -> dict[str, Tensor]:
        """The terms for log likelihoods per dimension of healthy and anomalous vectors of a level."""
        if not len(healthy):
            return {tap: 0 * anomalous.sum()}
        weights = healthy_weights(healthy.detach()), anomalous_weights(anomalous.detach())
        terms = {tap: (-F.logsigmoid(healthy) * weights[0]).mean()}
        if len(anomalous):
            found = pulled_and_pushed(healthy, anomalous, self.boundary, weights)
            terms |= {f"{tap}_pull": found[0], f"{tap}_push": found[1]}
        return terms


@register(
    "bgad",
    paper="Yao 2023",
    regime="few-anomalies",
    presets={
        "laptop": {
            **LAPTOP, "taps": ("layer2", "layer3"), "blocks": 4, "fibres": 1024, "steps": 300,
            "batch_size": 6, "lr": 1e-3,
        },
    },
    reduction="max",
    preprocess=PICTURE,
    tiny={
        **TINY, "size": 48, "blocks": 2, "places": 16, "fibres": 256, "batch_size": 9, "steps": 80,
        "lr": 4e-3,
    },
    options=tapped(
        backbone="tf_efficientnet_b6.aa_in1k", taps=("blocks.1", "blocks.2", "blocks.4")
    )
    | schedule(lr=2e-4, batch_size=32, epochs=200),
)  # fmt: skip
def bgad(
    dims: int = 2,
    channels: int = 1,
    blocks: int = 8,
    clamp: float = 1.9,
    places: int = 128,
    fibres: int = 4096,
    updates: int = 32,
    beta: float = 0.01,
    tau: float = 0.1,
    **options: Unpack[Trained],
) -> Method:
    """Conditional flows with an explicit boundary that known anomalies are pushed behind (BGAD).

    Yao et al., CVPR 2023: the flows of ``cflow`` on three stages of a frozen EfficientNet-B6. In the
    first of 25 stages of training they learn healthy images alone. Then, with l the log likelihood
    per dimension over 10, b_n its ``beta`` quantile among the healthy vectors at hand and b_a = b_n -
    ``tau``, healthy vectors below b_n are pulled up to it and those in a lesion above b_a pushed down
    to that; all terms have focal weights. Half of the anomalous images are healthy ones with a
    lesion put into them. Adam 2e-4, a cosine in 25 stages behind a rise over two, batches of 32
    images, 200 passes, 4096 vectors at a time. The map is that of ``cflow``, the score its maximum.
    It needs drawn lesions: an anomalous image without one is passed over.

    Departures:
        largest value, weights, updates: as in ``cflow``; the release reports the best of 25 stages
            on the test set, for images and pixels each.
        lesions: turned, moved, resized, brighter; the release draws three of eleven augmentations.
        share: a third of a batch is anomalous; in the release ten times their number beside all
            healthy images, which is about that with 10 and 200.
        scale of likelihoods: the term of an empty selection is 0; in the release not a number.

    Args:
        size: pixels along each axis.
        blocks: couplings in each flow.
        clamp: largest log scale of a coupling.
        places: numbers in the code of a place, a multiple of 4.
        fibres: vectors of each stage in an update.
        updates: updates for each batch of a pass, with ``epochs``.
        beta: share of the healthy vectors below their boundary.
        tau: distance of the boundary of anomalous ones.
        steps: number of updates instead of ``epochs`` and ``updates``.
    """
    training: Trained = {**options, "epochs": options["epochs"] * updates}
    backbone = backbone_of(options, channels)
    boundary = Boundary(beta, tau)
    return GuidedFlows(backbone, blocks, clamp, places, fibres, training, boundary=boundary)
