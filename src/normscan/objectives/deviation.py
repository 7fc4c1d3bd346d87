"""Scores that stand out from those of a normal distribution, and images scored by their worst parts."""

from __future__ import annotations

import torch
from torch import Tensor

from normscan.rng import Rng

DRAWS = 5000


def references(rng: Rng, draws: int = DRAWS) -> Tensor:
    """Standard normal scores that healthy ones are compared with, so many for each generator, (n,)."""
    return rng.normal((draws,) if rng.shared else (len(rng.generators), draws)).flatten()


def deviation_loss(
    score: Tensor, anomalous: Tensor, reference: Tensor, margin: float = 5.0
) -> Tensor:
    """Healthy scores at the mean of references, anomalous ones so many deviations above it, (B,).

    Pang et al., KDD 2019, with a Z score: |z| for a healthy image, max(0, margin - z) for another.

    Args:
        score: (B,).
        anomalous: (B,) bool.
        reference: draws of a standard normal distribution, ``DRAWS`` in the article.
        margin: in deviations of the references.
    """
    z = (score - reference.mean()) / reference.std()
    return torch.where(anomalous, (margin - z).clamp_min(0), z.abs())


def highest_mean(scores: Tensor, share: float) -> tuple[Tensor, Tensor]:
    """The mean of the highest share of (B, N), at least one, (B,), and which they are (B, n)."""
    highest, which = scores.topk(max(1, int(share * scores.shape[1])), dim=1)
    return highest.mean(1), which
