"""Losses that draw views of the same thing together and others apart."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F


def nt_xent(a: Tensor, b: Tensor, temperature: float = 0.5) -> Tensor:
    """Normalised temperature-scaled cross entropy (SimCLR, Chen et al., ICML 2020).

    Each of the 2 n vectors must tell its partner from the 2 n - 2 others.

    Args:
        a: (n, dim) vectors, of any length.
        b: (n, dim) those of the other view, in the same order.
        temperature: that cosines are divided by.

    Returns:
        The mean over all vectors.
    """
    both = F.normalize(torch.cat([a, b]), dim=1)
    cosines = both @ both.T / temperature
    cosines = cosines.masked_fill(torch.eye(len(both), dtype=torch.bool, device=a.device), -1e9)
    partner = torch.arange(len(both), device=a.device).roll(len(a))
    return F.cross_entropy(cosines, partner)
