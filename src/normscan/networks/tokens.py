"""A transformer over the places of a feature map, for the deepest level of a U-Net."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F


class TokenMixer(nn.Module):
    """Every place of a feature map a token: a vision transformer, and back to the same channels.

    Args:
        channels: of the features, in and out.
        side: places along each axis in training; their learnt positions are enlarged for others.
        dim: numbers in a token, a multiple of ``heads``.
        layers: of the transformer (norm first, GELU, four times as wide inside).
        heads: of its attention.
    """

    def __init__(self, channels: int, side: int, dim: int = 768, layers: int = 12, heads: int = 12):
        super().__init__()
        self.enter = nn.Conv2d(channels, dim, 1)
        self.places = nn.Parameter(torch.zeros(1, dim, side, side))
        nn.init.trunc_normal_(self.places, std=0.02)
        layer = nn.TransformerEncoderLayer(
            dim, heads, 4 * dim, dropout=0.0, activation="gelu", batch_first=True, norm_first=True
        )
        self.layers = nn.TransformerEncoder(
            layer, layers, nn.LayerNorm(dim), enable_nested_tensor=False
        )
        self.leave = nn.Sequential(
            nn.Conv2d(dim, channels, 3, padding=1, bias=False), nn.BatchNorm2d(channels), nn.ReLU()
        )

    def forward(self, x: Tensor) -> Tensor:
        """(B, channels, H, W) to the same."""
        places: Tensor = self.places
        if places.shape[2:] != x.shape[2:]:
            places = F.interpolate(places, x.shape[2:], mode="bilinear", align_corners=False)
        x = self.enter(x) + places
        tokens = self.layers(x.flatten(2).mT)
        result: Tensor = self.leave(tokens.mT.unflatten(2, x.shape[2:]))
        return result
