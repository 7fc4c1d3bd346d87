"""Gates, patches, pictures of gradients and the blur of GatingAno, and its discriminator."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from scipy import ndimage
from skimage.feature import hog
from torch import nn

from normscan.errors import ArgumentError
from normscan.methods.autoencoders.gated import RATES, cut, gating_ano, joined, spread
from normscan.methods.base import Batch
from normscan.networks.discriminators import PatchDiscriminator
from normscan.networks.gated import GatedUNet
from normscan.rng import Rng
from normscan.scores.hog import hog_image
from normscan.synthesis.blur import gaussian_blur


def images(*shape: int) -> torch.Tensor:
    return torch.rand(*shape, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize("cell", [4, 8, 16])
@pytest.mark.parametrize("shape", [(32, 48), (37, 50)])
def test_picture_of_gradients_is_that_of_scikit_image(cell, shape):
    x = images(2, 1, *shape)
    x[1] = (x[1] > 0.5).float()  # equal differences, whose angles lie on borders of bins
    x[1, :, :20] = 1.0
    for image, picture in zip(x, hog_image(x, cell), strict=True):
        _, expected = hog(image[0].double().numpy(), 9, (cell, cell), (1, 1), visualize=True)
        np.testing.assert_allclose(picture[0], expected, atol=1e-5)


def test_blur_is_a_cut_gaussian_of_each_image():
    x = images(2, 3, 16, 12)
    sigma = torch.tensor([0.7, 3.0])
    result = gaussian_blur(x, sigma, (9, 5))
    for i, s in enumerate(sigma.tolist()):
        expected = x[i].double().numpy()
        for axis, n in ((1, 9), (2, 5)):
            weights = np.exp(-(((np.arange(n) - n // 2) / s) ** 2) / 2)
            expected = ndimage.convolve1d(expected, weights / weights.sum(), axis, mode="mirror")
        np.testing.assert_allclose(result[i], expected, atol=1e-6)


def test_cutting_can_be_undone_and_keeps_the_order():
    x = images(2, 2, 12, 18)
    patches = cut(x)
    assert patches.shape == (18, 2, 4, 6)
    assert torch.equal(patches[9 + 5], x[1, :, 4:8, 12:18])
    assert torch.equal(joined(patches), x)


def test_spread_is_the_sample_deviation_over_nine_patches():
    errors = images(18)
    expected = [np.std(errors[:9].numpy(), ddof=1), np.std(errors[9:].numpy(), ddof=1)]
    np.testing.assert_allclose(spread(errors), expected, rtol=1e-5)


# --- the network


def test_gates_close_as_in_the_article():
    """After 10, 20, 25 and 50 of 200 epochs; they fall by 0.05, 0.04, 0.03, 0.02 in each."""
    net = GatedUNet(1, 2, 2)
    for epoch in (0, 10, 20, 25, 50):
        net.fade(epoch / 200, RATES)
        expected = [max(0.0, 1 - fall * epoch) for fall in (0.05, 0.04, 0.03, 0.02)]
        np.testing.assert_allclose(net.gates, expected, atol=1e-6)
    assert "gates" in net.state_dict() and not net.gates.any()


def test_closed_gates_let_nothing_pass_beside_the_deepest_features():
    net = GatedUNet(1, 1, 2).eval()
    x = images(1, 1, 32, 32)
    features = net.encode(x)
    other = [torch.zeros_like(f) for f in features[:-1]] + features[-1:]
    whole = net(x)
    net.encode = lambda _: [*other]
    assert not torch.allclose(net(x), whole), "open gates let the skips pass"
    net.fade(1.0, RATES)
    blind = net(x)
    net.encode = lambda _: [*features]
    torch.testing.assert_close(net(x), blind)


def test_open_gates_cut_the_gradient_of_the_way_up():
    net = GatedUNet(1, 1, 2)
    net(images(2, 1, 32, 32)).sum().backward()
    assert net.down[-1][0].weight.grad is None or not net.down[-1][0].weight.grad.any()
    net.fade(0.05, RATES)
    net(images(2, 1, 32, 32)).sum().backward()
    assert net.down[-1][0].weight.grad.any()


def test_discriminator_is_a_patchgan_with_spectral_norm():
    net = PatchDiscriminator(2, 1, 64).eval()
    shapes = [tuple(m.weight.shape[:2]) for m in net.modules() if isinstance(m, nn.Conv2d)]
    assert shapes == [(64, 1), (128, 64), (256, 128), (512, 256), (1, 512)]
    assert net(torch.rand(1, 1, 64, 64)).shape == (1, 1, 6, 6)
    small = PatchDiscriminator(2, 1, 4)
    for _ in range(30):
        small(torch.rand(1, 1, 32, 32))
    for m in small.eval().modules():
        if isinstance(m, nn.Conv2d):
            norm = torch.linalg.matrix_norm(m.weight.flatten(1), 2)
            assert float(norm.detach()) == pytest.approx(1, abs=0.02)


# --- the method


def make(**options):
    return gating_ano(**{"size": 96, "width": 2, "critic_width": 2, "steps": 10, **options})


def batch(n: int, channels: int = 1) -> Batch:
    image = images(n, channels, 96, 96)
    return Batch(image, torch.ones(n, 1, 96, 96, dtype=torch.bool), Rng(0), torch.zeros(n))


def test_items_are_patches_of_the_images():
    method, b = make(blur=0.0), batch(4, 2)
    x, gradients = method.items(b.image, b.rng)
    assert x.shape == (4, 2, 32, 32) and gradients.shape == (4, 1, 32, 32)
    assert float(gradients.min()) >= 0 and float(gradients.max()) <= 1
    for patch, image in zip(x, b.image, strict=True):
        flips = [patch, patch.flip(1), patch.flip(2), patch.flip(1, 2)]
        assert any(torch.equal(f, p) for f in flips for p in cut(image[None]))


def test_both_players_share_one_balance():
    """With logits of zero each opinion is log 2, of the image and of the gradients.

    The critic's own loss is halved, as in the released code.
    """
    method, b = make(adversarial=0.5, channels=2), batch(2, 2)
    method.logits = torch.zeros_like
    for player, names in (("critic", ("real", "fake")), ("generator", ("adversarial",))):
        terms = method.loss(b, "restore", player)
        for name in names:
            share = 0.5 if player == "critic" else 1.0
            assert float(terms[name]) == pytest.approx(share * np.log(2), rel=1e-5)


def test_schedule_moves_the_gates_and_validation_does_not():
    method = make()
    player = method.phases()[0].players[1]
    method.loss(batch(2), "restore", "generator")
    assert method.network.gates.tolist() == [1, 1, 1, 1]
    assert player.schedule(0, 200) == 1.0
    np.testing.assert_allclose(method.network.gates, [0.95, 0.96, 0.97, 0.98])
    assert player.schedule(199, 200) < 1e-3 and not method.network.gates.any()


def test_score_is_the_spread_of_the_change_of_the_features():
    method, b = make().eval(), batch(2)
    maps = method.maps(b)
    x, restored = cut(b.image), cut(maps.reconstruction)
    change = method.network.encode(x)[-1] - method.network.encode(restored)[-1]
    distance = change.flatten(1).norm(dim=1).reshape(2, 9)
    torch.testing.assert_close(maps.score, distance.std(1, unbiased=True))
    torch.testing.assert_close(maps.map, (b.image - maps.reconstruction).abs())


def test_without_the_spread_the_map_gives_the_score():
    spread_of, map_of = make().eval(), make(score="map").eval()
    map_of.load_state_dict(spread_of.state_dict())
    expected, found = spread_of.maps(batch(2)), map_of.maps(batch(2))
    assert found.score is None and expected.score is not None
    assert torch.equal(found.map, expected.map)


@pytest.mark.parametrize(("size", "near"), [(100, 96), (30, 48)])
def test_a_size_without_nine_patches_is_refused(size, near):
    with pytest.raises(ArgumentError, match=f"Use size={near}"):
        gating_ano(size=size)
