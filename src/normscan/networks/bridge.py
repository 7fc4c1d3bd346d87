"""Schrödinger bridges in closed form, whose potential is a mixture of Gaussians."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn
from torch.nn import functional as F


class GaussianMixture(nn.Module):
    """sum_c a_c N(x | r_c, e S_c) with learnt positive weights, centres and diagonals.

    Weights and diagonals are exponentials of parameters, and the logarithms of the weights are kept
    multiplied by e: at small e they move as fast as the squared distances over e that they meet.

    Args:
        components: C.
        axes: D of the points.
        epsilon: e, the noise of the bridge.
        spread: initial S.
    """

    def __init__(self, components: int, axes: int, epsilon: float, spread: float = 0.1) -> None:
        super().__init__()
        self.epsilon = epsilon
        start = -epsilon * math.log(components)
        self.log_weight = nn.Parameter(torch.full((components,), start))
        self.centre = nn.Parameter(torch.randn(components, axes))
        self.log_spread = nn.Parameter(torch.full((components, axes), math.log(spread)))

    @torch.no_grad()
    def start_at(self, points: Tensor) -> None:
        """Put the centres on points (C, D)."""
        self.centre.copy_(points)

    def log_density(self, x: Tensor) -> Tensor:
        """The logarithm of the mixture, whose weights needn't sum to 1, at (N, D): (N,)."""
        variance = self.epsilon * self.log_spread.exp()
        # Expanded, so that no tensor of (N, C, D) is made.
        square = (x.square() @ (1 / variance).T) - 2 * (x @ (self.centre / variance).T)
        square = square + (self.centre.square() / variance).sum(1)
        constant = (math.log(2 * math.pi) + variance.log()).sum(1)
        return torch.logsumexp(self.log_weight / self.epsilon - 0.5 * (square + constant), dim=1)

    def normalised(self, x: Tensor) -> Tensor:
        """The log density at (N, D) with weights that sum to 1: (N,)."""
        return self.log_density(x) - torch.logsumexp(self.log_weight / self.epsilon, dim=0)


class LightBridge(GaussianMixture):
    """The bridge whose potential v is the mixture (LightSB; Korotin, Gushchin and Burnaev 2024).

    From a point x it leads to sum_c w_c(x) N(r_c + S_c x, e S_c) with w_c(x) in proportion to
    a_c exp((x' S_c x + 2 r_c' x) / 2 e).
    """

    def log_plan(self, x: Tensor) -> Tensor:
        """The exponents log a_c + (x' S_c x + 2 r_c' x) / 2 e at (N, D): (N, C)."""
        quadratic = x.square() @ self.log_spread.exp().T + 2 * x @ self.centre.T
        return self.log_weight / self.epsilon + quadratic / (2 * self.epsilon)

    def loss(self, start: Tensor, end: Tensor) -> Tensor:
        """E log C(start) - E log v(end): the divergence from the true bridge up to a constant.

        Args:
            start: (N, D) points that the bridge begins at.
            end: (M, D) points that it ends at, not paired with them.
        """
        return torch.logsumexp(self.log_plan(start), dim=1).mean() - self.log_density(end).mean()

    def carried(self, x: Tensor) -> Tensor:
        """Where the bridge leads from (N, D) on average, like x."""
        share = F.softmax(self.log_plan(x), dim=1)
        return share @ self.centre + (share @ self.log_spread.exp()) * x
