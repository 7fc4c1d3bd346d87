import math

import numpy as np
import pytest
import scipy.signal
import torch
from torch.nn import functional as F

from normscan.methods.adversarial.swapped import Repository, Retrieval, stylegan_swap
from normscan.methods.base import Batch
from normscan.networks.stylegan import (
    Modulated,
    Scaled,
    StyleCritic,
    StyleGenerator,
    enlarged,
    mixed,
    path_lengths,
)
from normscan.registry import card
from normscan.rng import Rng

pytestmark = pytest.mark.usefixtures("seed")


def small(**changes):
    arguments = {**card("stylegan_swap").arguments("tiny"), "latent": 6, "width": 2, "most": 4}
    return stylegan_swap(**{**arguments, **changes})


def test_modulated_convolutions_are_those_of_scaled_inputs_brought_to_variance_one():
    conv, code, x = Modulated(4, 3, 3, 5), torch.randn(2, 5), torch.randn(2, 4, 7, 7)
    filters = conv.filters(code)
    torch.testing.assert_close(filters.square().sum((2, 3, 4)), torch.ones(2, 3))
    styles = conv.style(code)
    for i in range(2):
        plain = F.conv2d(
            styles[i, :, None, None] * x[i : i + 1], conv.weight * conv.scale, padding=1
        )
        size = (conv.weight * conv.scale * styles[i, None, :, None, None]).square().sum((1, 2, 3))
        expected = plain / size.sqrt()[:, None, None]
        torch.testing.assert_close(conv(x, code)[i : i + 1], expected, atol=1e-5, rtol=1e-5)


def test_a_scaled_layer_keeps_the_variance_and_learns_slower():
    x = torch.randn(4000, 200)
    assert Scaled(200, 50)(x).std().item() == pytest.approx(1, rel=0.1)
    slow = Scaled(200, 50, rate=0.01)
    assert slow(x).std().item() == pytest.approx(1, rel=0.1)
    assert slow.weight.std().item() == pytest.approx(100, rel=0.1)


def test_enlarging_is_a_filter_of_1_3_3_1():
    x = np.random.default_rng(0).random((8, 8))
    up = np.zeros((16, 16))
    up[::2, ::2] = x
    line = np.array([1, 3, 3, 1]) / 4
    expected = scipy.signal.convolve2d(up, np.outer(line, line))[1:-2, 1:-2]
    found = enlarged(torch.from_numpy(x)[None, None])[0, 0].numpy()
    np.testing.assert_allclose(found[2:-2, 2:-2], expected[2:-2, 2:-2])


def test_path_lengths_are_those_of_the_jacobian():
    generator = StyleGenerator(1, 8, 3, 2, 4, 1).double()
    codes = torch.randn(2, generator.layers, 3, dtype=torch.double, requires_grad=True)
    y = torch.randn(2, 1, 8, 8, dtype=torch.double)
    found = path_lengths(generator, codes, y)
    for i in range(2):
        jacobian = torch.autograd.functional.jacobian(
            lambda c: generator(c[None])[0].flatten(), codes[i].detach()
        )
        product = torch.einsum("pld,p->ld", jacobian, y[i].flatten()) / 8
        expected = product.square().sum(1).mean().sqrt()
        torch.testing.assert_close(found[i].detach(), expected)


def test_styles_are_mixed_at_a_layer():
    a, b = torch.zeros(3, 2), torch.ones(3, 2)
    found = mixed(a, b, 5, torch.tensor([1, 3, 5]))
    assert found[..., 0].sum(1).tolist() == [4, 2, 0]
    assert (found.diff(dim=1) >= 0).all()


def test_the_gradient_penalty_against_finite_differences():
    method = small().double()
    x, step = torch.rand(2, 1, 32, 32, dtype=torch.double), 1e-5
    direction = torch.randn_like(x)
    with torch.enable_grad():
        y = x.clone().requires_grad_()
        (slope,) = torch.autograd.grad(method.critic(y).sum(), y)
    with torch.no_grad():
        rise = method.critic(x + step * direction).sum() - method.critic(x - step * direction).sum()
    torch.testing.assert_close((slope * direction).sum(), rise / (2 * step), rtol=1e-4, atol=1e-8)
    expected = slope.square().flatten(1).sum(1).mean()
    torch.testing.assert_close(method.slope(x).detach(), expected)


@pytest.mark.parametrize("own", [False, True])
def test_retrieval_goes_from_coarse_to_fine(own):
    bank = torch.randn(9, 4, 3)
    asked = bank if own else torch.randn(5, 4, 3)
    repository = Repository(4, 3, Retrieval(coarse=5, kept=2, quantile=0.9, swap=1.0))
    repository.codes = bank
    found = repository.nearest(asked, own)
    for i, code in enumerate(asked):
        d = ((code - bank) ** 2).mean(2).numpy()
        order = [j for j in np.argsort(d[:, :2].mean(1)) if not (own and i == j)][:5]
        best = sorted(order, key=lambda j: d[j].mean())[:2]
        far = np.array([d[j].mean() for j in best])
        share = np.exp(-far / far.mean())
        expected = np.einsum("k,kld->ld", share / share.sum(), bank[best].numpy())
        np.testing.assert_allclose(found[i].numpy(), expected, atol=1e-5)


def test_only_layers_that_are_far_are_swapped():
    repository = Repository(4, 3, Retrieval(8, 2, 1.0, 1.0))
    bank = 0.1 * torch.randn(12, 4, 3)
    repository.fill(bank)
    assert (repository.limits > 0).all() and repository.limits.max() < 0.5
    repository.limits = torch.ones(4)
    assert torch.equal(repository.swapped(bank), bank)
    odd = bank[:1].clone()
    odd[:, 3] += 5
    found = repository.swapped(odd)
    assert torch.equal(found[:, :3], odd[:, :3])
    assert found[:, 3].abs().max() < 1


def test_the_critic_sees_how_a_batch_varies():
    critic = StyleCritic(1, 16, 1, 2, 8, spread=True)
    x = torch.rand(1, 1, 16, 16)
    alone, twice = critic(x), critic(x.expand(3, -1, -1, -1))
    torch.testing.assert_close(alone.expand(3, -1), twice)
    assert not torch.allclose(critic(torch.cat([x, torch.rand(2, 1, 16, 16)]))[:1], alone)


def test_an_encoder_begins_at_the_mean_code():
    method = small()
    method.centre.fill_(0.3)
    codes, offsets = method.encoded(torch.rand(2, 1, 32, 32))
    assert (offsets == 0).all() and (codes == 0.3).all()
    image = torch.rand(2, 1, 32, 32)
    batch = Batch(image, torch.ones_like(image).bool(), Rng([1, 2]), torch.zeros(2))
    method.train()
    before = method.centre.clone()
    terms = method.loss(batch, "generate", "generator")
    assert not torch.equal(method.centre, before)
    assert terms["adversarial"] >= 0 and math.isfinite(float(terms["adversarial"].detach()))
