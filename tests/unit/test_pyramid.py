"""The Laplacian pyramid against scipy and against itself undone, and its autoencoders."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from scipy import ndimage
from torch import nn

from normscan.errors import ArgumentError
from normscan.networks.pyramid import (
    BandAutoencoder,
    ScaleSpaceAutoencoder,
    assemble,
    blur,
    detail,
    levels,
    mean_residual,
)


def images(dims: int, size: int = 32) -> torch.Tensor:
    return torch.rand(2, 3, *[size] * dims, generator=torch.Generator().manual_seed(dims))


@pytest.mark.parametrize("dims", [2, 3])
def test_bands_and_low_pass_give_the_image_back(dims):
    pyramid = levels(images(dims), 3)
    assert [x.shape[-1] for x in pyramid] == [32, 16, 8, 4]
    for x, y in zip(pyramid, assemble(detail(pyramid), pyramid[-1]), strict=False):
        torch.testing.assert_close(x, y)


@pytest.mark.parametrize("dims", [2, 3])
def test_blur_is_the_binomial_filter(dims):
    x = images(dims, 9)
    expected = x[0, 0].double().numpy()
    for axis in range(dims):
        expected = ndimage.convolve1d(expected, np.array([1, 4, 6, 4, 1]) / 16, axis, mode="mirror")
    np.testing.assert_allclose(blur(x)[0, 0], expected, atol=1e-6)


def test_levels_are_means_of_blurred_pixels():
    x = images(2)
    smooth = blur(x)
    expected = smooth.unflatten(3, (16, 2)).unflatten(2, (16, 2)).mean((3, 5))
    torch.testing.assert_close(levels(x, 1)[1], expected)


def test_a_constant_image_has_empty_bands():
    pyramid = levels(torch.full((1, 1, 16, 16), 0.7), 2)
    assert all(band.abs().max() < 1e-6 for band in detail(pyramid))


def test_the_low_pass_image_passes_by():
    """Networks that return nothing leave the enlarged low-pass image at every level."""
    net = ScaleSpaceAutoencoder(2, 1, 32, bands=2, width=2, code=4).eval()
    net.bands = nn.ModuleList(Nothing() for _ in range(2))
    x = images(2)[:, :1]
    pyramid, restored = net(x)
    assert [r.shape[-1] for r in restored] == [32, 16] and len(pyramid) == 2
    low = nn.functional.interpolate(levels(x, 2)[2], (16, 16), mode="bilinear")
    torch.testing.assert_close(restored[1], low)


class Nothing(nn.Module):
    def forward(self, x):
        return torch.zeros_like(x)


def test_every_band_has_the_same_code():
    net = ScaleSpaceAutoencoder(2, 1, 64, bands=3, width=4, code=8)
    deepest = [
        max(m.out_channels for m in b.modules() if isinstance(m, nn.Conv2d)) for b in net.bands
    ]
    assert deepest == [16, 8, 4], "3, 2, 1 halvings"
    assert BandAutoencoder(3, 2, 16, 2, 8)(torch.rand(1, 2, 16, 16, 16)).shape == (1, 2, *[16] * 3)


def test_mean_residual_enlarges_the_coarse_levels():
    pyramid = [torch.ones(1, 1, 8, 8), torch.full((1, 1, 4, 4), 3.0)]
    restored = [torch.zeros(1, 1, 8, 8), torch.zeros(1, 1, 4, 4)]
    torch.testing.assert_close(mean_residual(pyramid, restored), torch.full((1, 1, 8, 8), 2.0))


@pytest.mark.parametrize(("size", "near"), [(32, 64), (100, 128)])
def test_a_size_too_small_for_the_bands_is_refused(size, near):
    with pytest.raises(ArgumentError, match=f"Use size={near}"):
        ScaleSpaceAutoencoder(2, 1, size, bands=3, width=2, code=8)
