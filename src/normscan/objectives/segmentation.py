"""Losses of probability maps against masks."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F


def focal(probability: Tensor, mask: Tensor, gamma: float = 2.0, smoothing: float = 1e-5) -> Tensor:
    """Focal loss -(1 - q)^gamma log q, mean over all pixels (Lin et al., ICCV 2017).

    q is the probability of the true class, mixed with that of the other one by ``smoothing``, so
    that its logarithm stays finite.

    Args:
        probability: of the mask, 0 to 1, any shape.
        mask: bool, of the same shape.
        gamma: how much less easy pixels count; 0 for cross-entropy.
        smoothing: of the labels, 0 to 0.5.
    """
    q = torch.where(mask, probability, 1 - probability)
    q = q + smoothing * (1 - 2 * q)
    return -((1 - q).pow(gamma) * q.log()).mean()


def soft_dice(probability: Tensor, mask: Tensor, weight: Tensor, smooth: float = 1.0) -> Tensor:
    """1 - (2 sum w p t + smooth) / (sum w (p + t) + smooth) over the whole batch.

    Over the batch, since a sample without lesion has no Dice of its own (Milletari et al., 3DV
    2016, have the squared form).

    Args:
        probability: p, 0 to 1, any shape.
        mask: t, bool, of the same shape.
        weight: w, of the same shape; 0 for pixels that don't count.
        smooth: keeps it finite without any lesion.
    """
    overlap = (weight * probability * mask).sum()
    total = (weight * (probability + mask)).sum()
    return 1 - (2 * overlap + smooth) / (total + smooth)


def weighted_cross_entropy(logits: Tensor, mask: Tensor, weight: Tensor) -> Tensor:
    """Binary cross-entropy, mean over the pixels by their weights; 0 where all weights are 0.

    Args:
        logits: any shape.
        mask: bool, of the same shape.
        weight: of the same shape, 0 or more.
    """
    loss = F.binary_cross_entropy_with_logits(logits, mask.to(logits), weight, reduction="sum")
    return loss / weight.sum().clamp_min(1e-6)
