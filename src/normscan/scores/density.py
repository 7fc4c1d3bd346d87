"""Densities of healthy codes: how far a code lies from them. Fitted numbers are buffers."""

from __future__ import annotations

import itertools
import math
from typing import Literal

import numpy as np
import torch
from torch import Tensor, nn

FREEDOM = (0.3, 200.0)
Proximity = Literal["weight", "density"]


class Identity(nn.Module):
    """The value itself is the anomaly score: (n, 1) to (n,)."""

    def fit(self, x: Tensor, seed: int = 0) -> None:
        """Nothing to fit."""

    def forward(self, x: Tensor) -> Tensor:
        return x[:, 0]


class OneClassSVM(nn.Module):
    """One-class support vector machine with a Gaussian kernel, fitted by scikit-learn.

    The score is the largest kernel sum that a point could reach minus its own, at least 0: a
    rising function of the negative decision value.

    Args:
        dim: of the points.
        nu: share of the training points that may lie outside.
        width: of the kernel exp(-gamma d^2): ``variance`` for gamma = 1 / (dim * variance), or
            ``median`` for 1 / (2 m^2), where m is the median distance of two training points.

    Attributes:
        boundary: score on the boundary of what is inside, where the decision value is 0; it is not
            saved.
    """

    def __init__(
        self, dim: int, nu: float = 0.03, width: Literal["variance", "median"] = "variance"
    ) -> None:
        super().__init__()
        self.nu, self.width, self.boundary = nu, width, 0.0
        self.support: Tensor
        self.dual: Tensor
        self.gamma: Tensor
        self.register_buffer("support", torch.zeros(1, dim))
        self.register_buffer("dual", torch.ones(1))
        self.register_buffer("gamma", torch.tensor(1.0 / dim))

    def fit(self, x: Tensor, seed: int = 0) -> None:
        """Fit to points (n, dim); time grows with the square of n."""
        from scipy.spatial.distance import pdist
        from sklearn.svm import OneClassSVM as Fitted

        points = x.double().cpu().numpy()
        if self.width == "median":
            gamma = 0.5 / max(float(np.median(pdist(points))) ** 2, 1e-12)
        else:
            gamma = 1 / (points.shape[1] * max(points.var(), 1e-12))
        fitted = Fitted(kernel="rbf", nu=self.nu, gamma=gamma)
        fitted.random_state = 0  # else libsvm draws a seed of no use from NumPy's global state
        fitted.fit(points)
        self.support = torch.tensor(fitted.support_vectors_).to(x)
        self.dual = torch.tensor(fitted.dual_coef_[0]).to(x)
        self.gamma = torch.tensor(gamma).to(x)
        self.boundary = float(fitted.dual_coef_.sum() - fitted.offset_[0])

    def forward(self, x: Tensor) -> Tensor:
        distances = torch.cdist(x, self.support, compute_mode="donot_use_mm_for_euclid_dist")
        return self.dual.sum() - (-self.gamma * distances.square()).exp() @ self.dual


class MultipleScaledMixture(nn.Module):
    """Mixture of multiple scaled t-distributions, fitted by expectation-maximisation.

    Each component has a centre, a rotation, and along each rotated axis a scale and a degree of
    freedom of its own (Forbes and Wraith, Statistics and Computing 2014). The number of components
    has the least BIC among those given.

    A point's score by ``weight`` is the mean over the axes of 1 / w, where w is the axis's weight,
    averaged over the components by their responsibilities: about 1 for the healthy, large where the
    point is an outlier along some axes. It grows with the square of the distance along a single
    axis, so that the narrowest axis rules it. By ``density`` it is the log of the sum of the
    components' highest densities minus the point's log-density: at least 0, and all axes count.

    Args:
        dim: of the points.
        components: numbers of components to choose from.
        iterations: of expectation-maximisation at most.
        tolerance: least gain of the mean log-likelihood in an iteration.
        floor: least scale along an axis, as a share of the points' mean variance.
        proximity: what the score is made of, ``weight`` or ``density``.
    """

    def __init__(
        self,
        dim: int,
        components: tuple[int, ...] = (2, 4, 8),
        iterations: int = 100,
        tolerance: float = 1e-4,
        floor: float = 1e-6,
        proximity: Proximity = "weight",
    ) -> None:
        super().__init__()
        self.components, self.iterations, self.tolerance = components, iterations, tolerance
        self.floor, self.proximity = floor, proximity
        self.share: Tensor
        self.centre: Tensor
        self.rotation: Tensor
        self.scale: Tensor
        self.freedom: Tensor
        self._set(
            torch.ones(1), torch.zeros(1, dim), torch.eye(dim)[None], torch.ones(1, dim),
            torch.full((1, dim), 10.0),
        )  # fmt: skip

    def _set(self, *values: Tensor) -> None:
        names = ("share", "centre", "rotation", "scale", "freedom")
        for name, value in zip(names, values, strict=True):
            self.register_buffer(name, value.double().contiguous())

    def _axes(self, x: Tensor) -> Tensor:
        """Squared scaled distances (n, K, dim) along the components' axes."""
        rotated = torch.einsum("nkd,kde->nke", x.double()[:, None] - self.centre, self.rotation)
        return rotated.square() / self.scale

    def _log_parts(self, distances: Tensor) -> Tensor:
        """Log of share times density, (n, K)."""
        v = self.freedom
        constant = torch.lgamma((v + 1) / 2) - torch.lgamma(v / 2)
        constant = constant - 0.5 * (math.pi * v * self.scale).log()
        values = constant - (v + 1) / 2 * torch.log1p(distances / v)
        return values.sum(2) + self.share.log()

    def log_density(self, x: Tensor) -> Tensor:
        """Log-density (n,) of points (n, dim)."""
        return self._log_parts(self._axes(x)).logsumexp(1)

    def weights(self, x: Tensor) -> Tensor:
        """Weights (n, dim) along the axes, averaged over components: small for an outlier."""
        distances = self._axes(x)
        share = self._log_parts(distances).softmax(1)
        each = (self.freedom + 1) / (self.freedom + distances)
        return (share[..., None] * each).sum(1)

    def forward(self, x: Tensor) -> Tensor:
        if self.proximity == "weight":
            return (1 / self.weights(x)).mean(1).to(x)
        highest = self._log_parts(torch.zeros_like(self.scale)[None]).logsumexp(1)
        return (highest - self.log_density(x)).to(x)

    def fit(self, x: Tensor, seed: int = 0) -> None:
        """Fit to points (n, dim), n larger than a component needs."""
        n, dim = x.shape
        best: tuple[float, list[Tensor]] | None = None
        for k in self.components:
            if best is not None and n < 2 * k * dim:
                continue
            likelihood = self.fit_components(x.double(), k, seed)[-1]
            numbers = k * (1 + 3 * dim + dim * (dim - 1) / 2) - 1
            bic = numbers * math.log(n) - 2 * n * likelihood
            if best is None or bic < best[0]:
                found = [self.share, self.centre, self.rotation, self.scale, self.freedom]
                best = bic, found
        assert best is not None
        self._set(*best[1])

    def fit_components(self, x: Tensor, k: int, seed: int = 0) -> list[float]:
        """Fit so many components; the mean log-likelihood before each iteration and at the end."""
        from sklearn.cluster import KMeans

        k = min(k, len(x))
        labels = KMeans(k, n_init=1, random_state=seed % 2**32).fit_predict(x.cpu().numpy())
        share = torch.nn.functional.one_hot(torch.tensor(labels, dtype=torch.long), k).to(x)
        floor = self.floor * float(x.var(0, unbiased=False).mean().clamp_min(1e-12))
        dim = x.shape[1]
        eye = torch.eye(dim).to(x)
        members = share.sum(0).clamp_min(1e-9)[:, None]
        moments = torch.einsum("nk,ni,nj->kij", share, x, x) / members[..., None]
        centre = share.T @ x / members
        covariance = moments - centre[:, :, None] * centre[:, None] + floor * eye
        scale, rotation = torch.linalg.eigh(covariance)
        freedom = torch.full_like(scale, 10.0)
        self._set(share.mean(0), centre, rotation, scale.clamp_min(floor), freedom)
        history: list[float] = []
        for _ in range(self.iterations):
            distances = self._axes(x)
            parts = self._log_parts(distances)
            history.append(float(parts.logsumexp(1).mean()))
            if len(history) > 1 and history[-1] - history[-2] < self.tolerance:
                return history
            self._maximise(x, parts.softmax(1), distances, floor)
        return [*history, float(self.log_density(x).mean())]

    def _maximise(self, x: Tensor, share: Tensor, distances: Tensor, floor: float) -> None:
        """One conditional maximisation of each parameter in turn."""
        v = self.freedom
        weight = (v + 1) / (v + distances)
        log_weight = torch.digamma((v + 1) / 2) - ((v + distances) / 2).log()
        total = share.sum(0).clamp_min(1e-9)[:, None]
        deficit = (share[..., None] * (log_weight - weight)).sum(0) / total
        use = share[..., None] * weight
        rotated = torch.einsum("nd,kde->nke", x, self.rotation)
        middle = (use * rotated).sum(0) / use.sum(0).clamp_min(1e-12)
        centre = torch.einsum("ke,kde->kd", middle, self.rotation)
        spreads = torch.stack(
            [_spreads(x - c, u) for c, u in zip(centre, use.unbind(1), strict=True)]
        )
        rotation = rotate(self.rotation, spreads, self.scale)
        along = torch.einsum("kdm,kmde,kem->km", rotation, spreads, rotation)
        scale = (along / total).clamp_min(floor)
        self._set(share.mean(0), centre, rotation, scale, solve_freedom(deficit))


def _spreads(centred: Tensor, use: Tensor) -> Tensor:
    """Weighted second moments (dim, dim, dim) of points (n, dim), one for each axis's weights."""
    n, dim = centred.shape
    outer = (centred[:, :, None] * centred[:, None]).reshape(n, dim * dim)
    return (use.T @ outer).reshape(dim, dim, dim)


def solve_freedom(deficit: Tensor) -> Tensor:
    """Degrees of freedom v with log(v / 2) - digamma(v / 2) + 1 + deficit = 0, by bisection.

    Args:
        deficit: mean of E[log w] - E[w], at most -1.
    """
    low = torch.full_like(deficit, math.log(FREEDOM[0]))
    high = torch.full_like(deficit, math.log(FREEDOM[1]))
    for _ in range(50):
        middle = (low + high) / 2
        half = middle.exp() / 2
        above = half.log() - torch.digamma(half) + 1 + deficit > 0
        low, high = torch.where(above, middle, low), torch.where(above, high, middle)
    return ((low + high) / 2).exp()


def rotate(rotation: Tensor, spreads: Tensor, scale: Tensor) -> Tensor:
    """Turn axes so that the sum over m of d_m^T S_m d_m / a_m falls, one sweep of plane rotations.

    Each plane of two axes is turned to its minimum, which is the eigenvector of a 2 x 2 matrix
    (the scheme of Flury and Gautschi 1986 for weights that differ from axis to axis).

    Args:
        rotation: (K, dim, dim), axes in columns.
        spreads: (K, dim, dim, dim), S_m.
        scale: (K, dim), a_m.

    Returns:
        (K, dim, dim).
    """
    device = rotation.device
    axes = rotation.cpu().numpy().copy()
    forms = (spreads / scale[..., None, None]).cpu().numpy()
    forms = np.einsum("kda,kmde,keb->kmab", axes, forms, axes, optimize=True)
    for i, j in itertools.combinations(range(axes.shape[-1]), 2):
        # d_i = (cos, sin) and d_j = (-sin, cos) in the plane: only the difference of forms counts.
        difference = forms[:, i] - forms[:, j]
        even = difference[:, i, i] - difference[:, j, j]
        angle = 0.5 * np.arctan2(-2 * difference[:, i, j], -even)
        c, s = np.cos(angle), np.sin(angle)
        turn = np.stack([np.stack([c, -s], -1), np.stack([s, c], -1)], -2)
        pair = [i, j]
        axes[:, :, pair] = axes[:, :, pair] @ turn
        forms[:, :, :, pair] = forms[:, :, :, pair] @ turn[:, None]
        forms[:, :, pair] = np.swapaxes(turn, 1, 2)[:, None] @ forms[:, :, pair]
    return torch.from_numpy(axes).to(device)
