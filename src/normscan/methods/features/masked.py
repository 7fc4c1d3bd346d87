"""Whole images by the features of networks that were trained on masked images."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Unpack

import torch
from torch import Tensor
from torch.nn import functional as F

from normscan.errors import ArgumentError
from normscan.methods.base import Batch, Maps, Method
from normscan.methods.features.common import (
    FILLED,
    RESNET18,
    Tapped,
    backbone_of,
    tapped,
)
from normscan.networks.backbones import Backbone
from normscan.registry import register


class PooledGaussian(Method):
    """One Gaussian of unit features, with the pseudo-inverse of its covariance; see ``mood``."""

    mean: Tensor
    precision: Tensor

    def __init__(self, backbone: Backbone) -> None:
        super().__init__()
        self.backbone = backbone
        dim = sum(backbone.channels)
        self.register_buffer("mean", torch.zeros(dim, dtype=torch.float64))
        self.register_buffer("precision", torch.eye(dim, dtype=torch.float64))

    @torch.no_grad()
    def features(self, image: Tensor) -> Tensor:
        """Unit vectors (B, dim) of images; of feature maps the mean."""
        found = torch.cat([f.mean((2, 3)) for f in self.backbone(image).values()], 1)
        return F.normalize(found, dim=1)

    def fit(self, batches: Iterable[Batch]) -> None:
        rows = [self.features(batch.image).double() for batch in batches]
        if not rows:
            raise ArgumentError("mood needs at least one training image.")
        x = torch.cat(rows)
        self.mean = x.mean(0)
        centred = x - self.mean
        self.precision = torch.linalg.pinv(centred.T @ centred / len(x), hermitian=True)

    @torch.no_grad()
    def maps(self, batch: Batch) -> Maps:
        centred = self.features(batch.image).double() - self.mean
        score = ((centred @ self.precision) * centred).sum(1)
        return Maps(score=score.to(batch.image))


@register(
    "mood",
    paper="Li 2023",
    dims=(2,),
    presets={
        "laptop": {"size": 128, "backbone": RESNET18, "taps": ("layer3",), "preprocess": FILLED},
    },
    preprocess={"scaling": "file", "crop": "none", "fit": "cover"},
    tiny={
        "size": 64, "backbone": RESNET18, "taps": ("layer1",), "weights": "random",
        "preprocess": FILLED,
    },
    options=tapped(size=224, backbone="beit_large_patch16_224.in22k_ft_in22k", taps=("pooled",)),
)  # fmt: skip
def mood(dims: int = 2, channels: int = 1, **options: Unpack[Tapped]) -> Method:
    """Mahalanobis distance of features that were learnt by restoring masked images (MOOD).

    Li et al., CVPR 2023 (and TPAMI 2024): masking patches and predicting them teaches a network what
    images of a domain look like, so that its features tell other images better than those of
    classification or contrast. BEiT-L/16, trained so and then on ImageNet-22k, gives the mean of its
    patch tokens behind the norm, 1024 numbers, brought to length 1; the score is the squared
    Mahalanobis distance with the healthy images' mean and the pseudo-inverse of their covariance.
    There is no map. The article reports 92.0 on ImageNet-30 and 97.5 on CIFAR-10 (mean AUROC) for one
    class.

    Departures:
        fine-tuning: none on the healthy images; the release tunes on ImageNet-30 in this way, with one
            label.
        images: resized to cover the square; at test the release also crops.
        several classes: the healthy are one; the least distance of several, and the nine scores of the
            later article, most of which need a classifier, are left out.

    Args:
        size: pixels along each axis; a BEiT resizes to its own.
        taps: ``pooled`` for the vector that the classifier gets, or stages, which are averaged.
    """
    # The release brings images to -1..1 for BEiT; other weights want their own mean and deviation.
    centred = options["backbone"].startswith("beit")
    scaling = "centred" if centred else "imagenet"
    return PooledGaussian(backbone_of(options, channels, scaling=scaling))
