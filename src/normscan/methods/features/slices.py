"""Volumes by the features of their slices in three directions."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Unpack

import numpy as np
import torch
from torch import Tensor

from normscan.errors import ArgumentError
from normscan.methods.base import Batch, Maps, Method
from normscan.methods.features.common import RESNET18, Tapped, backbone_of, tapped
from normscan.networks.backbones import Backbone
from normscan.registry import register
from normscan.scores.slices import SliceGaussians

# The release's smoothing of the distances along an axis: window and order of Savitzky and Golay.
WINDOW, ORDER = 21, 3
UNIT = 300.0  # by which the release divides distances for its map
BLACK = 0.01
AT_ONCE = 32  # slices in a pass through the network


def smoothing(slices: int) -> Tensor:
    """The matrix (slices, slices) that smooths values along an axis as SciPy's filter does."""
    from scipy.signal import savgol_filter

    window = min(WINDOW, slices - 1 + slices % 2)
    return torch.from_numpy(savgol_filter(np.eye(slices), window, min(ORDER, window - 1), axis=0))


class SliceDistances(Method):
    """A Gaussian of slice features at each place of each axis; see ``ss3d``."""

    smoother: Tensor

    def __init__(self, backbone: Backbone, size: int, black: float) -> None:
        super().__init__()
        self.backbone, self.size, self.black = backbone, size, black
        self.gaussians = SliceGaussians(3 * size, sum(backbone.channels))
        self.register_buffer("smoother", smoothing(size), persistent=False)

    def slices(self, volumes: Tensor) -> Tensor:
        """All slices (B, 3 * size, C, size, size), those across the first axis first."""
        return torch.cat([volumes.movedim(axis, 1) for axis in (2, 3, 4)], 1)

    @torch.no_grad()
    def features(self, volumes: Tensor) -> Tensor:
        """Mean features (B, 3 * size, dim) of the slices of volumes."""
        flat = self.slices(volumes).flatten(0, 1)
        found = [
            torch.cat([f.mean((2, 3)) for f in self.backbone(part).values()], 1)
            for part in flat.split(AT_ONCE)
        ]
        return torch.cat(found).unflatten(0, (len(volumes), -1))

    def fit(self, batches: Iterable[Batch]) -> None:
        self.gaussians.fit(self.features(batch.image) for batch in batches)

    @torch.no_grad()
    def maps(self, batch: Batch) -> Maps:
        distances = self.gaussians(self.features(batch.image))
        dark = (self.slices(batch.image)[:, :, 0] < BLACK).flatten(2).to(distances).mean(2)
        distances = torch.where(dark > self.black, 0, distances)
        smoother = self.smoother.to(distances)
        along = distances.unflatten(1, (3, self.size)) @ smoother.T
        x, y, z = along.unbind(1)
        least = torch.minimum(x[:, :, None, None], y[:, None, :, None])
        least = torch.minimum(least, z[:, None, None])
        return Maps(map=least[:, None] / UNIT, score=distances.sum(1))


@register(
    "ss3d",
    paper="Doorenbos 2021",
    dims=(3,),
    presets={
        "code": {"black": 1.0},
        "laptop": {"size": 64, "backbone": RESNET18, "taps": ("layer3",)},
    },
    preprocess={"scaling": "minmax", "crop": "none", "fit": "stretch"},
    tiny={
        "size": 24, "backbone": RESNET18, "taps": ("layer1",), "weights": "random",
        "preprocess": {"crop": "foreground", "fit": "pad"},
    },
    options=tapped(size=224, backbone="tf_efficientnet_b0.in1k", taps=("last",)),
)  # fmt: skip
def ss3d(
    dims: int = 3,
    channels: int = 1,
    black: float = 0.95,
    **options: Unpack[Tapped],
) -> Method:
    """Mahalanobis distances of slice features in three directions (SS3D).

    Doorenbos, Sznitman and Marquez-Neila, MOOD workshop at MICCAI 2021: a volume is resized to 224
    voxels along each axis, each slice across each axis passes EfficientNet-B0, and its last feature
    map is averaged to 1280 numbers. At each place of each axis there is a Gaussian of the healthy
    volumes' numbers with a covariance by Ledoit and Wolf. A volume's score is the sum of the distances
    of all its slices; slices that are black but for 5 % count nothing. For the map the distances
    along each axis are smoothed (Savitzky and Golay, 21 slices, order 3), each voxel gets the least of
    its three, over 300. ``code`` counts all slices, since the release's rule for black ones is never
    met.

    Departures:
        network: the public code's, trained on ImageNet; the challenge's was also trained by contrast.
        covariances: by the axes of the training volumes, n numbers for each of the 1280; the release
            stores 672 inverses of 1280 x 1280, 8.8 GB. The distances are the same.
        score: the sum; the release squashes it, which changes no order.

    Args:
        dims: spatial axes, 3.
        size: voxels along each axis.
        black: share of a slice's voxels below 0.01 above which it counts nothing; 1 for never.
        taps: stages whose features are averaged; ``last`` is the map that the classifier pools.
    """
    if options["size"] < ORDER + 1:
        raise ArgumentError(f"size={options['size']}: slices are smoothed. Use size=32 or more.")
    return SliceDistances(backbone_of(options, channels), options["size"], black)
