"""Autoencoders of feature maps."""

from __future__ import annotations

from itertools import pairwise
from typing import Unpack

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from normscan.errors import ArgumentError
from normscan.methods.base import Batch, Maps, Method, Phase
from normscan.methods.features.common import (
    FILLED,
    LITE0_STAGES,
    RESNET18,
    TINY,
    Trained,
    backbone_of,
    lite0,
    tapped,
)
from normscan.methods.schedule import Schedule, phase, schedule
from normscan.networks.aggregation import concatenated
from normscan.networks.backbones import Backbone
from normscan.objectives.similarity import ssim_map
from normscan.registry import register


def feature_autoencoder(channels: int, widths: tuple[int, ...], dropout: float) -> nn.Sequential:
    """5 x 5 convolutions of stride 2 down, one more, 6 x 6 transposed ones of stride 2 up (FAE).

    Each but the middle one and the last 1 x 1 is followed by batch norm, Leaky ReLU and dropout of
    channels; there are no biases.

    Args:
        channels: of the features.
        widths: channels behind each halving.
        dropout: share of the channels.
    """

    def after(width: int) -> list[nn.Module]:
        return [nn.BatchNorm2d(width), nn.LeakyReLU(), nn.Dropout2d(dropout)]

    parts: list[nn.Module] = []
    for a, b in pairwise((channels, *widths)):
        parts += [nn.Conv2d(a, b, 5, 2, padding=2, bias=False), *after(b)]
    parts.append(nn.Conv2d(widths[-1], widths[-1], 5, padding=2, bias=False))
    for a, b in pairwise((*reversed(widths), channels)):
        parts += [nn.ConvTranspose2d(a, b, 6, 2, padding=2, bias=False), *after(b)]
    return nn.Sequential(*parts, nn.Conv2d(channels, channels, 1, bias=False))


def feature_similarity(a: Tensor, b: Tensor) -> Tensor:
    """SSIM of feature maps (B, C, h, w) in windows of 5 cells, mean over channels: (B, 1, h, w).

    Zeros surround the features, so that each cell has a value; the constants are those of 0..1.
    """
    with torch.autocast(a.device.type, enabled=False):  # variances need all digits
        x, y = F.pad(a.float(), (2, 2, 2, 2)), F.pad(b.float(), (2, 2, 2, 2))
        return ssim_map(x, y, window=5).mean(1, keepdim=True)


class FeatureAutoencoder(Method):
    """An autoencoder of a frozen network's features; see ``fae``."""

    def __init__(
        self, backbone: Backbone, grid: int, autoencoder: nn.Sequential, training: Schedule
    ) -> None:
        super().__init__()
        self.backbone, self.grid, self.autoencoder = backbone, grid, autoencoder
        self.training_options = training

    def phases(self) -> list[Phase]:
        return [phase(self.autoencoder, self.training_options)]

    @torch.no_grad()
    def features(self, x: Tensor) -> Tensor:
        """Features (B, C, grid, grid); a stem is max-pooled, as the network does it next."""
        stages = [
            F.max_pool2d(f, 3, 2, 1) if tap == "act1" else f for tap, f in self.backbone(x).items()
        ]
        return concatenated(stages, (self.grid, self.grid), align_corners=True)

    def loss(self, batch: Batch, phase: str, player: str) -> dict[str, Tensor]:
        features = self.features(batch.image)
        return {"ssim": -feature_similarity(self.autoencoder(features), features).mean()}

    @torch.no_grad()
    def maps(self, batch: Batch) -> Maps:
        features = self.features(batch.image)
        unlike = 1 - feature_similarity(self.autoencoder(features), features)
        shape = batch.image.shape[2:]
        return Maps(map=F.interpolate(unlike, shape, mode="bilinear", align_corners=True))


_LAPTOP = {"steps": 150, "batch_size": 4, "lr": 1e-3, "preprocess": FILLED}


@register(
    "fae",
    paper="Meissen 2022",
    dims=(2,),
    presets={"laptop": _LAPTOP, "lite0": lite0(_LAPTOP, LITE0_STAGES[:3])},
    reduction="top_10_percent",
    preprocess={"scaling": "equalise", "crop": "none", "fit": "cover"},
    tiny={
        **TINY, "taps": ("act1",), "grid": 16, "widths": (16, 24), "dropout": 0.0, "steps": 60,
        "batch_size": 4, "lr": 5e-3,
    },
    options=tapped(size=128, backbone=RESNET18, taps=("act1", "layer1", "layer2"))
    | schedule(lr=2e-4, batch_size=32, steps=10_000),
)  # fmt: skip
def fae(
    dims: int = 2,
    channels: int = 1,
    grid: int = 32,
    widths: tuple[int, ...] = (100, 150, 200, 300),
    dropout: float = 0.1,
    **options: Unpack[Trained],
) -> Method:
    """Autoencoder of ResNet-18 features with structural similarity (FAE).

    Meissen et al., BrainLes at MICCAI 2022: the stem's output after max-pooling and two stages of a
    frozen network are brought onto one grid of 32 x 32; an autoencoder learns to restore them, by
    their structural similarity, with Adam 2e-4, batches of 32, 10,000 updates. The map is how unlike
    they are, mean over the channels; the image score is the mean of its highest tenth in the
    foreground. Scans are cropped to squares of 128 pixels and their histograms equalised, to 0..1.

    Departures:
        map: one minus the similarity; the article's is its negative, which orders alike.
        statistics: the frozen network stays in evaluation mode, which in the release is the
            autoencoder's.
        weights: those with the least healthy validation loss; the release keeps the last ones.
        foreground: what the histogram counts; in the release it is what lies above 0.

    Args:
        taps: stages whose features are restored; ``act1`` is the stem, which is max-pooled.
        grid: cells along each axis of the feature map, a multiple of 2 to the number of widths.
        widths: channels of the autoencoder behind each halving.
        dropout: share of the autoencoder's channels that are dropped in training.
    """
    multiple = 2 ** len(widths)
    if grid < 5 or grid % multiple:
        near = max(1, -(-5 // multiple), round(grid / multiple)) * multiple
        raise ArgumentError(
            f"grid={grid}: {len(widths)} halvings need a multiple of {multiple}. Use {near}."
        )
    backbone = backbone_of(options, channels, scaling="centred")
    autoencoder = feature_autoencoder(sum(backbone.channels), widths, dropout)
    return FeatureAutoencoder(backbone, grid, autoencoder, options)
