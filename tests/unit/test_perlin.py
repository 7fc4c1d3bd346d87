"""Perlin noise and texture blends, against loops and hand-made values."""

from __future__ import annotations

import math

import numpy as np
import torch

from normscan.rng import Rng
from normscan.synthesis.perlin import perlin_masks, perlin_noise, shuffled_tiles, texture_blend


def slow(size, angles, scales):
    """Perlin noise one pixel at a time."""
    out = np.zeros(size)
    for i in range(size[0]):
        for j in range(size[1]):
            y, x = i * scales[0] / size[0], j * scales[1] / size[1]
            r, c = int(y), int(x)
            total = 0.0
            for dr in (0, 1):
                for dc in (0, 1):
                    g = angles[r + dr, c + dc]
                    dot = math.cos(g) * (y - r - dr) + math.sin(g) * (x - c - dc)
                    weight = 1.0
                    for t, d in ((y - r, dr), (x - c, dc)):
                        fade = 6 * t**5 - 15 * t**4 + 10 * t**3
                        weight *= fade if d else 1 - fade
                    total += weight * dot
            out[i, j] = math.sqrt(2) * total
    return out


def test_noise_is_that_of_a_slow_loop_and_zero_at_the_lattice():
    size, scales = (24, 32), torch.tensor([[4, 2], [1, 8]])
    angles = 2 * torch.pi * Rng(0).uniform((2, 9, 9))
    noise = perlin_noise(size, angles, scales)
    assert noise.shape == (2, 1, *size) and float(noise.abs().max()) <= 1
    for n in range(2):
        expected = slow(size, angles[n].double().numpy(), scales[n].tolist())
        np.testing.assert_allclose(noise[n, 0], expected, atol=1e-5)
    assert float(noise[0, 0, ::6, ::16].abs().max()) < 1e-6


def test_a_quarter_turn_turns_the_field_about_its_centre():
    angles, scales = 2 * torch.pi * Rng(1).uniform((1, 5, 5)), torch.tensor([[4, 4]])
    straight = perlin_noise((16, 16), angles, scales)[0, 0]
    turned = perlin_noise((16, 16), angles, scales, torch.tensor([torch.pi]))[0, 0]
    # Half a turn about the point (8, 8): pixel (i, j) shows (16 - i, 16 - j).
    torch.testing.assert_close(turned[1:, 1:], straight[1:, 1:].flip(0, 1), atol=1e-4, rtol=0)
    slanted = perlin_noise((16, 16), angles, scales, torch.tensor([torch.pi / 4]))[0, 0]
    assert float(slanted[0, 0]) == 0 and float(slanted[8, 8]) == float(straight[8, 8])


def test_masks_lie_in_the_foreground_and_come_from_their_rng():
    foreground = torch.zeros(12, 1, 32, 40, dtype=torch.bool)
    foreground[:, :, 4:28, 6:30] = True
    masks = perlin_masks(foreground, Rng(2))
    assert masks.shape == foreground.shape and masks.dtype == torch.bool
    assert not (masks & ~foreground).any()
    assert 0.01 < float(masks.float().mean()) < 0.5
    assert torch.equal(masks, perlin_masks(foreground, Rng(2)))
    assert not torch.equal(masks, perlin_masks(foreground, Rng(3)))
    alone = perlin_masks(foreground[:1], Rng([7]))
    together = perlin_masks(foreground[:3], Rng([7, 8, 9]))
    assert torch.equal(alone[0], together[0])


def test_blend_by_hand():
    x, t = torch.full((1, 2, 2, 2), 0.5), torch.ones(1, 2, 2, 2)
    mask = torch.tensor([[[[True, False], [False, True]]]])
    out = texture_blend(x, t, mask, torch.full((1, 1, 1, 1), 0.25))
    expected = torch.tensor([[0.875, 0.5], [0.5, 0.875]]).expand(1, 2, 2, 2)
    torch.testing.assert_close(out, expected)


def test_tiles_of_another_image_are_all_there_and_whole():
    grid, side = 4, 3
    tiles = torch.arange(grid * grid).reshape(grid, grid)
    base = tiles.repeat_interleave(side, 0).repeat_interleave(side, 1).float()
    inner = torch.arange(side * side).reshape(side, side).float().repeat(grid, grid) / 100
    image = torch.stack([torch.stack([base, inner]), torch.stack([base + 100, inner])])
    out = shuffled_tiles(image, Rng(0), grid, inverted=0.0)
    for n, shift in ((0, 100), (1, 0)):  # of the other image
        values = out[n, 0].unfold(0, side, side).unfold(1, side, side).reshape(-1, side * side)
        assert (values == values[:, :1]).all(), "a tile is torn"
        assert sorted(values[:, 0].tolist()) == [v + shift for v in range(grid * grid)]
        assert torch.equal(out[n, 1], inner), "a tile is turned"
    assert not torch.equal(out[0, 0], image[1, 0])
    upside = shuffled_tiles(image, Rng(0), grid, inverted=1.0)
    largest = torch.tensor([115.0, 15.0]).reshape(2, 1, 1, 1)
    torch.testing.assert_close(upside, largest - out)


def test_a_rest_of_the_tiles_stays_in_place():
    image = torch.rand(1, 1, 10, 7, generator=torch.Generator().manual_seed(0))
    out = shuffled_tiles(image, Rng(0), 3, inverted=0.0)
    assert torch.equal(out[..., 9:, :], image[..., 9:, :])
    assert torch.equal(out[..., 6:], image[..., 6:])
    assert sorted(out.flatten().tolist()) == sorted(image.flatten().tolist())
