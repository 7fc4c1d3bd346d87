"""Cutting into patches and putting together, against loops; strips and dense patch codes."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from normscan.errors import ArgumentError
from normscan.methods.autoencoders.strips import DualEncoder, leading_basis
from normscan.networks.patch import PATCH, PatchAutoencoder, padded, patches_at
from normscan.registry import card
from normscan.scores.patches import assemble, check_cover, extract


def corners(size, shape, stride):
    return [
        (y, x)
        for y in range(0, size[0] - shape[0] + 1, stride[0])
        for x in range(0, size[1] - shape[1] + 1, stride[1])
    ]


@pytest.mark.parametrize(
    ("shape", "stride"), [((4, 8), (2, 4)), ((8, 4), (4, 2)), ((3, 5), (1, 1))]
)
def test_extract_and_assemble_against_loops(rng, shape, stride):
    x = torch.tensor(rng.normal(size=(2, 3, 12, 16)))
    places = corners((12, 16), shape, stride)
    patches = extract(x, shape, stride)
    assert patches.shape == (2, len(places), 3, *shape)
    for i, (r, c) in enumerate(places):
        assert torch.equal(patches[:, i], x[:, :, r : r + shape[0], c : c + shape[1]])
    values = torch.tensor(rng.normal(size=tuple(patches.shape)))
    total, number = np.zeros((2, 3, 12, 16)), np.zeros((12, 16))
    for i, (r, c) in enumerate(places):
        total[:, :, r : r + shape[0], c : c + shape[1]] += values[:, i].numpy()
        number[r : r + shape[0], c : c + shape[1]] += 1
    expected = total / np.maximum(number, 1)
    np.testing.assert_allclose(assemble(values, (12, 16), stride), expected, atol=1e-12)
    torch.testing.assert_close(assemble(patches, (12, 16), stride)[:, :, :10], x[:, :, :10])


def test_sizes_that_strips_dont_cover():
    check_cover(64, 32, 16)
    with pytest.raises(ArgumentError, match="size=60.*Use size=64"):
        check_cover(60, 32, 16)
    with pytest.raises(ArgumentError, match="multiple of 8"):
        card("dual_ae_svd").create(**card("dual_ae_svd").arguments(strip=(6, 32)))


def test_leading_basis_is_that_of_the_singular_value_decomposition(rng):
    z = rng.normal(size=(50, 6)) * [5, 4, 3, 2, 1, 0.5]
    basis = leading_basis(torch.tensor(z.T @ z), 3).double().numpy()
    right = np.linalg.svd(z, full_matrices=False)[2][:3]
    np.testing.assert_allclose(basis @ basis.T, right.T @ right, atol=1e-6)


def test_truncation_keeps_the_batch_or_the_learnt_directions():
    torch.manual_seed(0)
    network = DualEncoder(1, (8, 16), 4, 10, 3).eval()
    x = torch.rand(40, 1, 8, 16)
    z, kept, restored, again = network(x, learnt=False)
    assert restored.shape == x.shape and again.shape == z.shape == (40, 10)
    u, s, v = np.linalg.svd(z.detach().numpy(), full_matrices=False)
    np.testing.assert_allclose(kept.detach(), (u[:, :3] * s[:3]) @ v[:3], atol=1e-4)
    z, kept, _, _ = network(x)
    torch.testing.assert_close(kept, torch.cat([z[:, :3], torch.zeros(40, 7)], 1))
    network(x, learnt=False)[1].sum().backward()
    assert torch.isfinite(network.encoder[0].weight.grad).all()


def test_a_crossing_is_the_product_of_both_orientations():
    torch.manual_seed(0)
    entry = card("dual_ae_svd")
    method = entry.create(**entry.arguments("tiny")).eval()
    from normscan.methods.base import Batch
    from normscan.rng import Rng

    image = torch.rand(1, 1, 32, 32)
    batch = Batch(image, torch.ones(1, 1, 32, 32, dtype=torch.bool), Rng([0]), torch.zeros(1))
    expected = np.ones((32, 32))
    cut = method.strips
    for network, shape, stride in zip(method.networks, cut.shapes, cut.strides, strict=True):
        total, number = np.zeros((32, 32)), np.zeros((32, 32))
        for r, c in corners((32, 32), shape, stride):
            window = (slice(r, r + shape[0]), slice(c, c + shape[1]))
            x = image[(slice(None), slice(None), *window)]
            with torch.no_grad():
                z, _, restored, again = network(x)
            total[window] += float((x - restored).square().mean() + (z - again).square().mean())
            number[window] += 1
        expected *= total / number
    np.testing.assert_allclose(method.maps(batch).map[0, 0], expected, rtol=1e-4)


def test_codes_everywhere_are_those_of_single_patches():
    torch.manual_seed(0)
    network = PatchAutoencoder(2).eval()
    for block in network.encoder:  # statistics that aren't the identity
        block[2].running_mean.uniform_(-0.2, 0.2)
        block[2].running_var.uniform_(0.5, 2)
    x = torch.rand(2, 2, 20, 17)
    with torch.no_grad():
        dense = network.encode_everywhere(padded(x))
        assert dense.shape == (2, 16, 20, 17)
        places = torch.tensor([[0, 5, 339], [200, 17, 16]])
        patches = patches_at(x, places)
        for b in range(2):
            for i, place in enumerate(places[b].tolist()):
                code = network.encode(patches[b, i : i + 1])[0]
                torch.testing.assert_close(dense[b, :, place // 17, place % 17], code)
        assert network.decode(code[None]).shape == (1, 2, PATCH, PATCH)
    # The middle of a patch is its pixel.
    middle = patches[..., PATCH // 2, PATCH // 2]
    flat = x.flatten(2)
    torch.testing.assert_close(middle[0], flat[0][:, places[0]].T)
