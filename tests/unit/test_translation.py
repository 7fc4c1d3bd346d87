import numpy as np
import pytest
import scipy.ndimage
import scipy.stats
import torch
from tests.support.batches import batch
from torch import nn
from torch.nn import functional as F

from normscan.errors import ArgumentError
from normscan.methods.adversarial.branched import descargan, spanned
from normscan.methods.adversarial.cycles import cyclegan_ad, falling, judged
from normscan.methods.adversarial.paired import metaad
from normscan.methods.adversarial.simulated import steganomaly
from normscan.networks.cyclegan import PatchJudge, Pool, Residual, ResidualTranslator
from normscan.networks.descargan import BranchedCritic, BranchedTranslator
from normscan.networks.norms import OwnNorm2d
from normscan.networks.spectral import SpectralUNet
from normscan.rng import Rng
from normscan.synthesis.noise import poisson, raised

pytestmark = pytest.mark.usefixtures("seed")


def test_a_pool_takes_in_what_comes_and_then_exchanges_half():
    """Beside a plain list that does the same one by one."""
    pool, kept, given = Pool((1, 2, 2), room=3), [], []
    chance = torch.rand(10, 2)
    new = torch.rand(10, 1, 2, 2)
    for image, (exchange, place) in zip(new, chance.tolist(), strict=True):
        if len(kept) < 3:
            kept.append(image)
        elif exchange > 0.5:
            kept[int(3 * place)], image = image, kept[int(3 * place)]
        given.append(image)
    found = torch.cat([pool(new[:4], chance[:4]), pool(new[4:], chance[4:])])
    assert torch.equal(found, torch.stack(given))
    assert torch.equal(pool.images, torch.stack(kept)) and not torch.equal(found, new)


def test_the_rate_stays_and_then_falls_to_zero():
    optimizer = torch.optim.SGD([nn.Parameter(torch.zeros(1))], lr=1.0)
    theirs = torch.optim.lr_scheduler.SequentialLR(
        optimizer,
        [
            torch.optim.lr_scheduler.ConstantLR(optimizer, 1.0, 100),
            torch.optim.lr_scheduler.LinearLR(optimizer, 1.0, 0.0, 8),
        ],
        [2],
    )
    for step in range(10):
        assert falling(step, 10, 0.2) == pytest.approx(optimizer.param_groups[0]["lr"])
        optimizer.step()
        theirs.step()


def test_least_squares_of_a_judge():
    images = torch.rand(2, 1, 4, 4)
    torch.testing.assert_close(
        judged(nn.Identity(), images, 1.0), F.mse_loss(images, images * 0 + 1)
    )
    assert judged(nn.Identity(), images[:0], 1.0) == 0


def test_norms_of_single_images_are_batch_norms_of_batches_of_one():
    ours, theirs = OwnNorm2d(3), nn.BatchNorm2d(3, momentum=0.01)
    with torch.no_grad():
        for part in (ours, theirs):
            part.weight.copy_(torch.tensor([1.0, 2.0, 3.0]))
            part.bias.copy_(torch.tensor([0.1, 0.2, 0.3]))
    x = torch.randn(4, 3, 5, 5)
    torch.testing.assert_close(ours(x), theirs(x))
    alone = torch.cat([theirs(image[None]) for image in x])
    torch.testing.assert_close(ours.eval()(x), alone)


def test_mirrored_borders_are_reflections():
    block = Residual(2)
    conv = block.layers[0]
    x = torch.rand(1, 2, 6, 6)
    expected = F.conv2d(F.pad(x, (1, 1, 1, 1), mode="reflect"), conv.weight, conv.bias)
    torch.testing.assert_close(conv(x), expected)


@pytest.mark.parametrize("size", [16, 32])
def test_translators_keep_the_grid_and_the_range(size):
    x = torch.rand(2, 3, size, size)
    nets = [ResidualTranslator(3, 4, 1), SpectralUNet(2, 3, 3, 4, (1, 2), 1)]
    for net in nets:
        made = net(x)
        assert made.shape == x.shape and made.abs().max() <= 1
    cells = size // 4 - 2
    assert PatchJudge(3, 4, halvings=2)(x).shape == (2, 1, cells, cells)


def test_a_batch_without_a_domain_has_finite_terms():
    method = cyclegan_ad(size=32, width=4, blocks=1)
    some = batch(size=32, label=torch.zeros(4, dtype=torch.long))
    for player in ("translators", "judges"):
        terms = method.loss(some, "translate", player)
        assert all(torch.isfinite(v) for v in terms.values())
        sum(terms.values()).backward()
    with pytest.raises(ArgumentError, match="size=16"):
        cyclegan_ad(size=16)
    method = descargan(size=64, width=4, critic_width=2)
    some = batch(size=64, label=torch.ones(4, dtype=torch.long))
    for player in ("critic", "translator"):
        assert all(torch.isfinite(v) for v in method.loss(some, "translate", player).values())


def test_identical_translators_close_the_cycle():
    method = cyclegan_ad(size=32, width=4, blocks=1)
    method.translators = nn.ModuleList([nn.Identity(), nn.Identity()])
    terms = method.loss(
        batch(size=32, label=torch.tensor([0, 1, 1, 0])), "translate", "translators"
    )
    names = [name for name in terms if "cycle" in name or "identity" in name]
    assert len(names) == 4 and all(terms[name] == 0 for name in names)


def test_the_filter_is_a_gaussian_and_takes_what_is_hidden():
    """A chequerboard rides on the simulated image; what comes back has lost it."""
    method = steganomaly(size=32, width=4, blocks=1, sigma=1.5)
    x = torch.rand(2, 3, 32, 32)
    expected = np.stack(
        [[scipy.ndimage.gaussian_filter(c, 1.5) for c in image] for image in x.numpy()]
    )
    np.testing.assert_allclose(method.between(x, 1), expected, atol=1e-5)
    assert method.between(x, 0) is x
    hidden = 0.1 * torch.ones(1, 1, 32, 32)
    hidden[..., ::2, 1::2] = hidden[..., 1::2, ::2] = -0.1
    assert method.between(hidden, 1)[..., 8:-8, 8:-8].abs().max() < 1e-3


def test_planes_and_branches_tell_the_class():
    net = BranchedTranslator(1, 4)
    x = torch.rand(2, 1, 16, 16)
    assert not torch.equal(net(x, 0), net(x, 1))
    net(x, 1).sum().backward()
    assert all(p.grad is None for p in net.branches[0].parameters())
    assert all(p.grad is not None for p in net.branches[1].parameters())
    with pytest.raises(ArgumentError, match="size=100"):
        BranchedCritic(1, 100, 4)


def test_a_span_runs_from_minus_one_to_one():
    x = torch.rand(3, 1, 4, 4) * 5 - 2
    found = spanned(x).flatten(1)
    torch.testing.assert_close(found.amin(1), -torch.ones(3))
    torch.testing.assert_close(found.amax(1), torch.ones(3))
    assert torch.equal(spanned(torch.ones(1, 1, 2, 2)), -torch.ones(1, 1, 2, 2))


def test_poisson_numbers_have_scipys_distribution():
    drawn = poisson((20_000,), Rng(0)).numpy()
    expected = scipy.stats.poisson.pmf(np.arange(5), 1.0)
    found = np.bincount(drawn.astype(int), minlength=5)[:5] / len(drawn)
    np.testing.assert_allclose(found, expected, atol=0.01)


@pytest.mark.parametrize("dims", [2, 3])
def test_uptake_is_raised_in_a_box_away_from_the_border(dims):
    x = torch.zeros(3, 1, *[40] * dims)
    y = raised(x, Rng([1, 2, 3]))
    changed = y != 0
    assert y.min() >= 0 and all(c.any() for c in changed)
    for c in changed:
        where = c[0].nonzero()
        assert where.min() >= 8 and where.max() < 32
        assert (where.amax(0) - where.amin(0)).max() < 13
    assert torch.equal(raised(x[1:2], Rng([2])), y[1:2])


def test_terms_of_both_paths():
    """Where translators change nothing, the terms are the differences of the images."""
    method = metaad(dims=2, size=16, width=4, multipliers=(1, 2), blocks=1, cycle=2.0)
    method.translators = nn.ModuleList([nn.Identity(), nn.Identity()])
    some = batch(size=16, target=torch.rand(4, 1, 16, 16))
    terms = method.loss(some, "translate", "translators")
    apart = 2 * (some.image - some.target).abs().mean()
    torch.testing.assert_close(terms["paired from image"], apart)
    assert terms["cycle from image"] == 0 and terms["contrast from image"] == 2
    torch.testing.assert_close(terms["denoised from image"], terms["between from image"])
    assert terms["denoised from image"] > 0
