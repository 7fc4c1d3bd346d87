"""Frozen features, adapted to coupled spheres around healthy centres."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from typing import Any, Unpack

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from normscan.methods.base import Batch, Maps, Method, Phase, Player
from normscan.methods.features.common import (
    LAPTOP,
    LITE0_STAGES,
    SMOOTH,
    STAGES,
    TINY_SMOOTH,
    Trained,
    backbone_of,
    lite0,
    middle,
    tapped,
)
from normscan.methods.schedule import phase, schedule
from normscan.networks.aggregation import concatenated, vectors
from normscan.networks.backbones import Backbone
from normscan.registry import register
from normscan.scores.neighbours import Neighbours


class CoordConv(nn.Module):
    """1 x 1 convolution that also sees where it is: two channels of -1 to 1 along the axes."""

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(inputs + 2, outputs, 1)

    def forward(self, x: Tensor) -> Tensor:
        axes = [torch.linspace(-1, 1, n, device=x.device, dtype=x.dtype) for n in x.shape[2:]]
        places = torch.stack(torch.meshgrid(*axes, indexing="ij")).expand(len(x), -1, -1, -1)
        result: Tensor = self.conv(torch.cat([x, places], dim=1))
        return result


class CentreBank(nn.Module):
    """A centre for each position, the running mean over batches, or fewer by k-means.

    Args:
        positions: of the feature map.
        dim: of the vectors.
        compression: positions to a centre; 1 keeps all of them.
    """

    def __init__(self, positions: int, dim: int, compression: int = 1) -> None:
        super().__init__()
        self.compression = compression
        self.means = nn.Parameter(torch.zeros(positions, dim))
        self.few: Tensor
        self.register_buffer("few", torch.zeros(0, dim))

    def pull(self, x: Tensor) -> Tensor:
        """A loss for vectors (B, positions, dim): a step of 1 / (step + 1) makes the running mean."""
        return 0.5 * (x.detach().float().mean(0) - self.means).square().sum()

    @torch.no_grad()
    def compress(self) -> None:
        """Put the centres of k-means in the place of the means, once."""
        if self.compression == 1 or len(self.few):
            return
        from sklearn.cluster import KMeans

        points = self.means.double().cpu().numpy()
        clusters = max(1, len(points) // self.compression)
        found = KMeans(clusters, n_init=1, max_iter=3000, random_state=0).fit(points)
        self.few = torch.from_numpy(found.cluster_centers_).to(self.means)

    def nearest(self, x: Tensor, k: int) -> Tensor:
        """Squared distances (B, n, k) of vectors (B, n, dim) to the nearest centres, in order."""
        centres = self.few if len(self.few) else self.means
        return Neighbours(centres, "float32")(x.flatten(0, 1), k).unflatten(0, x.shape[:2])


@dataclass(frozen=True)
class Spheres:
    """What is drawn into the spheres and what is pushed out.

    Attributes:
        neighbours: nearest centres that pull.
        negatives: next centres that push.
        nu: divides both terms.
        margin: of the push, in squared distance.
    """

    neighbours: int = 3
    negatives: int = 3
    nu: float = 1e-3
    margin: float = 0.1


class Radius(nn.Module):
    """The radius of the spheres around all centres."""

    def __init__(self, spheres: Spheres, start: float = 1e-5) -> None:
        super().__init__()
        self.spheres = spheres
        self.value = nn.Parameter(torch.tensor(start))

    @property
    def looked_at(self) -> int:
        """Number of centres that the loss of a vector looks at."""
        return self.spheres.neighbours + self.spheres.negatives

    def forward(self, distances: Tensor) -> dict[str, Tensor]:
        """The nearest centres pull a vector into their spheres, the next ones push it out.

        Args:
            distances: (..., looked_at) squared, ascending.
        """
        inside, nu = self.spheres.neighbours, self.spheres.nu
        square = self.value.square()
        pull = (distances[..., :inside] - square).clamp_min(0).mean() / nu
        push = (square - distances[..., inside:] - self.spheres.margin).clamp_min(0).mean() / nu
        return {"attraction": pull, "repulsion": push}


def softmin_score(distances: Tensor) -> Tensor:
    """Distance to the nearest centre times its softmin among the nearest: (..., k) to (...)."""
    return F.softmin(distances, dim=-1)[..., 0] * distances[..., 0]


class CoupledHyperspheres(Method):
    """Features pulled to centres of healthy ones; see ``cfa``."""

    def __init__(
        self,
        backbone: Backbone,
        descriptor: nn.Module,
        bank: CentreBank,
        radius: Radius,
        training: Trained,
    ) -> None:
        super().__init__()
        self.backbone, self.descriptor = backbone, descriptor
        self.bank, self.radius = bank, radius
        self._training = training

    def phases(self) -> list[Phase]:
        # Gradient descent whose rate falls as 1 / n is the running mean, and so the centres are in
        # checkpoints and are shared by processes as all that is learnt.
        centres = Player(
            "centres",
            [self.bank],
            lambda p: torch.optim.SGD(p, lr=1.0),
            schedule=lambda step, steps: 1 / (step + 1),
        )
        adamw = partial(torch.optim.AdamW, amsgrad=True)
        learnt: list[nn.Module] = [self.descriptor, self.radius]
        return [
            Phase("centres", [centres], epochs=1, batch_size=self._training["batch_size"]),
            phase(learnt, self._training, "adapt", keep="last", optimizer=adamw),
        ]

    def joined(self, stages: list[Tensor]) -> Any:
        """What the descriptor takes of the frozen network's stages."""
        return concatenated(stages, pooled=3)

    def described(self, x: Tensor) -> Tensor:
        """Adapted features (B, dim, h, w)."""
        with torch.no_grad():
            features = self.joined(list(self.backbone(x).values()))
        result: Tensor = self.descriptor(features)
        return result

    def loss(self, batch: Batch, phase: str, player: str) -> dict[str, Tensor]:
        points = vectors(self.described(batch.image)).float()
        # Squared distances as a difference of large numbers need all digits.
        with torch.autocast(points.device.type, enabled=False):
            if phase == "centres":
                return {"running_mean": self.bank.pull(points)}
            self.bank.compress()
            return self.adapted(points, batch)

    def adapted(self, points: Tensor, batch: Batch) -> dict[str, Tensor]:
        """The terms that adapted vectors (B, positions, dim) are learnt by."""
        terms: dict[str, Tensor] = self.radius(self.bank.nearest(points, self.radius.looked_at))
        return terms

    @torch.no_grad()
    def maps(self, batch: Batch) -> Maps:
        described = self.described(batch.image)
        distances = self.bank.nearest(vectors(described), self.radius.spheres.neighbours).sqrt()
        scores = softmin_score(distances)
        return Maps(map=scores.reshape(len(batch), 1, *described.shape[2:]))


@register(
    "cfa",
    paper="Lee 2022",
    dims=(2,),
    presets={
        "laptop": {**LAPTOP, "steps": 200},
        "lite0": lite0({**LAPTOP, "steps": 200}, LITE0_STAGES[1:]),
    },
    postprocess=SMOOTH,
    reduction="max",
    preprocess=middle(224, 256),
    tiny={**TINY_SMOOTH, "steps": 24},
    options=tapped(size=224, taps=STAGES)
    | schedule(lr=1e-3, weight_decay=5e-4, batch_size=4, epochs=30),
)
def cfa(
    dims: int = 2,
    channels: int = 1,
    dim_compression: int = 1,
    centre_compression: int = 1,
    neighbours: int = 3,
    negatives: int = 3,
    nu: float = 1e-3,
    margin: float = 0.1,
    **options: Unpack[Trained],
) -> Method:
    """Features adapted to coupled spheres around healthy centres (CFA).

    Lee, Lee and Song, IEEE Access 2022: the stages of a frozen WideResNet-50-2, averaged over 3 x 3
    cells and joined, pass a 1 x 1 convolution that sees its position. The centres are the means of
    its first output at each position. It learns to bring each vector into the spheres of its three
    nearest centres and out of those of the next three; the radius is learnt, too. AdamW with AMSGrad,
    1e-3, batches of 4, 30 epochs. The map is the distance to the nearest centre times its softmin
    among the nearest, smoothed, the image score its largest value. Pictures are resized to 256 and
    cropped to 224 pixels. Both terms of the loss take squared distances and the map takes plain ones,
    as in the released code.

    Departures:
        leak: a stage's features lie behind its last ReLU; the release's networks take a leaky one of
            slope 0.01 there, which moves the centres by up to 2e-3 of the largest value.
        weights: the last epoch's; the release reports the best on the test set.
        scores: not stretched to 0..1 over the test set, which the order doesn't need.
        batches: an incomplete last one counts; the release drops it.

    Args:
        dim_compression: feature channels to a number of an adapted vector (the article's gamma_d).
        centre_compression: positions to a centre, by k-means (gamma_c); 1 for none.
        neighbours: nearest centres that pull, and that the softmin runs over.
        negatives: next centres that push.
        nu: divides the loss.
        margin: of the push, in squared distance (alpha).
        lr: learning rate of AdamW with AMSGrad.
        beta1: its first momentum.
        weight_decay: of AdamW.
        epochs: passes over the training images, after one for the centres.
    """
    backbone = backbone_of(options, channels)
    total = sum(backbone.channels)
    dim = max(1, total // dim_compression)
    positions = (-(-options["size"] // backbone.strides[0])) ** 2
    return CoupledHyperspheres(
        backbone,
        CoordConv(total, dim),
        CentreBank(positions, dim, centre_compression),
        Radius(Spheres(neighbours, negatives, nu, margin)),
        options,
    )
