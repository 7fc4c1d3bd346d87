"""Hyperbolic space as the upper sheet of a hyperboloid (the Lorentz model).

Points (..., d + 1) have -x_0^2 + |x_s|^2 = -1 / c with the time x_0 first and c > 0, the curvature
being -c. Formulas as in Nickel and Kiela (ICML 2018), Law et al. (ICML 2019) and Bdeir et al. (ICLR
2024). geoopt has some of them, but its weighted centroid and its hyperplanes are not those.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

NEGLIGIBLE = 1e-7


def inner(x: Tensor, y: Tensor) -> Tensor:
    """The Lorentz product -x_0 y_0 + <x_s, y_s> along the last axis, (...)."""
    return (x[..., 1:] * y[..., 1:]).sum(-1) - x[..., 0] * y[..., 0]


def lifted(v: Tensor, curvature: float) -> Tensor:
    """The exponential map at the origin: tangent vectors (..., d) to points (..., d + 1)."""
    root = math.sqrt(curvature)
    length = v.norm(dim=-1, keepdim=True).clamp_min(NEGLIGIBLE)
    return torch.cat(
        [(root * length).cosh() / root, (root * length).sinh() / (root * length) * v], dim=-1
    )


def flattened(x: Tensor, curvature: float) -> Tensor:
    """The logarithmic map at the origin, which undoes ``lifted``."""
    root = math.sqrt(curvature)
    space = x[..., 1:]
    length = space.norm(dim=-1, keepdim=True).clamp_min(NEGLIGIBLE)
    return (root * length).asinh() / (root * length) * space


def distance(x: Tensor, y: Tensor, curvature: float) -> Tensor:
    """Geodesic distances of points, (...)."""
    return (-curvature * inner(x, y)).clamp_min(1.0).acosh() / math.sqrt(curvature)


def centroid(points: Tensor, weights: Tensor, curvature: float) -> Tensor:
    """The weighted Lorentzian centroid of points (..., n, d + 1), (..., d + 1).

    It has the least weighted sum of squared Lorentzian distances, -2 / c - 2 <x, y>, to them.

    Args:
        points: on the hyperboloid.
        weights: (..., n), 0 or more, not all 0.
        curvature: c.
    """
    total = (weights[..., None] * points).sum(-2)
    length = (-inner(total, total)).clamp_min(NEGLIGIBLE).sqrt()
    return total / (math.sqrt(curvature) * length[..., None])


class Hyperplane(nn.Module):
    """How far points lie on one side of a learnt hyperplane, as a logit.

    The plane goes through the origin moved by a along z and is orthogonal to that; both are learnt in
    the tangent space of the origin. The logit is |z| times the signed distance.

    Args:
        dim: d of the points.
        curvature: c.
    """

    def __init__(self, dim: int, curvature: float) -> None:
        super().__init__()
        self.curvature = curvature
        self.offset = nn.Parameter(torch.zeros(()))
        self.normal = nn.Parameter(torch.empty(dim).uniform_(-1, 1) / math.sqrt(dim))

    def forward(self, x: Tensor) -> Tensor:
        """Logits (...) of points (..., dim + 1)."""
        root = math.sqrt(self.curvature)
        steep = self.normal.norm().clamp_min(NEGLIGIBLE)
        turn = root * self.offset
        along = turn.cosh() * (x[..., 1:] @ self.normal) - turn.sinh() * steep * x[..., 0]
        result: Tensor = steep * (root * along / steep).asinh() / root
        return result
