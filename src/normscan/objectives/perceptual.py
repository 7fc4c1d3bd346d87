"""Distances between the features that a frozen network finds in two images."""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from normscan.networks.backbones import Backbone


class ChannelStatistics(nn.Module):
    """Mean and variance of each channel over all that was seen in training mode.

    Args:
        channels: number of channels.
    """

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.seen: Tensor
        self.mean: Tensor
        self.square: Tensor
        self.register_buffer("seen", torch.zeros(()))
        self.register_buffer("mean", torch.zeros(1, channels, 1, 1))
        self.register_buffer("square", torch.ones(1, channels, 1, 1))

    @property
    def variance(self) -> Tensor:
        """(1, C, 1, 1), at least a thousandth of the channels' mean.

        A channel that healthy images hardly ever excite would outweigh all others.
        """
        variance = self.square - self.mean.square()
        return variance.clamp_min(1e-3 * float(variance.mean()) + 1e-12)

    @torch.no_grad()
    def forward(self, features: Tensor) -> None:
        """Take (B, C, H, W) features into account; nothing in evaluation mode."""
        if self.training:
            self.seen += 1  # Batches; those of a phase have one size.
            mean = features.mean((0, 2, 3), keepdim=True)
            square = features.square().mean((0, 2, 3), keepdim=True)
            self.mean.lerp_(mean, 1 / float(self.seen))
            self.square.lerp_(square, 1 / float(self.seen))


class RelativePerceptual(nn.Module):
    """Relative perceptual L1 distance (Shvetsova et al., IEEE Access 2021).

    |f - f^| over the mean of |f| in the image, f the standardised features of the image and f^ those
    of its restoration. The article's statistics of the features come from ImageNet; here they are
    those of the images seen in training, so that no further file is needed.

    Args:
        backbone: frozen, with one tap.
        spread: what the features are divided by: ``std``, or ``variance`` as the released code does.
    """

    def __init__(self, backbone: Backbone, spread: Literal["std", "variance"] = "std") -> None:
        super().__init__()
        self.backbone = backbone
        self.statistics = ChannelStatistics(backbone.channels[0])
        self.spread = spread

    def forward(self, x: Tensor, restored: Tensor) -> Tensor:
        """Distances (B, C, h, w) on the grid of the features.

        Args:
            x: (B, 1 or 3, H, W) in about 0..1.
            restored: of the same shape.
        """
        tap = self.backbone.taps[0]
        with torch.no_grad():
            f = self.backbone(x)[tap]
        self.statistics(f)
        spread = self.statistics.variance
        if self.spread == "std":
            spread = spread.sqrt()
        scale = ((f - self.statistics.mean) / spread).abs().mean((1, 2, 3), keepdim=True)
        # The mean of the channels cancels in the difference.
        return ((f - self.backbone(restored)[tap]) / spread).abs() / scale.clamp_min(1e-12)

    def residual(self, x: Tensor, restored: Tensor) -> Tensor:
        """Mean of the channels, enlarged bilinearly to the image, (B, 1, H, W)."""
        distance = self(x, restored).mean(1, keepdim=True)
        return F.interpolate(distance, x.shape[2:], mode="bilinear", align_corners=False)
