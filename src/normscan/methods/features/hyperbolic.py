"""Features of several stages in hyperbolic space."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Unpack

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from normscan.methods.base import Batch, Maps, Method, Phase
from normscan.methods.features.common import (
    LAPTOP,
    LITE0_STAGES,
    SMOOTH,
    TINY_SMOOTH,
    Trained,
    backbone_of,
    lite0,
    tapped,
)
from normscan.methods.schedule import phase, schedule
from normscan.networks.aggregation import concatenated, vectors
from normscan.networks.backbones import Backbone
from normscan.networks.lorentz import Hyperplane, centroid, distance, lifted
from normscan.registry import register
from normscan.synthesis.tasks import cutpaste


@dataclass(frozen=True)
class Space:
    """The hyperbolic space of the features.

    Attributes:
        dim: of it.
        curvature: c, its curvature being -c.
        radius: longest tangent vector, so that no exponential overflows.
    """

    dim: int
    curvature: float
    radius: float


class HyperbolicDiscriminator(Method):
    """Patches in hyperbolic space on one side of a plane; see ``hyperbolic_ad``."""

    def __init__(self, backbone: Backbone, space: Space, training: Trained) -> None:
        super().__init__()
        self.backbone, self.space, self.corrupt = backbone, space, cutpaste()
        self.adaptors = nn.ModuleList(nn.Linear(n, space.dim) for n in backbone.channels)
        self.plane = Hyperplane(space.dim, space.curvature)
        self._training = training

    def phases(self) -> list[Phase]:
        return [phase([self.adaptors, self.plane], self._training, "discriminate", keep="last")]

    def tangents(self, x: Tensor) -> tuple[list[Tensor], torch.Size]:
        """Adapted vectors (B, h * w, dim) of each stage on the grid of the first, and that grid."""
        with torch.no_grad():
            stages = list(self.backbone(x).values())
            grid = stages[0].shape[2:]
            pooled = [concatenated([f], (grid[0], grid[1]), pooled=3) for f in stages]
        return [a(vectors(f)) for a, f in zip(self.adaptors, pooled, strict=True)], grid

    def logits(self, tangents: list[Tensor]) -> Tensor:
        """How anomalous patches (B, h * w) are by the tangent vectors of their stages."""
        c, radius = self.space.curvature, self.space.radius
        # Half precision has no room for exponentials of lengths.
        with torch.autocast(tangents[0].device.type, enabled=False):
            v = torch.stack([t.float() if t.dtype != torch.float64 else t for t in tangents], -2)
            length = v.norm(dim=-1, keepdim=True).clamp_min(1e-7)
            points = lifted(v * (radius / length).clamp_max(1), c)
            origin = torch.zeros_like(points[..., :1, :])
            origin[..., 0] = c**-0.5
            sure = distance(points, origin, c)
            weights = (sure + 1e-7) / (sure + 1e-7).sum(-1, keepdim=True)
            result: Tensor = self.plane(centroid(points, weights, c))
        return result

    def loss(self, batch: Batch, phase: str, player: str) -> dict[str, Tensor]:
        made = self.corrupt(batch.image, batch.image, batch.rng, batch.foreground)
        tangents, grid = self.tangents(made.image)
        logits = self.logits(tangents)
        planted = F.adaptive_max_pool2d(made.label, (grid[0], grid[1])).flatten(1) > 0.5
        return {
            "healthy": F.softplus(logits)[~planted].sum() / (~planted).sum().clamp_min(1),
            "planted": F.softplus(-logits)[planted].sum() / planted.sum().clamp_min(1),
        }

    @torch.no_grad()
    def maps(self, batch: Batch) -> Maps:
        tangents, grid = self.tangents(batch.image)
        shares = self.logits(tangents).sigmoid().reshape(len(batch), 1, *grid)
        return Maps(map=shares.to(batch.image))


_LAPTOP = {**LAPTOP, "dim": 128, "steps": 300, "lr": 1e-3}


@register(
    "hyperbolic_ad",
    paper="Gonzalez-Jimenez 2025",
    dims=(2,),
    presets={"laptop": _LAPTOP, "lite0": lite0(_LAPTOP, LITE0_STAGES[2:])},
    postprocess=SMOOTH,
    reduction="max",
    preprocess={"scaling": "file", "crop": "none", "fit": "stretch"},
    tiny={**TINY_SMOOTH, "dim": 32, "lr": 3e-3, "steps": 60},
    options=tapped(size=256, taps=("layer2", "layer3"))
    | schedule(lr=2e-4, weight_decay=1e-5, batch_size=8, epochs=160),
)
def hyperbolic_ad(
    dims: int = 2,
    channels: int = 1,
    dim: int = 256,
    curvature: float = 1.0,
    radius: float = 2.0,
    **options: Unpack[Trained],
) -> Method:
    """Features of several stages joined in hyperbolic space, healthy ones on one side of a plane.

    Gonzalez-Jimenez et al., MICCAI 2025: the patch features of a frozen network's stages are brought
    into the Lorentz model of hyperbolic space, where they are joined by the Lorentzian centroid that
    weighs each by how sure it is, its distance from the origin; a hyperplane tells healthy patches
    from synthetic anomalies. The map is what a patch's side of the plane says, the image score the
    largest value. The article reports AUROCs by image and pixel of 92.5 and 95.6 on BraTS (PatchCore
    92.0 and 95.5), 90.7 and 95.3 on RESC, 97.9 on OCT2017 and 79.5 on RSNA.

    Departures:
        everything but the space: no code was released, and of the article the abstract was known and
            the project's page. Stages, pooling and training are those of ``simplenet``, the synthetic
            anomalies those of ``cutpaste``, patches with and without them weigh as much as each other;
            numbers of the space, its radius and curvature are ours.

    Args:
        dim: of the space.
        curvature: c, where the space's curvature is -c.
        radius: longest tangent vector; longer ones are cut.
    """
    space = Space(dim, curvature, radius)
    return HyperbolicDiscriminator(backbone_of(options, channels), space, options)
