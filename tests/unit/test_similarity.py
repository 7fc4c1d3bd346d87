"""Structural similarity against scikit-image."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from normscan.errors import ArgumentError
from normscan.objectives.similarity import ssim_map, ssim_residual


def pair(shape, seed=0):
    rng = np.random.default_rng(seed)
    x = rng.random(shape)
    return x, np.clip(x + rng.normal(0, 0.2, shape), 0, 1)


@pytest.mark.parametrize("shape", [(33, 20), (11, 12), (14, 16, 13)])
@pytest.mark.parametrize("data_range", [1.0, 2.0])
def test_map_against_scikit_image(shape, data_range):
    metrics = pytest.importorskip("skimage.metrics")
    x, y = pair((2, 3, *shape))
    got = ssim_map(torch.tensor(x), torch.tensor(y), data_range=data_range).numpy()
    inside = tuple(slice(5, -5) for _ in shape)
    for b in range(2):
        for c in range(3):
            _, full = metrics.structural_similarity(
                x[b, c], y[b, c], data_range=data_range, full=True, gaussian_weights=True,
                sigma=1.5, use_sample_covariance=False,
            )  # fmt: skip
            np.testing.assert_allclose(got[b, c], full[inside], atol=1e-10)


def test_single_precision_keeps_flat_images_alike():
    x = torch.full((1, 1, 16, 16), 0.83)
    torch.testing.assert_close(ssim_map(x, x), torch.ones(1, 1, 6, 6), atol=1e-3, rtol=0)


@pytest.mark.parametrize("shape", [(24, 31), (12, 15, 13)])
def test_residual_is_on_the_image_and_highest_at_the_change(shape):
    x = torch.rand(1, 2, *shape, generator=torch.Generator().manual_seed(0))
    changed = x.clone()
    centre = tuple(n // 2 for n in shape)
    changed[(slice(None), slice(None), *centre)] += 1
    residual = ssim_residual(x, changed)
    assert residual.shape == (1, 1, *shape)
    peak = np.unravel_index(int(residual.argmax()), shape)
    # The stretched inner part moves things by less than half a window.
    assert max(abs(p - c) for p, c in zip(peak, centre, strict=True)) <= 5
    assert ssim_residual(x, x).abs().max() < 1e-4
    mean = (1 - ssim_map(x, changed)).mean()
    assert residual.mean().item() == pytest.approx(mean.item(), rel=0.5)


def test_the_window_can_be_smaller_and_must_fit():
    x, y = (torch.tensor(t) for t in pair((1, 1, 8, 9)))
    assert ssim_map(x, y, window=5).shape == (1, 1, 4, 5)
    with pytest.raises(ArgumentError, match="8 x 9 is smaller than the 11 pixels"):
        ssim_map(x, y)


def test_gradients_reach_both_images():
    x, y = (torch.tensor(t, requires_grad=True) for t in pair((1, 1, 12, 12)))
    assert torch.autograd.gradcheck(lambda a, b: ssim_map(a, b).mean(), (x, y))
