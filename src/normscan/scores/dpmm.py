"""Dirichlet-process mixture of Gaussians that learns from batches."""

from __future__ import annotations

import math
from typing import Any, Literal

import torch
from torch import Tensor, nn

from normscan.errors import ArgumentError
from normscan.rng import Rng

Distance = Literal["cosine", "mahalanobis", "euclidean", "nll"]

# A component of less than this weight no longer counts.
LEAST_WEIGHT = 1e-6


class DirichletMixture(nn.Module):
    """Truncated stick-breaking mixture, learnt by online expectation maximisation.

    What it learns are running averages of three statistics of the batches: the responsibility of
    each component, and with it the first and second moments of the points. Weights, means and
    covariances follow from them. A running average with rate ``r`` is a step of gradient descent
    with rate ``r`` on ``loss``, so any trainer can do it.

    Schulthess and Konukoglu, MICCAI 2025. The stick's rest beyond the last component is left over,
    so the weights sum to a little less than 1.

    Args:
        dim: of the points.
        components: at most, 2 or more.
        covariance: ``diag`` or ``full``.
        regularisation: added to the variances.
        concentration: of the process at first, 1 or more; it is learnt.
    """

    def __init__(
        self,
        dim: int,
        components: int,
        covariance: Literal["diag", "full"] = "diag",
        regularisation: float = 1e-6,
        concentration: float = 2.0,
    ) -> None:
        super().__init__()
        if components < 2 or concentration < 1:
            raise ArgumentError(
                f"a mixture needs 2 components and a concentration of 1 at least, not {components} "
                f"and {concentration}."
            )
        self.full, self.regularisation = covariance == "full", regularisation
        means = torch.randn(components, dim) * dim**-0.5
        second = means.square() + 1 / dim
        if self.full:
            second = means[:, :, None] * means[:, None] + torch.eye(dim) / dim
        shares = torch.full((components,), 1 / components)
        self.shares = nn.Parameter(shares)
        self.first = nn.Parameter(means / components)
        self.second = nn.Parameter(second / components)
        self.concentration: Tensor
        self.points: Tensor
        self.updates: Tensor
        self.register_buffer("concentration", torch.tensor(concentration))
        self.register_buffer("points", torch.tensor(1.0))
        self.register_buffer("updates", torch.tensor(0.0))

    # ------------------------------------------------------------------ learning

    @torch.no_grad()
    def start(self, x: Tensor, rng: Rng) -> None:
        """Put the means at random points of (N, D), with the variance of them all.

        Stick-breaking ratios are drawn from Beta(1, concentration).
        """
        k = len(self.shares)
        rows = rng.uniform((len(x),)).argsort().repeat(-(-k // len(x)))[:k]
        means, spread = x[rows.to(x.device)], x.var(0)
        ratios = 1 - (1 - rng.uniform((k,))).pow(1 / float(self.concentration))
        ratios[-1] = 1
        shares = _broken(ratios).exp().to(x)
        second = means.square() + spread
        if self.full:
            second = means[:, :, None] * means[:, None] + spread.diag()
        self.shares.copy_(shares)
        self.first.copy_(_times(shares, means))
        self.second.copy_(_times(shares, second))
        self.points.fill_(len(x))

    def loss(self, x: Tensor) -> Tensor:
        """Half the squared distance of the statistics to those of the points (N, D)."""
        return sum(
            (0.5 * (p - target).square().sum())
            for p, target in zip(self.parameters(), self.statistics(x), strict=True)
        )  # type: ignore[return-value]

    @torch.no_grad()
    def statistics(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Mean responsibilities (K,), first (K, D) and second moments of points (N, D).

        The concentration follows what was learnt before, at the same time.
        """
        r = self.log_joint(x).softmax(1) / len(x)
        if self.updates:
            self._concentrate()
        self.updates += 1
        self.points.fill_(len(x))
        if self.full:  # one component at a time: K x N x D numbers are too many
            second = torch.stack([(column[:, None] * x).T @ x for column in r.T])
        else:
            second = r.T @ x.square()
        return r.sum(0), r.T @ x, second

    def _tails(self) -> tuple[Tensor, Tensor]:
        """Shares of the components, and of all behind each."""
        shares = self.shares.detach().clamp_min(0)
        return shares, (shares.flip(0).cumsum(0).flip(0) - shares).clamp_min(0)

    def _concentrate(self) -> None:
        """Most probable concentration for the expected log lengths of the sticks."""
        shares, tails = self._tails()
        a, n = self.concentration, self.points
        rest = torch.digamma(n * (shares + tails) + a + 1) - torch.digamma(n * tails + a)
        self.concentration.copy_(((len(shares) - 1) / rest[:-1].sum()).clamp_min(1))

    # ------------------------------------------------------------------- density

    def components(self) -> tuple[Tensor, Tensor, Tensor]:
        """Log weights (K,), means (K, D) and variances (K, D) or covariances (K, D, D)."""
        shares, tails = self._tails()
        tiny = torch.finfo(shares.dtype).eps
        ratios = shares / (shares + tails + (self.concentration - 1) / self.points + tiny)
        inverse = 1 / (shares + tiny)
        means, second = _times(inverse, self.first.detach()), _times(inverse, self.second.detach())
        if self.full:
            eye = torch.eye(means.shape[1], device=means.device, dtype=means.dtype)
            spread = second - means[:, :, None] * means[:, None] + self.regularisation * eye
        else:
            spread = (second - means.square()).clamp_min(0) + self.regularisation
        return _broken(ratios), means, spread

    def _squared(self, x: Tensor, means: Tensor, spread: Tensor) -> tuple[Tensor, Tensor]:
        """Squared Mahalanobis distances (N, K) and log determinants (K,)."""
        if not self.full:
            precision = 1 / spread
            squared = x.square() @ precision.T - 2 * x @ (means * precision).T
            squared = squared + (means.square() * precision).sum(1)
            return squared.clamp_min(0), spread.log().sum(1)
        factors = torch.linalg.cholesky(spread)
        squared = torch.stack(
            [
                torch.linalg.solve_triangular(factor, (x - mean).T, upper=False).square().sum(0)
                for mean, factor in zip(means, factors, strict=True)
            ],
            dim=1,
        )
        return squared, 2 * factors.diagonal(dim1=1, dim2=2).log().sum(1)

    def log_joint(self, x: Tensor) -> Tensor:
        """log(weight * density) of points (N, D) under each component: (N, K)."""
        weights, means, spread = self.components()
        squared, determinant = self._squared(x, means, spread)
        return weights - 0.5 * (squared + determinant + x.shape[1] * math.log(2 * math.pi))

    @torch.no_grad()
    def distance(self, x: Tensor, kind: Distance) -> Tensor:
        """How far points (N, D) lie from the components, (N,): the smallest over them, or ``nll``.

        Args:
            x: points.
            kind: ``cosine`` (1 - cos to a mean), ``euclidean`` to a mean, ``mahalanobis``, or
                ``nll``, the negative log likelihood of the mixture.
        """
        if kind == "nll":
            return -self.log_joint(x).logsumexp(1)
        _, means, spread = self.components()
        if kind == "cosine":
            unit = [nn.functional.normalize(a, dim=1) for a in (x, means)]
            return 1 - (unit[0] @ unit[1].T).amax(1)
        if kind == "euclidean":
            return torch.cdist(x, means).amin(1)
        return self._squared(x, means, spread)[0].amin(1).sqrt()

    def prune(self) -> None:
        """Drop components of less weight than one in a million."""
        keep = self.components()[0] > math.log(LEAST_WEIGHT)
        for p in self.parameters():
            p.data = p.data[keep].clone()

    def _load_from_state_dict(self, state: dict[str, Any], prefix: str, *rest: Any) -> None:
        # What was stored may have been pruned.
        for name, p in self.named_parameters():
            if (given := state.get(prefix + name)) is not None:
                p.data = p.data.new_empty(given.shape)
        super()._load_from_state_dict(state, prefix, *rest)


def _times(factors: Tensor, rows: Tensor) -> Tensor:
    return factors.reshape(-1, *[1] * (rows.ndim - 1)) * rows


def _broken(ratios: Tensor) -> Tensor:
    """Log weights (K,) from the ratios at which the rest of a stick is broken."""
    left = torch.log1p(-ratios).cumsum(0)
    return ratios.log() + torch.cat([left.new_zeros(1), left[:-1]])
