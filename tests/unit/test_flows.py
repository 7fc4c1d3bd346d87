import math

import pytest
import torch
from torch import nn

from normscan.networks.flows import (
    ActNorm,
    Coupling,
    Flow,
    Permutation,
    Rotation,
    convolutions,
    coupled,
    perceptron,
    place_code,
    surprise,
)

pytestmark = pytest.mark.usefixtures("seed")


def stirred(flow: nn.Module) -> nn.Module:
    """The flow in double precision with weights far from those that it begins with."""
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for p in flow.parameters():
            p += 0.5 * torch.randn(p.shape, generator=generator)
    return flow.double()


def vectors() -> Flow:
    return coupled(7, [perceptron] * 3, axes=0, clamp=1.9, condition=4, rotated=True)


def pictures() -> Flow:
    return coupled(5, [convolutions(3, 3), convolutions(1, 1, 0.5), convolutions(3, 1)])


CASES = [
    pytest.param(lambda: Coupling(5, convolutions(3, 1)), (5, 3, 2), 0, id="coupling"),
    pytest.param(lambda: ActNorm(4, 2), (4, 3, 2), 0, id="actnorm"),
    pytest.param(lambda: Permutation(6), (6,), 0, id="permutation"),
    pytest.param(lambda: Rotation(6), (6,), 0, id="rotation"),
    pytest.param(vectors, (7,), 4, id="vectors under a condition"),
    pytest.param(pictures, (5, 3, 2), 0, id="pictures"),
]


@pytest.mark.parametrize(("build", "shape", "condition"), CASES)
def test_log_determinant_is_that_of_the_jacobian(build, shape, condition):
    flow = stirred(build())
    x = torch.randn(2, *shape, dtype=torch.double)
    c = torch.randn(2, condition, dtype=torch.double) if condition else None
    claimed = flow(x, c).log_det
    for i in range(2):
        own = None if c is None else c[i : i + 1]
        jacobian = torch.autograd.functional.jacobian(
            lambda v, own=own: flow(v.reshape(1, *shape), own).z.flatten(), x[i].flatten()
        )
        _, true = torch.linalg.slogdet(jacobian)
        assert claimed[i].item() == pytest.approx(true.item(), abs=1e-5)


@pytest.mark.parametrize(("build", "shape", "condition"), CASES)
def test_inverse_undoes_it(build, shape, condition):
    flow = stirred(build()).float()
    x = torch.randn(3, *shape)
    c = torch.randn(3, condition) if condition else None
    torch.testing.assert_close(flow.inverse(flow(x, c).z, c), x, atol=1e-5, rtol=1e-5)


def test_a_fresh_actnorm_changes_nothing_and_a_rotation_keeps_lengths():
    x = torch.randn(4, 6)
    torch.testing.assert_close(ActNorm(6, 0)(x).z, x)
    turn = Rotation(6)
    torch.testing.assert_close(turn(x).z.norm(dim=1), x.norm(dim=1))
    assert float(torch.linalg.det(turn.matrix.double())) == pytest.approx(1, abs=1e-5)


def test_surprise_integrates_to_one():
    """The density of a flow over a fine grid of the plane sums to 1."""
    flow = coupled(2, [perceptron] * 2, axes=0).double()
    axis = torch.linspace(-12, 12, 241, dtype=torch.double)
    points = torch.cartesian_prod(axis, axis)
    density = (-surprise(flow(points))).exp().sum() * 0.1**2
    assert density.item() == pytest.approx(1, abs=1e-3)


def test_surprise_of_a_standard_normal():
    x = torch.randn(3, 4, 5)
    normal = torch.distributions.Normal(0, 1)
    expected = -normal.log_prob(x).flatten(1).sum(1)
    torch.testing.assert_close(surprise(Flow()(x)), expected)
    torch.testing.assert_close(surprise(Flow()(x), mean=True), expected / 20)


def test_places_have_codes_of_their_own():
    code = place_code(8, 5, 3)
    assert code.shape == (8, 5, 3)
    for row in range(5):
        for column in range(3):
            rates = (1.0, 1e4 ** (-2 / 4))
            there = [f(r * p) for p in (column, row) for r in rates for f in (math.sin, math.cos)]
            torch.testing.assert_close(code[:, row, column], torch.tensor(there))
    assert len(torch.unique(code.flatten(1).T, dim=0)) == 15
