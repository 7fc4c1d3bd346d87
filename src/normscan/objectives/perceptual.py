"""Distances between the features that a frozen network finds in two images."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from normscan.errors import WeightsError
from normscan.networks.backbones import Backbone, comes_from_state
from normscan.networks.sources import read_weights


class ChannelStatistics(nn.Module):
    """Mean and variance of each channel over all that was seen in training mode.

    Args:
        channels: number of channels.
        given: mean and variance, (C,) each, that stay as they are.
    """

    def __init__(self, channels: int, given: tuple[Tensor, Tensor] | None = None) -> None:
        super().__init__()
        self.given = given is not None
        self.seen: Tensor
        self.mean: Tensor
        self.square: Tensor
        self.register_buffer("seen", torch.zeros(()))
        self.register_buffer("mean", torch.zeros(1, channels, 1, 1))
        self.register_buffer("square", torch.ones(1, channels, 1, 1))
        if given is not None:
            mean, variance = (t.reshape(1, channels, 1, 1) for t in given)
            self.mean, self.square = mean, variance + mean.square()

    @property
    def variance(self) -> Tensor:
        """(1, C, 1, 1); what was seen, at least a thousandth of the channels' mean.

        A channel that healthy images hardly ever excite would outweigh all others.
        """
        variance = self.square - self.mean.square()
        if self.given:
            return variance
        return variance.clamp_min(1e-3 * float(variance.mean()) + 1e-12)

    @torch.no_grad()
    def forward(self, features: Tensor) -> None:
        """Take (B, C, H, W) features into account; nothing in evaluation mode."""
        if self.training and not self.given:
            self.seen += 1  # Batches; those of a phase have one size.
            mean = features.mean((0, 2, 3), keepdim=True)
            square = features.square().mean((0, 2, 3), keepdim=True)
            self.mean.lerp_(mean, 1 / float(self.seen))
            self.square.lerp_(square, 1 / float(self.seen))


def read_statistics(path: Path, channels: int, layer: str = "r42") -> tuple[Tensor, Tensor]:
    """Read mean and variance of each channel, (C,) each, from the file of the article's release.

    Args:
        path: a PyTorch file that holds a pair of tensors for each layer; no code in it is run.
        channels: that the layer has.
        layer: name in the file; the release compares relu4_2.

    Raises:
        WeightsError: no such file, no such layer in it, or one of another width.
    """
    if comes_from_state():
        return torch.zeros(channels), torch.ones(channels)
    try:
        mean, variance = torch.load(path, map_location="cpu", weights_only=True)[layer]
    except Exception as error:
        raise WeightsError(
            f"{path} holds no statistics of the layer '{layer}': {error}. Give the path of "
            "vgg19_ILSVRC2012_object_detection_mean_var.pt from the release, or leave it out."
        ) from error
    if mean.numel() != channels or variance.numel() != channels:
        raise WeightsError(
            f"{path} has {mean.numel()} channels in the layer '{layer}', but {channels} are compared."
        )
    return mean.flatten(), variance.flatten()


class RelativePerceptual(nn.Module):
    """Relative perceptual L1 distance (Shvetsova et al., IEEE Access 2021).

    |f - f^| over the mean of |f| in the image, f the standardised features of the image and f^ those
    of its restoration. The article's statistics of the features come from ImageNet; without their
    file they are those of the images seen in training.

    Args:
        backbone: frozen, with one tap.
        spread: what the features are divided by: ``std``, or ``variance`` as the released code does.
        statistics: path of the file of ``read_statistics``.
    """

    def __init__(
        self,
        backbone: Backbone,
        spread: Literal["std", "variance"] = "std",
        statistics: str | None = None,
    ) -> None:
        super().__init__()
        self.backbone = backbone
        channels = backbone.channels[0]
        given = None if statistics is None else read_statistics(Path(statistics), channels)
        self.statistics = ChannelStatistics(channels, given)
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


class LearnedPerceptual(nn.Module):
    """Learned perceptual image patch similarity, in space (LPIPS, Zhang et al., CVPR 2018).

    The squared difference of features brought to length 1, weighed by channel, enlarged linearly
    to the image and summed over the taps.

    Args:
        backbone: frozen; the article's are VGG16 (behind relu1_2, 2_2, 3_3, 4_3, 5_3), AlexNet and
            SqueezeNet, and its images reach them as those of ImageNet.
        heads: path of the release's state dict of the channels' weights, ``lin0.model.1.weight`` and
            so on; None for 1 for all, as in its baseline.

    Raises:
        WeightsError: no such file, or weights of another number of taps or channels.
    """

    def __init__(self, backbone: Backbone, heads: str | None = None) -> None:
        super().__init__()
        self.backbone = backbone
        widths = list(backbone.channels)
        names = [f"lin{i}.model.1.weight" for i in range(len(widths))]
        if heads is None or comes_from_state():
            given = {name: torch.ones(n) for name, n in zip(names, widths, strict=True)}
        else:
            given = read_weights(Path(heads), "LPIPS")
        if [given[n].numel() if n in given else 0 for n in names] != widths:
            raise WeightsError(
                f"{heads} weighs other features than the {widths} channels that are compared. Take "
                "the file of this backbone, such as weights/v0.1/vgg.pth of the package lpips for "
                "vgg16, or leave it out."
            )
        for i, name in enumerate(names):
            self.register_buffer(f"head{i}", given[name].reshape(1, -1, 1, 1).float())

    def forward(self, x: Tensor, restored: Tensor) -> Tensor:
        """Distances (B, 1, H, W).

        Args:
            x: (B, 1 or 3, H, W) in 0..1.
            restored: of the same shape.
        """
        ours, theirs = self.backbone(x), self.backbone(restored)
        found = []
        for i, tap in enumerate(self.backbone.taps):
            a, b = (f / (f.norm(dim=1, keepdim=True) + 1e-10) for f in (ours[tap], theirs[tap]))
            near = (self.get_buffer(f"head{i}") * (a - b).square()).sum(1, keepdim=True)
            found.append(F.interpolate(near, x.shape[2:], mode="bilinear", align_corners=False))
        return torch.stack(found).sum(0)
