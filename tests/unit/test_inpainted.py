import numpy as np
import pytest
import torch
from skimage.draw import ellipse
from torch.nn import functional as F

from normscan.errors import ArgumentError
from normscan.methods.adversarial.inpainted import phanes, spots
from normscan.methods.base import Batch
from normscan.networks.aot import AOTBlock, Inpainter
from normscan.objectives.style import gram
from normscan.registry import card
from normscan.rng import Rng

pytestmark = pytest.mark.usefixtures("seed")


class Given:
    """Stands for ``Rng``: the first ellipse is given, the others lie under it."""

    def __init__(self, centre: float, turn: float, half: tuple[float, float]) -> None:
        self.numbers = iter([torch.full((1, 10, 2), centre), torch.full((1, 10), turn)])
        self.half = torch.tensor(half).expand(1, 10, 2)

    def uniform(self, shape):
        return next(self.numbers)

    def normal(self, shape):
        return (self.half - 2) / 4


@pytest.mark.parametrize("turn", [0.0, 0.25, 0.7])
def test_spots_are_ellipses(turn):
    found = spots((1, 1, 128, 128), Given(0.5, turn, (9.5, 4.5)), 10)[0, 0].numpy()
    rows, columns = ellipse(64, 64, 9.001, 4.001, rotation=turn * np.pi)
    expected = np.zeros((128, 128))
    expected[rows, columns] = 1
    assert (found != expected).sum() <= 6  # pixels on the outline


def test_spots_lie_in_the_middle_and_hang_on_their_own_numbers():
    found = spots((3, 1, 64, 64), Rng([1, 2, 3]))
    assert set(found.unique().tolist()) == {0.0, 1.0}
    assert torch.equal(found[1:2], spots((1, 1, 64, 64), Rng([2])))


@torch.no_grad()
def test_the_gate_mixes_the_fused_into_the_input():
    block = AOTBlock(8, (1, 2))
    x = torch.randn(1, 8, 6, 6)
    parts = [
        F.relu(F.conv2d(F.pad(x, (r,) * 4, mode="reflect"), b[0].weight, b[0].bias, dilation=r))
        for r, b in zip((1, 2), block.branches, strict=True)
    ]
    fused, gate = block.fuse(torch.cat(parts, 1)), block.gate(x).double().numpy()
    mean, std = (f(gate, axis=(2, 3), keepdims=True) for f in (np.mean, np.std))
    std = std * np.sqrt(36 / 35)
    share = torch.from_numpy(1 / (1 + np.exp(-5 * (2 * (gate - mean) / std - 1)))).float()
    torch.testing.assert_close(block(x), x + share * (fused - x), atol=1e-5, rtol=1e-5)


def test_gram_matrices_are_means_of_products():
    x = torch.randn(2, 3, 4, 5)
    expected = torch.einsum("bchw,bdhw->bcd", x, x) / 60
    torch.testing.assert_close(gram(x), expected)


def test_an_inpainter_fills_images_of_any_fitting_size():
    made = Inpainter(3, 4, 1, (1, 2))(torch.rand(2, 3, 24, 32), torch.zeros(2, 1, 24, 32))
    assert made.shape == (2, 3, 24, 32) and made.abs().max() <= 1


def test_channels_that_rates_cannot_share_are_refused():
    with pytest.raises(ArgumentError, match="64 channels.*a multiple of the number of rates, 3"):
        Inpainter(width=16, rates=(1, 2, 4))


@torch.no_grad()
def test_what_is_outside_the_holes_stays_and_a_twentieth_is_above_the_learnt_limit():
    method = phanes(**{**card("phanes").arguments("tiny"), "channels": 1}).eval()
    image = torch.rand(6, 1, 32, 32)
    batch = Batch(image, torch.ones_like(image).bool(), Rng(list(range(6))), torch.zeros(6))
    method.fit(iter([batch]))
    batch.rng = Rng(list(range(6)))
    restored = method.restored(image, batch)
    above = (method.product(image, restored) > method.learnt_limit).float().mean()
    assert above == pytest.approx(0.05, abs=0.02)
    holes = method.holes(image, restored, float(method.learnt_limit))
    batch.rng = Rng(list(range(6)))
    found = method.maps(batch)
    outside = holes == 0
    assert torch.equal(found.reconstruction[outside], image[outside])
    assert (found.map[outside] == 0).all() and found.map.max() > 0
