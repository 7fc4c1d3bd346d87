import numpy as np
import pytest
import torch
from skimage.draw import line
from tests.support.batches import batch

from normscan.errors import ArgumentError
from normscan.methods.adversarial.holes import Holes, adversarial_inpainting, discounted
from normscan.networks.inpainting import GatedConv, Inpainter, hole_critic
from normscan.rng import Rng
from normscan.synthesis.strokes import _distance, brushed

pytestmark = pytest.mark.usefixtures("seed")


def small(**options):
    return adversarial_inpainting(size=32, width=4, critic_width=4, hole=8, step=4, **options)


def test_distances_from_a_segment_against_many_points_on_it():
    a, b = torch.tensor([[2.0, 3.0]]), torch.tensor([[9.0, 5.5]])
    at = torch.stack(torch.meshgrid(*[torch.arange(12.0)] * 2, indexing="ij"))
    points = a + torch.linspace(0, 1, 2001)[:, None] * (b - a)
    expected = torch.cdist(at.flatten(1).T, points).amin(1).reshape(12, 12)
    torch.testing.assert_close(_distance(at, a, b)[0], expected, atol=1e-3, rtol=1e-3)


def test_strokes_are_as_wide_as_they_are_said_to_be():
    class Told:
        """One stroke of ten points that go on to the right."""

        def uniform(self, shape):
            return torch.full(shape, 0.25)  # of an angle: along the rows

        def integers(self, low, high, shape):
            return torch.full(shape, low)

    mask = brushed(Told(), 1, (200, 200))[0, 0]
    middle = line(50, 50, 185, 50)  # 9 steps of 15 pixels
    assert mask[middle].all() and mask[197, 50] == 0
    assert mask[120].sum().item() == pytest.approx(
        11.25, abs=1
    )  # 10 to 15 wide, a quarter of the way


def test_strokes_cover_some_of_every_image():
    masks = brushed(Rng(0), 20, (128, 128), 0.5)
    share = masks.flatten(1).mean(1)
    assert masks.unique().tolist() == [0, 1] and share.min() > 0.01 and share.max() < 0.8


def test_what_is_far_into_a_hole_counts_less():
    hole = torch.zeros(2, 1, 12, 12)
    hole[0, 0, 2:9, 3:8] = 1
    hole[1, 0, 5, 5] = 1
    found = discounted(hole, 0.9)
    for image, mask in zip(found[:, 0], hole[:, 0], strict=True):
        known = np.argwhere(mask.numpy() == 0)
        for y, x in np.ndindex(12, 12):
            away = np.sqrt(((known - [y, x]) ** 2).sum(1)).min()
            assert image[y, x].item() == pytest.approx(0.9**away if mask[y, x] else 0)


@pytest.mark.parametrize(("side", "step"), [(8, 4), (8, 8), (6, 2)])
def test_each_pixel_lies_in_a_quarter_of_the_holes(side, step):
    masks = Holes(side, step).masks(24)
    assert len(masks) == (2 * side // step) ** 2
    torch.testing.assert_close(masks.mean(0), torch.full((1, 24, 24), 0.25))


def test_what_is_in_a_hole_is_not_looked_at():
    network, hole = Inpainter(1, 32, 4).eval(), torch.zeros(1, 1, 32, 32)
    hole[..., 8:20, 10:18] = 1
    x = torch.rand(1, 1, 32, 32)
    with torch.no_grad():
        fine, coarse = network(x, hole)
        other, _ = network(torch.where(hole > 0, 1 - x, x), hole)
    torch.testing.assert_close(fine, other)
    for found in (fine, coarse):
        assert torch.equal(found * (1 - hole), x * (1 - hole))


def test_a_gate_that_is_shut_lets_nothing_through():
    conv = GatedConv(2, 3).eval()
    torch.nn.init.zeros_(conv.gates.weight)
    torch.nn.init.constant_(conv.gates.bias, -50)
    assert conv(torch.rand(1, 2, 8, 8)).abs().max() < 1e-15


def test_the_critic_halves_five_times():
    assert hole_critic(1, 4)(torch.rand(2, 2, 64, 64)).shape == (2, 16, 2, 2)


def test_the_map_is_the_error_of_what_was_filled_in():
    method = small().eval()
    some = batch(2)
    total = torch.zeros_like(some.image)
    with torch.no_grad():
        for hole in method.holes.masks(32):
            filled = method.network(some.image, hole.expand(2, 1, -1, -1))[0]
            total += (filled - some.image).abs()  # nothing beyond the hole
    found = method.maps(some)
    torch.testing.assert_close(found.map, total / 4)
    squares = found.map.unfold(2, 8, 4).unfold(3, 8, 4).mean((-2, -1))
    torch.testing.assert_close(found.score, squares.flatten(1).amax(1))


def test_a_perfect_filling_costs_nothing_but_the_critic():
    method = small()
    method.network.forward = lambda x, hole: (x, x)
    terms = method.loss(batch(2), "inpaint", "network")
    assert terms["image"] == 0 and terms["adversarial"] != 0


def test_holes_that_leave_pixels_out_are_refused():
    with pytest.raises(ArgumentError, match="hole=8, step=3"):
        adversarial_inpainting(size=32, width=4, hole=8, step=3)
    with pytest.raises(ArgumentError, match="size=30"):
        adversarial_inpainting(size=30, width=4, hole=8, step=4)
