"""Healthy patch features told from themselves with noise."""

from __future__ import annotations

from typing import NamedTuple, Unpack

import torch
from torch import Tensor, nn

from normscan.methods.base import Batch, Maps, Method, Phase
from normscan.methods.features.common import (
    LAPTOP,
    LITE0_STAGES,
    SMOOTH,
    TINY_SMOOTH,
    Trained,
    backbone_of,
    lite0,
    middle,
    tapped,
)
from normscan.methods.schedule import phase, schedule
from normscan.networks.aggregation import patch_features
from normscan.networks.backbones import Backbone
from normscan.objectives.optimizers import adamw_with
from normscan.registry import register
from normscan.signatures import Options

# AdamW's own, which the released code doesn't change.
ADAPTOR_DECAY = 0.01


class Hinge(NamedTuple):
    """Attributes: deviation of the noise on adapted features, margin of the hinge on both sides."""

    noise: float
    margin: float


class Simple(Trained):
    """The shared arguments and one more."""

    adaptor_lr: float


ADAPTOR = Options(
    {"adaptor_lr": float},
    {"adaptor_lr": 1e-4},
    {"adaptor_lr": "learning rate of the adaptor (AdamW)."},
)


class FeatureDiscriminator(Method):
    """Adapted patches told from noisy ones; see ``simplenet``."""

    def __init__(
        self, backbone: Backbone, dim: int, hidden: int, hinge: Hinge, training: Simple
    ) -> None:
        super().__init__()
        self.backbone, self.dim = backbone, dim
        self.noise, self.margin = hinge.noise, hinge.margin
        self.adaptor = nn.Linear(dim, dim)
        self.discriminator = nn.Sequential(
            nn.Linear(dim, hidden), nn.BatchNorm1d(hidden), nn.LeakyReLU(0.2),
            nn.Linear(hidden, 1, bias=False),
        )  # fmt: skip
        for module in (self.adaptor, *self.discriminator):
            if isinstance(module, nn.Linear):
                nn.init.xavier_normal_(module.weight)
        self._training = training

    def phases(self) -> list[Phase]:
        # Adam's own weight decay is a term of the loss, so AdamW can update both at once.
        undecayed: Simple = {**self._training, "weight_decay": 0.0}
        optimizer = adamw_with(
            self.adaptor, lr=self._training["adaptor_lr"], weight_decay=ADAPTOR_DECAY
        )
        learnt: list[nn.Module] = [self.adaptor, self.discriminator]
        return [phase(learnt, undecayed, "discriminate", keep="last", optimizer=optimizer)]

    def patches(self, x: Tensor) -> tuple[Tensor, tuple[int, int]]:
        """Adapted patches (B, h * w, dim) and their grid (h, w)."""
        with torch.no_grad():
            features = list(self.backbone(x).values())
            joined = patch_features(features, 3, self.dim, self.dim)
        return self.adaptor(joined), (features[0].shape[-2], features[0].shape[-1])

    def loss(self, batch: Batch, phase: str, player: str) -> dict[str, Tensor]:
        real = self.patches(batch.image)[0]
        fake = real + self.noise * batch.rng.normal(real.shape).to(real)
        both = torch.cat([real, fake]).flatten(0, 1)  # one batch norm for both
        of_real, of_fake = self.discriminator(both).chunk(2)
        weight_decay = self._training["weight_decay"]
        decay = sum(p.square().sum() for p in self.discriminator.parameters())
        return {
            "real": (self.margin - of_real).clamp_min(0).mean(),
            "noisy": (self.margin + of_fake).clamp_min(0).mean(),
            "weight_decay": 0.5 * weight_decay * decay,
        }

    @torch.no_grad()
    def maps(self, batch: Batch) -> Maps:
        patches, grid = self.patches(batch.image)
        told: Tensor = self.discriminator(patches.flatten(0, 1))
        scores = (self.margin - told).reshape(len(batch), 1, *grid)
        return Maps(map=scores, score=scores.flatten(1).amax(1))


_LAPTOP = {
    **LAPTOP, "dim": 384, "hidden": 256, "steps": 400, "lr": 1e-3, "adaptor_lr": 5e-4,
    # The least that held-out patches are told from after so few updates: with 0.015 they are at 0.5
    # to 0.7 (AUROC), and nothing has been learnt.
    "noise": 0.05,
}  # fmt: skip


@register(
    "simplenet",
    paper="Liu 2023",
    dims=(2,),
    presets={"laptop": _LAPTOP, "lite0": lite0(_LAPTOP, LITE0_STAGES[2:])},
    postprocess=SMOOTH,
    reduction="max",
    preprocess=middle(288, 329),
    tiny={
        **TINY_SMOOTH, "dim": 128, "hidden": 128, "noise": 0.2, "lr": 2e-3, "steps": 60,
    },
    options=tapped(size=288, taps=("layer2", "layer3"))
    | ADAPTOR
    | schedule(lr=2e-4, weight_decay=1e-5, batch_size=8, epochs=160),
)  # fmt: skip
def simplenet(
    dims: int = 2,
    channels: int = 1,
    dim: int = 1536,
    hidden: int = 1024,
    noise: float = 0.015,
    margin: float = 0.5,
    **options: Unpack[Simple],
) -> Method:
    """A discriminator of healthy patch features and the same with noise (SimpleNet).

    Liu et al., CVPR 2023: patch features as in PatchCore, pooled to 1536 numbers, a linear layer that
    adapts them (AdamW 1e-4, decay 0.01), and a small network that learns to tell them from themselves
    with Gaussian noise of 0.015 added (Adam 2e-4, decay 1e-5; batches of 8, 40 times 4 passes). What
    it takes for noise is anomalous; the map is the negative of its output, smoothed, the image score
    the highest patch's. Pictures are resized to 329 and cropped to 288 pixels.

    Departures:
        weights: the last ones; the release keeps the epoch that is best on the test set, without
            which its results fall.
        score: the margin is added, a constant which puts healthy patches near 0.

    Args:
        dim: numbers in a patch's vector.
        hidden: units of the discriminator.
        noise: standard deviation of the noise on adapted features.
        margin: of the hinge on both sides.
        lr: learning rate of the discriminator.
        beta1: first momentum of both.
        weight_decay: of the discriminator, as a term of the loss.
    """
    return FeatureDiscriminator(
        backbone_of(options, channels), dim, hidden, Hinge(noise, margin), options
    )
