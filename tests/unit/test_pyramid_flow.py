import pytest
import torch

from normscan.errors import ArgumentError
from normscan.methods.flows.pyramid import pyramid_flow
from normscan.networks.pyramid_flow import (
    ChannelMixing,
    PyramidFlow,
    composed,
    fourier_size,
    laplacian,
    pairs,
)

pytestmark = pytest.mark.usefixtures("seed")


def stirred(levels: int = 3, over: str = "channels") -> PyramidFlow:
    flow = PyramidFlow(2, levels, 2, 3, over)
    with torch.no_grad():
        for p in flow.parameters():
            p += 0.3 * torch.randn_like(p)
    return flow.double()


def flat(levels):
    return torch.cat([x.flatten() for x in levels])


def test_a_pyramid_composes_to_its_image():
    x = torch.rand(2, 3, 16, 24)
    levels = laplacian(x, 4)
    assert [tuple(level.shape[2:]) for level in levels] == [(16, 24), (8, 12), (4, 6), (2, 3)]
    torch.testing.assert_close(composed(levels), x)


@pytest.mark.parametrize("over", ["channels", "pixels"])
@pytest.mark.parametrize("levels", [2, 3, 4])
def test_inverse_undoes_the_flow(levels, over):
    flow = stirred(levels, over)
    x = laplacian(torch.rand(2, 2, 16, 16, dtype=torch.double), levels)
    flow.train()(x)  # running means away from 0
    flow.eval()
    torch.testing.assert_close(flat(flow.inverse(flow(x))), flat(x), atol=1e-8, rtol=0)


def test_volumes_stay():
    """The determinant over a batch is 1 or -1 while training, by autograd's Jacobian."""
    flow = stirred().train()
    x = laplacian(torch.rand(2, 2, 8, 8, dtype=torch.double), 3)
    shapes = [level.shape for level in x]

    def whole(v):
        parts = v.split([s.numel() for s in shapes])
        return flat(flow([p.reshape(s) for p, s in zip(parts, shapes, strict=True)]))

    jacobian = torch.autograd.functional.jacobian(whole, flat(x))
    assert torch.linalg.slogdet(jacobian).logabsdet.item() == pytest.approx(0, abs=1e-8)


def test_mixing_keeps_volumes_and_begins_orthonormal():
    mixing = ChannelMixing(6)
    matrix = mixing.matrix()
    torch.testing.assert_close(matrix @ matrix.T, torch.eye(6), atol=1e-5, rtol=0)
    with torch.no_grad():
        mixing.size += torch.randn(6)
    assert torch.linalg.slogdet(mixing.matrix().double()).logabsdet.item() == pytest.approx(
        0, abs=1e-5
    )
    x = torch.rand(1, 6, 2, 2)
    torch.testing.assert_close(mixing.inverse(mixing(x).z), x, atol=1e-5, rtol=0)


def test_pairs_are_all_pairs_and_the_transform_is_the_definition():
    first, second = pairs(4)
    assert {tuple(p) for p in torch.stack([first, second]).T.tolist()} == {
        (a, b) for b in range(4) for a in range(b)
    }
    x = torch.rand(1, 3, 4, dtype=torch.double)
    u, v = torch.arange(3), torch.arange(4)
    turn = torch.exp(
        -2j * torch.pi * (u[:, None, None, None] * u[:, None] / 3 + v[:, None, None] * v / 4)
    )
    by_hand = (turn * x[0]).sum((2, 3)).abs().mean()
    torch.testing.assert_close(fourier_size(x), by_hand)


def test_what_does_not_fit_is_refused():
    with pytest.raises(ArgumentError, match="batch_size"):
        pyramid_flow(batch_size=1, backbone="none")
    with pytest.raises(ArgumentError, match="halved 3 times"):
        pyramid_flow(backbone="none", size=36)
    with pytest.raises(ArgumentError, match="width=2"):
        pyramid_flow(backbone="none", width=2)
