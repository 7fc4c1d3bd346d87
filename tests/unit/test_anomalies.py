"""Artificial anomalies against loops over pixels."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from normscan.rng import Rng
from normscan.synthesis.anomalies import deformed, disks, filled, random_places, shuffled


def scene(shape=(17, 21), n=3):
    generator = torch.Generator().manual_seed(4)
    image = torch.rand(n, 2, *shape, generator=generator)
    foreground = torch.zeros(n, 1, *shape, dtype=torch.bool)
    foreground[(slice(None), slice(None), *[slice(3, m - 2) for m in shape])] = True
    return image, foreground


@pytest.mark.parametrize("shape", [(17, 21), (9, 8, 11)])
def test_disks_are_near_a_place_and_inside_the_foreground(shape):
    image, foreground = scene(shape)
    places = random_places(foreground, Rng([1, 2, 3]))
    assert places.shape == (3, len(shape))
    mask = disks(foreground, places, 4.5)
    for b, place in enumerate(places):
        assert foreground[b, 0][tuple(place)] and mask[b, 0][tuple(place)]
        for index in np.ndindex(*shape):
            near = np.linalg.norm(np.array(index) - place.numpy()) < 4.5
            assert bool(mask[b, 0][index]) == bool(near and foreground[b, 0][index])
    grey = filled(image, mask, 0.3)
    assert (grey[mask.expand_as(image)] == 0.3).all()
    assert torch.equal(grey[~mask.expand_as(image)], image[~mask.expand_as(image)])


def test_places_are_uniform_and_belong_to_their_sample():
    foreground = torch.zeros(1, 1, 1, 4, dtype=torch.bool)
    foreground[..., 1:] = True
    drawn = [int(random_places(foreground, Rng(seed))[0, 1]) for seed in range(300)]
    counts = np.bincount(drawn, minlength=4)
    assert counts[0] == 0 and counts[1:].min() > 70
    both = torch.cat([foreground, foreground])
    assert torch.equal(random_places(both, Rng([8, 9]))[1:], random_places(foreground, Rng([9])))


@pytest.mark.parametrize("kind", ["source", "sink"])
def test_deformation_against_a_loop(kind):
    image, foreground = scene()
    radius = 5.0
    places = torch.tensor([[3, 3], [8, 10], [14, 18]])
    mask = disks(foreground, places, radius)
    got = deformed(image, mask, places, radius, kind)
    expected = image.clone()
    for b, c in enumerate(places.numpy()):
        for index in np.argwhere(mask[b, 0].numpy()):
            v = index - c
            s = (np.linalg.norm(v) / radius) ** 2
            at = c + s * v if kind == "source" else index + (1 - s) * v
            y, x = np.clip(np.round(at).astype(int), 0, np.array(image.shape[2:]) - 1)
            expected[b, :, index[0], index[1]] = image[b, :, y, x]
    assert torch.equal(got, expected)
    assert not torch.equal(got, image)


def test_shuffling_keeps_the_pixels_of_the_disk():
    image, foreground = scene()
    mask = disks(foreground, torch.tensor([[8, 10]] * 3), 5.0)
    got = shuffled(image, mask, Rng([1, 2, 3]))
    wide = mask.expand_as(image)
    assert torch.equal(got[~wide], image[~wide])
    for b in range(3):
        before = image[b][:, mask[b, 0]].T
        after = got[b][:, mask[b, 0]].T
        assert not torch.equal(before, after)
        # Channels move together: the same rows in another order.
        assert sorted(map(tuple, before.tolist())) == sorted(map(tuple, after.tolist()))
    alone = shuffled(image[2:], mask[2:], Rng([3]))
    assert torch.equal(alone, got[2:])
