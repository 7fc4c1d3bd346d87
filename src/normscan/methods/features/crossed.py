"""Volumes segmented by a network whose deepest features agree with those of their slices."""

from __future__ import annotations

from typing import Any, Unpack

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from normscan.errors import ArgumentError
from normscan.methods.base import Method
from normscan.methods.features.common import RESNET18, TEST_RESNET, Tapped, backbone_of, tapped
from normscan.methods.schedule import Schedule, schedule
from normscan.methods.synthesis.copy_paste import FIRST, CopyPaste
from normscan.networks.backbones import Backbone
from normscan.networks.classified import ClassifiedUNet
from normscan.objectives.contrastive import nt_xent
from normscan.registry import register

UNIT = 8000.0  # by which the release divides the weight of the agreement
TEMPERATURE = 0.5


class Sliced(Tapped, Schedule):
    """The arguments of ``tapped`` and of ``schedule``."""


class Agreeing(CopyPaste):
    """Copied cuboids, and slices that are told apart as their volumes are; see ``cgv_mood``.

    Args:
        slices: the network of slices.
        *parts: of ``CopyPaste``.
    """

    def __init__(self, slices: Backbone, *parts: Any) -> None:
        super().__init__(*parts)
        self.slices = slices

    def learnt_parts(self) -> list[nn.Module]:
        return [self.network, self.slices]

    def told_by_slices(self, volumes: Tensor, like: Tensor) -> Tensor:
        """What the slices of volumes say, on the grid of their deepest features (B, C, *grid).

        The largest of the slices' channels that are as many times more, and of the slices and cells
        that lie in one cell of the grid.
        """
        n, count = len(volumes), volumes.shape[2]
        flat = volumes.movedim(2, 1).flatten(0, 1)
        side = like.shape[-1] * self.slices.strides[-1]
        if flat.shape[-1] < side:
            flat = F.interpolate(flat, (side, side), mode="bilinear", align_corners=False)
        found = list(self.slices(flat).values())[-1].unflatten(0, (n, count))
        groups = found.movedim(1, 2).unflatten(1, (like.shape[1], -1))
        told: Tensor = F.adaptive_max_pool3d(groups.amax(2), tuple(like.shape[2:]))
        return told

    def further(
        self, healthy: Tensor, planted: Tensor, deep: Tensor, changed: Tensor
    ) -> dict[str, Tensor]:
        if not self.network.training:
            return {}
        x, y = self.told_by_slices(healthy, deep), self.told_by_slices(planted, changed)
        # As in the release, which also pairs the healthy with the changed.
        of_slices = torch.cat([x, y, x, y]).flatten(1)
        of_volumes = torch.cat([deep, changed, changed, deep]).flatten(1)
        weight = (FIRST - self.miss) / UNIT
        return {"agreement": weight * nt_xent(of_slices, of_volumes, TEMPERATURE)}


@register(
    "cgv_mood",
    paper="CGV 2022 (MOOD)",
    dims=(3,),
    presets={
        "laptop": {
            "size": 32, "width": 8, "depth": 3, "backbone": RESNET18, "taps": ("layer3",),
            "steps": 200, "batch_size": 2,
        },
    },
    preprocess={"scaling": "minmax", "crop": "none"},
    tiny={
        "size": 16, "width": 4, "depth": 2, "backbone": TEST_RESNET, "taps": ("layer1",),
        "steps": 60, "batch_size": 4,
    },
    options=tapped(size=64, backbone="resnet50.tv_in1k", taps=("layer4",), weights="random")
    | schedule(lr=1e-2, batch_size=1, epochs=100),
)  # fmt: skip
def cgv_mood(
    dims: int = 3,
    channels: int = 1,
    width: int = 64,
    depth: int = 4,
    **options: Unpack[Sliced],
) -> Method:
    """Copied cuboids found by a 3D U-Net whose deepest features agree with a network of slices.

    The entry of the group CGV to MOOD 2022 (2na-97/CGV_MOOD2022), which has no article: cuboids of the
    scan, turned and shifted in intensity, are pasted elsewhere and segmented as in
    ``pseudoanomaly_3d``, on whole heads of 64 voxels a side. Beside the U-Net a ResNet-50 looks at all
    slices across the first axis of both volumes; its features, the largest of each four channels and
    of the slices in a quarter, are to be told from others as those of the same volume at the U-Net's
    deepest level (contrast with temperature 0.5), by a weight that rises from 0 to 1/80 over the first
    30 % of training. Adam with one cycle up to 1e-2 for both, batches of 1, 100 passes. Map and score
    are the U-Net's.

    Departures:
        weight of the contrast: rises as that of missed voxels falls; the release's call doesn't match
            its function, so that it can't be told.
        slices: of the 64 voxels, enlarged to 128 pixels in the plane; 128 slices in the release.
        labels of slices: none; the release computes that loss and leaves it out.
        abdomens: not cut into patches.
        anomalies and momentum: as in ``pseudoanomaly_3d``.
        features of healthy volumes: what another work of that name does, PatchCore on a 3D network
            trained on medical volumes in whose region a segmentation counts (Frolova et al., UNSURE
            2023), is left out: its code isn't public and no such weights are at hand.

    Args:
        dims: spatial axes, 3.
        size: voxels along each axis.
        width: channels of the U-Net's first level; each level doubles them.
        depth: how often the U-Net halves its grid.
        backbone: timm name of the network of slices, with any tag.
        taps: its stage; it must have a multiple of the channels of the U-Net's deepest level.
        weights: of the network of slices, ``random`` in the release.
        lr: highest learning rate of Adam.
    """
    network = ClassifiedUNet(dims, channels, width, depth)
    slices = backbone_of(options, channels, trainable=True, batch_norm="train", scaling="none")
    deep = width * 2 ** (depth - 1)
    if slices.channels[-1] % deep:
        raise ArgumentError(
            f"the slices' {slices.channels[-1]} channels are no multiple of the {deep} of the U-Net's "
            f"deepest level. Use another stage (taps), width or depth."
        )
    return Agreeing(slices, network, options, False)
