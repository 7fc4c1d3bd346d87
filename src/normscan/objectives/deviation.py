"""The deviation loss of systems that learn from few anomalies."""

from __future__ import annotations

import torch
from torch import Tensor

from normscan.rng import Rng


def reference(rng: Rng, draws: int, like: Tensor) -> Tensor:
    """Standard normal scores (draws,) that healthy ones are compared with, one row of them."""
    return rng.normal((draws,) if rng.shared else (len(rng.generators), draws)).to(like).flatten()


def deviation(score: Tensor, reference: Tensor) -> Tensor:
    """Scores (B,) in standard deviations (n - 1) from the mean of a reference (n,)."""
    return (score - reference.mean()) / reference.std()


def deviation_loss(
    score: Tensor, label: Tensor, reference: Tensor, margin: float
) -> dict[str, Tensor]:
    """Healthy scores are drawn to the reference's mean, anomalous ones a margin above it.

    Pang et al., KDD 2019. Both terms are divided by the number of all samples.

    Args:
        score: (B,).
        label: (B,) 1 where anomalous.
        reference: (n,) scores of an assumed healthy distribution.
        margin: in standard deviations of the reference.
    """
    away, anomalous = deviation(score, reference), label == 1
    return {
        "healthy": torch.where(anomalous, 0, away.abs()).mean(),
        "anomalous": torch.where(anomalous, (margin - away).clamp_min(0), 0).mean(),
    }
