"""Attention between the positions of a feature map."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F


class SelfAttention(nn.Module):
    """x + gamma * attention(x), with gamma = 0 at first (SAGAN, Zhang et al., ICML 2019).

    Queries and keys are 1 x 1 convolutions; their products are not scaled. As in the released codes
    of the field, the values keep the channels and no convolution follows them.

    Args:
        channels: of the features.
        reduction: channels over those of queries and keys.
    """

    def __init__(self, channels: int, reduction: int = 8) -> None:
        super().__init__()
        inner = max(1, channels // reduction)
        self.query = nn.Conv2d(channels, inner, 1)
        self.key = nn.Conv2d(channels, inner, 1)
        self.value = nn.Conv2d(channels, channels, 1)
        self.gamma = nn.Parameter(torch.zeros(1))

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, h, w) to the same shape."""
        q, k, v = (f(x).flatten(2).transpose(1, 2) for f in (self.query, self.key, self.value))
        attended = F.scaled_dot_product_attention(q, k, v, scale=1.0)
        return x + self.gamma * attended.transpose(1, 2).reshape(x.shape)
