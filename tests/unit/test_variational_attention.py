"""The attention of AMCons: erosion against scipy, entropy against torch.distributions."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from scipy import ndimage

from normscan.errors import ArgumentError
from normscan.methods.variational.attention import eroded, mask_entropy
from normscan.networks.attended import AttendedNetwork


@pytest.mark.parametrize("side", [1, 2, 3, 6])
def test_erosion_is_that_of_scipy(side):
    mask = torch.rand(2, 1, 20, 23, generator=torch.Generator().manual_seed(0)) < 0.97
    expected = [ndimage.binary_erosion(m[0], np.ones((side, side))) for m in mask.numpy()]
    np.testing.assert_array_equal(eroded(mask, side)[:, 0].numpy(), np.stack(expected))


def test_entropy_is_that_of_a_distribution():
    generator = torch.Generator().manual_seed(0)
    attention = torch.randn(3, 1, 6, 7, generator=generator)
    mask = torch.rand(1, 1, 6, 7, generator=generator) < 0.5
    logits = torch.stack([a[mask[0]] for a in attention])
    expected = torch.distributions.Categorical(logits=logits).entropy()
    torch.testing.assert_close(mask_entropy(attention, mask), expected)


def test_the_network_says_which_sizes_it_takes():
    with pytest.raises(ArgumentError, match="Use size=48"):
        AttendedNetwork(1, 40, 4, width=4)
