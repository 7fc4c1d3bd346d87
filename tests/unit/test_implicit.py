import itertools

import numpy as np
import pytest
import torch
from sklearn.cluster import KMeans
from torch import nn

from normscan.errors import ArgumentError
from normscan.methods.base import Batch
from normscan.methods.flows.implicit import implicit_field, pooled
from normscan.networks.implicit import (
    Codes,
    Field,
    coordinates,
    fourier,
    grey_levels,
    most_common,
    nearest_level,
)
from normscan.rng import Rng

pytestmark = pytest.mark.usefixtures("seed")


@pytest.mark.parametrize("levels", [2, 5])
def test_grey_levels_are_the_best_k_means(levels):
    rng = np.random.default_rng(0)
    values = np.concatenate([rng.normal(m, 0.05, 200) for m in (0.1, 0.45, 0.5, 0.9)]).clip(0, 1)
    bins = (values * 256).astype(int).clip(0, 255)
    binned = (bins + 0.5) / 256
    found = grey_levels(torch.from_numpy(np.bincount(bins, minlength=256)), levels).numpy()
    ours = np.abs(binned[:, None] - found).min(1).__pow__(2).sum()
    theirs = KMeans(levels, n_init=20, random_state=0).fit(binned[:, None])
    assert ours <= theirs.inertia_ + 1e-9
    assert (np.diff(found) > 0).all()


def test_the_nearest_level():
    levels = torch.tensor([[0.0, 0.3, 0.9], [0.2, 0.5, 0.6]])
    x = torch.rand(4, 2, 3, 5)
    by_hand = (x[..., None] - levels[:, None, None]).abs().argmin(-1)
    assert torch.equal(nearest_level(x, levels), by_hand)


@pytest.mark.parametrize("side", [1, 2, 3])
@pytest.mark.parametrize("shape", [(4, 5), (3, 4, 2)])
def test_the_most_common_label(side, shape):
    labels = torch.randint(0, 3, (2, 2, *shape))
    every = torch.arange(int(np.prod(shape))).expand(2, -1)
    found = most_common(labels, every, side, 3).reshape(2, 2, *shape)
    offsets = range(0 if side == 1 else -1, (0 if side == 1 else -1) + side)
    for b, c in itertools.product(range(2), range(2)):
        for place in np.ndindex(*shape):
            seen = []
            for step in itertools.product(offsets, repeat=len(shape)):
                there = tuple(p + s for p, s in zip(place, step, strict=True))
                inside = all(0 <= t < n for t, n in zip(there, shape, strict=True))
                seen.append(int(labels[(b, c, *there)]) if inside else 0)
            assert int(found[(b, c, *place)]) == np.bincount(seen, minlength=3).argmax()


def test_coordinates_and_their_features():
    places = coordinates(torch.arange(8), (2, 4))
    torch.testing.assert_close(places[0], torch.tensor([-1.0, -1.0]))
    torch.testing.assert_close(places[6], torch.tensor([0.0, 0.0]))
    features = fourier(torch.tensor([[0.25, -0.5]]), 2)
    expected = [np.sin(0.25 * np.pi), 1, -1, 0, np.cos(0.25 * np.pi), 0, 0, -1]
    torch.testing.assert_close(features[0], torch.tensor(expected, dtype=torch.float32))


def test_a_field_too_narrow_and_an_image_too_small_are_refused():
    with pytest.raises(ArgumentError, match="width=64"):
        Field(3, 32, 10, width=64)
    with pytest.raises(ArgumentError, match="mean=11"):
        implicit_field(size=12)


def test_codes_grow_and_are_cut_to_their_largest_norm():
    codes = Codes(3)
    codes.grow(torch.tensor([[3.0, 0, 4], [0.1, 0, 0]]))
    codes.grow(torch.ones(1, 3))
    norms = codes(torch.tensor([0, 1, 2])).norm(dim=1)
    torch.testing.assert_close(norms, torch.tensor([1.0, 0.1, 1.0]))


def test_pooling_takes_the_least_then_the_mean():
    x = torch.rand(1, 1, 6, 7)
    least = nn.functional.pad(x, [1] * 4, value=torch.inf).unfold(2, 3, 1).unfold(3, 3, 1)
    least = least.amin((-1, -2))
    mean = nn.functional.pad(least, [1] * 4).unfold(2, 3, 1).unfold(3, 3, 1).mean((-1, -2))
    torch.testing.assert_close(pooled(x, 3, 3), mean)


def test_the_search_lowers_the_surprise():
    method = implicit_field(
        size=16, latent=8, width=64, octaves=2, mean=3, search_updates=(40, 0),
        search_points=(256, 1), search_lr=0.05,
    ).eval()  # fmt: skip
    image = torch.rand(2, 1, 16, 16)
    batch = Batch(image, torch.ones(2, 1, 16, 16, dtype=torch.bool), Rng([0, 1]), torch.zeros(2))
    every = torch.arange(256).expand(2, -1)
    begun = Rng([0, 1]).normal((2, 8)) / 8**0.5
    with torch.no_grad():
        before = method.surprise(begun, image, every).mean(1)
        after = method.surprise(method.searched(batch), image, every).mean(1)
    assert (after < before).all()
