"""The Lorentz model against the Poincaré ball, a search and points whose place is known."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from scipy.optimize import minimize

from normscan.networks.lorentz import (
    Hyperplane,
    centroid,
    distance,
    flattened,
    inner,
    lifted,
)

CURVATURES = [0.5, 1.0, 2.0]


def tangents(n: int, dim: int = 3, seed: int = 0) -> torch.Tensor:
    return torch.randn(n, dim, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


@pytest.mark.parametrize("c", CURVATURES)
def test_the_exponential_map_leads_onto_the_hyperboloid_as_far_as_the_vector_is_long(c: float):
    v = tangents(20)
    x = lifted(v, c)
    torch.testing.assert_close(inner(x, x), torch.full((20,), -1 / c, dtype=torch.float64))
    origin = torch.zeros(4, dtype=torch.float64)
    origin[0] = c**-0.5
    torch.testing.assert_close(distance(x, origin.expand(20, -1), c), v.norm(dim=1))
    torch.testing.assert_close(flattened(x, c), v)
    assert torch.isfinite(lifted(torch.zeros(1, 3), c)).all()


@pytest.mark.parametrize("c", CURVATURES)
def test_distances_are_those_of_the_poincare_ball(c: float):
    x, y = lifted(tangents(20), c), lifted(tangents(20, seed=1), c)

    def ball(p: torch.Tensor) -> np.ndarray:
        return (p[:, 1:] / (1 + c**0.5 * p[:, :1])).numpy()

    p, q = ball(x), ball(y)
    square = ((p - q) ** 2).sum(1)
    room = (1 - c * (p**2).sum(1)) * (1 - c * (q**2).sum(1))
    known = np.arccosh(1 + 2 * c * square / room) / c**0.5
    assert distance(x, y, c).numpy() == pytest.approx(known, rel=1e-9)


@pytest.mark.parametrize("c", CURVATURES)
def test_no_point_has_less_weighted_distance_than_the_centroid(c: float):
    points, weights = lifted(tangents(5), c), torch.tensor([0.1, 0.3, 0.2, 0.25, 0.15]).double()
    middle = centroid(points, weights, c)
    torch.testing.assert_close(inner(middle, middle), torch.tensor(-1 / c).double())

    def cost(v: np.ndarray) -> float:
        x = lifted(torch.from_numpy(v), c)
        return float((weights * (-2 / c - 2 * inner(points, x))).sum())

    found = minimize(cost, np.zeros(3), tol=1e-12)
    assert flattened(middle, c).numpy() == pytest.approx(found.x, abs=1e-4)


@pytest.mark.parametrize("c", CURVATURES)
def test_a_logit_is_the_way_to_the_plane_times_the_length_of_its_normal(c: float):
    plane = Hyperplane(3, c).double()
    with torch.no_grad():
        plane.offset.fill_(0.7)
        plane.normal.copy_(torch.tensor([1.0, -2.0, 0.5]))
    normal = plane.normal.detach()
    steep = normal.norm()
    for way in (-1.5, 0.0, 0.4, 2.0):  # along the geodesic that is orthogonal to the plane
        x = lifted((0.7 + way) * normal / steep, c)
        assert plane(x).item() == pytest.approx(way * float(steep), abs=1e-9)
    # The nearest point of the plane, by a search over points whose logit is 0.
    x = lifted(tangents(1, seed=3)[0], c)

    def cost(v: np.ndarray) -> float:
        y = lifted(torch.from_numpy(v), c)
        return float(distance(x, y, c)) + 1e3 * plane(y).item() ** 2

    search = {"xatol": 1e-8, "fatol": 1e-10, "maxiter": 4000}
    start = flattened(x, c).numpy()
    nearest = minimize(cost, start, method="Nelder-Mead", options=search)
    assert nearest.fun == pytest.approx(abs(plane(x).item()) / float(steep), rel=1e-2)
