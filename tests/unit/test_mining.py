"""Hard mining of ReContrast, against the formulas written out."""

from __future__ import annotations

import numpy as np
import torch

from normscan.objectives.cosine import global_loss, point_distance
from normscan.objectives.mining import easy_points, mined_loss, mining_strength


def maps(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def test_the_strength_grows_in_the_first_tenth():
    assert [mining_strength(s, 1000) for s in (0, 50, 100, 999)] == [-3, -1, 1, 1]
    assert mining_strength(0, 1000, ramp=0) == 1


def test_easy_points_are_below_mean_and_alpha_deviations_of_the_batch():
    distance = point_distance(maps(2, 5, 4, 3), maps(2, 5, 4, 3, seed=1))
    values = distance.double().numpy()
    for alpha in (-1.0, 0.0, 1.0):
        expected = values < values.mean() + alpha * values.std(ddof=1)
        assert 0 < expected.sum() < expected.size
        np.testing.assert_array_equal(easy_points(distance, alpha).numpy(), expected)


def test_the_gradient_is_stopped_at_easy_points_only():
    a = [maps(2, 3, 4, 4).requires_grad_(), maps(2, 6, 2, 2, seed=2).requires_grad_()]
    b = [maps(2, 3, 4, 4, seed=1).requires_grad_(), maps(2, 6, 2, 2, seed=3).requires_grad_()]
    plain = global_loss(a, b)
    plain.backward()
    full = [x.grad.clone() for x in b]
    for factor in (0.0, 0.1):
        for x in b:
            x.grad = None
        mined = mined_loss(a, b, alpha=0.3, factor=factor)
        torch.testing.assert_close(mined, plain)
        mined.backward()
        for target, x, g in zip(a, b, full, strict=True):
            assert target.grad is None
            easy = easy_points(point_distance(target, x), 0.3).expand_as(x)
            assert 0 < int(easy.sum()) < easy.numel()
            torch.testing.assert_close(x.grad, torch.where(easy, factor * g, g))
