"""Blocks that the feature systems share, against loops and hand-made values."""

from __future__ import annotations

import numpy as np
import torch
from torch.nn import functional as F

from normscan.networks.aggregation import concatenated, vectors
from normscan.objectives.cosine import (
    damped,
    distance_map,
    global_distance,
    global_loss,
    point_distance,
)


def maps(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def test_concatenated_takes_every_stage_to_one_grid():
    fine, coarse = maps(2, 3, 4, 6), maps(2, 5, 2, 3, seed=1)
    near = concatenated([fine, coarse], mode="nearest")
    assert near.shape == (2, 8, 4, 6)
    assert torch.equal(near[:, :3], fine)
    assert torch.equal(near[:, 3:], coarse.repeat_interleave(2, 2).repeat_interleave(2, 3))
    smooth = concatenated([fine, coarse], (8, 8), align_corners=True)
    assert smooth.shape == (2, 8, 8, 8)
    torch.testing.assert_close(smooth[:, 3:, 0, 0], coarse[:, :, 0, 0])
    torch.testing.assert_close(smooth[:, 3:, -1, -1], coarse[:, :, -1, -1])


def test_pooled_stages_are_means_over_neighbours():
    f = maps(1, 2, 5, 5)
    got = concatenated([f], pooled=3)
    np.testing.assert_allclose(got[0, 1, 2, 3], f[0, 1, 1:4, 2:5].mean(), rtol=1e-5)
    np.testing.assert_allclose(got[0, 0, 0, 0], f[0, 0, :2, :2].sum() / 9, rtol=1e-5)
    assert torch.equal(vectors(f)[0, 7], f[0, :, 1, 2])


def test_cosine_distances_by_hand():
    a, b = maps(2, 3, 4, 5), maps(2, 3, 4, 5, seed=1)
    x, y = a[1, :, 2, 3].numpy(), b[1, :, 2, 3].numpy()
    expected = 1 - x @ y / np.linalg.norm(x) / np.linalg.norm(y)
    np.testing.assert_allclose(point_distance(a, b)[1, 0, 2, 3], expected, rtol=1e-5)
    flat = [
        1 - (p @ q) / (p.norm() * q.norm()) for p, q in zip(a.flatten(1), b.flatten(1), strict=True)
    ]
    torch.testing.assert_close(global_distance(a, b), torch.stack(flat).mean())
    assert float(global_distance(a, 3 * a)) < 1e-6


def test_the_loss_teaches_only_the_maps():
    a, b = maps(2, 3, 4, 4).requires_grad_(), maps(2, 3, 4, 4, seed=1).requires_grad_()
    global_loss([a, a], [b, 2 * b]).backward()
    assert a.grad is None and b.grad.abs().sum() > 0


def test_damped_changes_the_gradient_and_not_the_value():
    b = maps(1, 2, 3, 3).requires_grad_()
    easy = torch.zeros(1, 1, 3, 3, dtype=torch.bool)
    easy[..., 0, :] = True
    out = damped(b, easy, 0.1)
    torch.testing.assert_close(out, b)
    (3 * out).sum().backward()
    torch.testing.assert_close(b.grad[..., 0, :], torch.full((1, 2, 3), 0.3))
    torch.testing.assert_close(b.grad[..., 1:, :], torch.full((1, 2, 2, 3), 3.0))


def test_distance_maps_are_summed_over_levels():
    levels = [maps(1, 3, 4, 4), maps(1, 6, 2, 2)]
    others = [maps(1, 3, 4, 4, seed=1), maps(1, 6, 2, 2, seed=1)]
    total = distance_map(levels, others, (8, 8))
    expected = sum(
        F.interpolate(point_distance(a, b), (8, 8), mode="bilinear", align_corners=True)
        for a, b in zip(levels, others, strict=True)
    )
    torch.testing.assert_close(total, expected)
    assert distance_map(levels, levels, (8, 8)).abs().max() < 1e-6
