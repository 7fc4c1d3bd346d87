"""What is hidden stays hidden, and patches lie where they are said to."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from normscan.errors import ArgumentError
from normscan.methods.features.glance import CELL, PatchGrid, decorrelation
from normscan.networks.partial import HiddenPatchNetwork, PartialConv
from normscan.registry import card
from normscan.rng import Rng


def test_a_partial_convolution_by_hand():
    torch.manual_seed(0)
    conv = PartialConv(2, 3, 3, 2).double()
    torch.nn.init.normal_(conv.bias)
    x = torch.randn(1, 2, 7, 6).double()
    shown = (torch.rand(1, 1, 7, 6) > 0.6).double()
    shown[..., :3, :3] = 0
    found, some = conv(x, shown)
    weight, bias = conv.conv.weight.detach().numpy(), conv.bias.detach().numpy()
    values, mask = np.pad(x[0].numpy(), [(0, 0), (1, 1), (1, 1)]), np.pad(shown[0, 0].numpy(), 1)
    for i in range(found.shape[2]):
        for j in range(found.shape[3]):
            window = mask[2 * i : 2 * i + 3, 2 * j : 2 * j + 3]
            part = values[:, 2 * i : 2 * i + 3, 2 * j : 2 * j + 3] * window
            count = window.sum()
            known = (weight * part).sum((1, 2, 3)) * 9 / count + bias if count else np.zeros(3)
            assert found[0, :, i, j].detach().numpy() == pytest.approx(known)
            assert bool(some[0, 0, i, j]) == bool(count)
    assert not some.all()


def test_the_network_sees_nothing_of_the_hidden_patch():
    torch.manual_seed(0)
    network = HiddenPatchNetwork(1, 8, 3, 4)
    grid = PatchGrid(32, 9, 4)
    corners = torch.tensor([[5, 13]])
    x = torch.rand(1, 1, 32, 32, requires_grad=True)
    network(x, grid.shown(corners, x.detach()), grid.centres(corners)).sum().backward()
    assert x.grad is not None
    seen = x.grad[0, 0] != 0
    assert not seen[5:14, 13:22].any() and seen[4, 13:22].any() and seen[5:14, 22].any()


def test_patches_are_cut_where_the_image_is_hidden():
    grid = PatchGrid(20, 5, 4)
    image = torch.arange(400.0).reshape(1, 1, 20, 20).expand(16, -1, -1, -1)
    corners = grid.corners()
    patches, shown = grid.cut(image, corners), grid.shown(corners, image)
    for i, (row, column) in enumerate(corners.tolist()):
        assert torch.equal(patches[i, 0], image[0, 0, row : row + 5, column : column + 5])
        hidden = (shown[i, 0] == 0).nonzero()
        assert hidden.amin(0).tolist() == [row, column]
        assert len(hidden) == 25
        middle = (torch.tensor([column, row]) + 2.5) / 20 * 2 - 1
        torch.testing.assert_close(grid.centres(corners)[i], middle)


def test_scores_are_spread_by_inverse_distances():
    grid = PatchGrid(16, 9, 2)
    spread = grid.spreading()
    middles = grid.corners().numpy() + 4
    cells = 16 // CELL
    for row in range(cells):
        for column in range(cells):
            at = np.array([row, column]) * CELL + (CELL - 1) / 2
            weights = np.maximum(np.linalg.norm(middles - at, axis=1), 0.5) ** -5.0
            known = weights / weights.sum()
            assert spread[row * cells + column].numpy() == pytest.approx(known, rel=1e-4)


def test_correlations_are_those_of_numpy():
    x = np.random.default_rng(0).normal(size=(8, 4))
    known = np.abs(np.corrcoef(x.T)).sum() - 4
    assert float(decorrelation(torch.from_numpy(x))) == pytest.approx(known)


def test_a_stain_has_one_colour():
    method = card("glance_patch").create(**card("glance_patch").arguments("tiny"))
    clean = torch.rand(6, 1, 9, 9, generator=torch.Generator().manual_seed(0))
    dirty = method.stained(clean, Rng(3))
    for before, after in zip(clean, dirty, strict=True):
        assert after[before != after].unique().numel() <= 1
    assert (clean != dirty).any()


def test_a_patch_fits_into_the_image():
    with pytest.raises(ArgumentError, match="9 to 32"):
        card("glance_patch").create(**card("glance_patch").arguments("tiny", side=40))
