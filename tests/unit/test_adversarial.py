import pytest
import torch
from tests.support.batches import batch
from torch import nn

from normscan.errors import ArgumentError
from normscan.methods.adversarial.encoded import answered, ganomaly
from normscan.methods.adversarial.search import anogan
from normscan.methods.adversarial.translation import fixed_point_gan
from normscan.methods.adversarial.variational import ano_vae_gan
from normscan.networks.autoencoder import PlaneNorm
from normscan.networks.dcgan import Judge, Maker, initialise
from normscan.objectives.descent import searched
from normscan.objectives.losses import gradient_penalty
from normscan.rng import Rng

pytestmark = pytest.mark.usefixtures("seed")


@pytest.mark.parametrize("kernel", [4, 5])
@pytest.mark.parametrize("size", [16, 32])
def test_makers_and_judges_fit_each_other(kernel, size):
    made = Maker(2, 3, size, 10, 4, kernel)(torch.randn(2, 10))
    assert made.shape == (2, 3, size, size) and made.abs().max() <= 1
    judge = Judge(2, 3, size, 7, 4, kernel)
    assert judge.features(made).shape[2:] == (4, 4) and judge(made).shape == (2, 7)
    with pytest.raises(ArgumentError, match="size=24"):
        Judge(2, 3, 24, 1, 4)


def test_initial_weights_have_the_deviation_of_the_article():
    judge = Judge(2, 1, 32, 1, 32)
    initialise(judge)
    convs = torch.cat([m.weight.flatten() for m in judge.modules() if isinstance(m, nn.Conv2d)])
    assert convs.std().item() == pytest.approx(0.02, rel=0.02)
    norms = [m for m in judge.modules() if isinstance(m, nn.BatchNorm2d)]
    assert all((m.weight - 1).abs().max() < 0.1 and m.bias.abs().max() == 0 for m in norms)


@pytest.mark.parametrize("axis", [None, 2])
def test_gradient_penalty_against_finite_differences(axis):
    critic = nn.Sequential(nn.Conv2d(1, 2, 3), nn.Tanh(), nn.Flatten(), nn.Linear(8, 1)).double()
    real, fake = torch.rand(2, 3, 1, 4, 4, dtype=torch.double)
    mix = torch.tensor([0.2, 0.5, 0.9], dtype=torch.double)
    found = gradient_penalty(critic, real, fake, mix, axis)
    share = mix.reshape(-1, 1, 1, 1)
    between, step = (1 - share) * real + share * fake, 1e-6
    slope = torch.zeros_like(between)
    for i in range(between[0].numel()):
        moved = torch.zeros_like(between).flatten(1)
        moved[:, i] = step
        moved = moved.reshape(between.shape)
        with torch.no_grad():
            rise = critic(between + moved) - critic(between - moved)
        slope.flatten(1)[:, i] = rise[:, 0] / (2 * step)
    norm = slope.flatten(1).norm(dim=1) if axis is None else slope.norm(dim=axis)
    torch.testing.assert_close(found, (norm - 1).square().mean(), atol=1e-6, rtol=1e-6)


def test_the_search_ends_lower_and_each_code_goes_its_own_way():
    aim = torch.randn(3, 4)
    error = lambda z: (z - aim).square().sum(1)  # noqa: E731
    begin = torch.zeros(3, 4)
    adam = lambda p: torch.optim.Adam(p, lr=0.05)  # noqa: E731
    found = searched(error, begin, 30, adam)
    assert (error(found) < error(begin)).all()
    alone = searched(lambda z: (z - aim[1]).square().sum(1), begin[1:2], 30, adam)
    torch.testing.assert_close(found[1:2], alone)


def test_anogan_searches_its_own_error_down():
    method = anogan(size=16, width=4, latent=8, updates=30, search_lr=0.05).eval()
    few = anogan(size=16, width=4, latent=8, updates=0).eval()
    few.load_state_dict(method.state_dict())
    some = batch(size=16)
    some.rng = Rng([1, 2, 3, 4])
    before = few.maps(some).score
    some.rng = Rng([1, 2, 3, 4])
    assert (method.maps(some).score < before).all()


def test_a_discriminator_that_has_won_begins_anew():
    method = ganomaly(size=16, width=4, latent=8).train()
    before = method.discriminator.last[0].weight.clone()
    method.loss(batch(size=16), "game", "discriminator")
    assert torch.equal(method.discriminator.last[0].weight, before)
    method.won.fill_(True)
    method.loss(batch(size=16), "game", "discriminator")
    assert not torch.equal(method.discriminator.last[0].weight, before) and not method.won


def test_answers_are_cross_entropies():
    logits = torch.randn(5)
    expected = -torch.log(torch.sigmoid(logits)).mean()
    torch.testing.assert_close(answered(logits, 1.0), expected)
    torch.testing.assert_close(answered(-logits, 0.0), expected)


def test_what_adds_nothing_leaves_images_at_their_fixed_point():
    """Where nothing is added, moving and moving back are tanh and tanh of it."""
    method = fixed_point_gan(size=16, width=4, blocks=1, halvings=2)
    nn.init.zeros_(method.translator.layers[-1].weight)
    some = batch(size=16, label=torch.tensor([0, 1, 1, 0]))
    terms = method.loss(some, "translate", "translator")
    x = 2 * some.image - 1
    fixed = (torch.tanh(x) - x).abs().mean()
    torch.testing.assert_close(terms["identity"], 0.1 * fixed)
    torch.testing.assert_close(terms["cycle"], 20 * (torch.tanh(torch.tanh(x)) - x).abs().mean())


def test_plane_norm_is_that_of_each_channel():
    x = torch.randn(2, 3, 4, 4)
    flat = x.flatten(2)
    mean, variance = flat.mean(2, keepdim=True), flat.var(2, unbiased=False, keepdim=True)
    expected = ((flat - mean) / (variance + 1e-3).sqrt()).reshape(x.shape)
    torch.testing.assert_close(PlaneNorm(2, 4)(x), expected, atol=1e-5, rtol=1e-5)


def test_anovaegan_has_a_code_with_places_and_stops_by_its_error_alone():
    method = ano_vae_gan(size=32, smallest=8, width=4, latent=6).eval()
    some = batch(2, 32)
    mean, spread = method.encode(some.image)
    assert mean.shape == spread.shape == (2, 6, 8, 8)
    with torch.no_grad():
        assert set(method.loss(some, "game", "autoencoder")) == {"l1"}
        assert method.loss(some, "game", "critic") == {}
