"""Style and content of images by the features of a frozen network."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from normscan.networks.backbones import Backbone


def gram(features: Tensor) -> Tensor:
    """Products of channels, averaged over their values, (B, C, C) of (B, C, H, W)."""
    flat = features.flatten(2)
    return flat @ flat.mT / (flat.shape[1] * flat.shape[2])


class StyleAndContent(nn.Module):
    """Mean absolute differences of Gram matrices and of features (Gatys et al., CVPR 2016).

    Args:
        backbone: frozen.
        styled: taps whose Gram matrices are compared; of the others the features are.
    """

    def __init__(self, backbone: Backbone, styled: Sequence[str]) -> None:
        super().__init__()
        self.backbone, self.styled = backbone, tuple(styled)

    def forward(self, x: Tensor, restored: Tensor) -> tuple[Tensor, Tensor]:
        """Differences of style and of content, summed over the taps.

        Args:
            x: (B, 1 or 3, H, W) as the backbone takes it.
            restored: of the same shape.
        """
        theirs, ours = self.backbone(x), self.backbone(restored)
        style, content = [x.new_zeros(())], [x.new_zeros(())]
        for tap in self.backbone.taps:
            if tap in self.styled:
                style.append(F.l1_loss(gram(ours[tap]), gram(theirs[tap])))
            else:
                content.append(F.l1_loss(ours[tap], theirs[tap]))
        return torch.stack(style).sum(), torch.stack(content).sum()
