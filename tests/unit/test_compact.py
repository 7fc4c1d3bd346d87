"""The formulas of the compact autoencoders: memory, uncertainty, elbow, constraint, spatial code."""

from __future__ import annotations

import math

import pytest
import torch
from torch import nn
from torch.distributions import Categorical, Normal

from normscan.errors import ArgumentError
from normscan.methods.autoencoders.compact import latent_elbow, split_uncertainty
from normscan.methods.base import Batch
from normscan.networks.autoencoder import BaurAutoencoder, Code, CompactAutoencoder, Levels
from normscan.networks.memory import Memory, MemoryAutoencoder, attention_entropy
from normscan.networks.norms import kept_statistics
from normscan.objectives.losses import heteroscedastic
from normscan.registry import card
from normscan.rng import Rng
from normscan.scores.residuals import normalised_squared

SMALL = {"size": 16, "hidden": 8, "width": 4, "latent": 5}


def batch(n=4, size=16, channels=1):
    image = torch.rand(n, channels, size, size, generator=torch.Generator().manual_seed(1))
    return Batch(image, torch.ones(n, 1, size, size) > 0, Rng(0), torch.zeros(n))


# --- networks


def test_spatial_codes_have_the_sizes_of_the_cards():
    baur = BaurAutoencoder(2, 1, 128, Code(head="spatial"))
    assert baur.encode(torch.rand(1, 1, 128, 128))[0].shape == (1, 128, 8, 8)
    assert [type(m) for m in baur.decoder[:2]] == [nn.BatchNorm2d, nn.ReLU]
    assert not any(isinstance(m, nn.Linear) for m in baur.modules())
    assert [m.p for m in baur.modules() if isinstance(m, nn.Dropout)] == [0.2]
    cai = CompactAutoencoder(2, 1, 64, Code(16, head="spatial"))
    assert cai.encode(torch.rand(1, 1, 64, 64))[0].shape == (1, 16, 4, 4)
    points = [m for m in cai.modules() if isinstance(m, nn.Conv2d) and m.kernel_size == (1, 1)]
    ends = [(m.in_channels, m.out_channels, m.bias) for m in points]
    assert ends == [(64, 1024, None), (1024, 16, None), (16, 1024, None), (1024, 64, None)]
    assert cai(torch.rand(2, 1, 64, 64)).shape == (2, 1, 64, 64)


def test_dropout_on_the_spatial_code_is_off_at_test():
    net = BaurAutoencoder(2, 1, 16, Code(head="spatial"), Levels(4), dropout=0.5)
    x = torch.rand(2, 1, 16, 16)
    assert (net.encode(x)[0] == 0).float().mean() > 0.3
    net.eval()
    assert torch.equal(net(x), net(x)) and not (net.encode(x)[0] == 0).any()


def test_constrained_bottleneck_is_16_by_16():
    method = card("constrained_ae").create(size=128)
    assert method.network.encoder(torch.rand(1, 1, 128, 128)).shape == (1, 16 * 16 * 16)
    assert method.network.encode(torch.rand(1, 1, 128, 128))[0].shape == (1, 1024)


# --- constraint


def test_second_encoding_and_the_running_statistics():
    """The release runs the restoration through encoder and first decoder layers, in training."""
    method = card("constrained_ae_compact").create(size=16, width=4, hidden=8, latent=5)
    twin = CompactAutoencoder(2, 1, 16, Code(5), width=4, hidden=8)
    twin.load_state_dict(method.network.state_dict())
    x = 2 * batch().image - 1
    terms = method.loss(batch(), "", "")
    restored = twin(x)
    z = twin.encode(x)[0]
    twin.load_state_dict(method.network.state_dict())
    torch.testing.assert_close(terms["l2"], (x - restored).square().mean())
    torch.testing.assert_close(terms["code"], (z - twin.encode(restored)[0]).square().mean())
    counts = [m.num_batches_tracked.item() for m in method.modules() if hasattr(m, "running_mean")]
    encoder = 3  # Two convolutions and the hidden layer.
    assert counts == [2] * (encoder + 1) + [1] * (len(counts) - encoder - 1)


def test_second_encoding_of_the_other_form_leaves_the_statistics():
    method = card("constrained_ae").create(size=32, width=8, latent=5)
    method.loss(batch(size=32), "", "")
    counts = [m.num_batches_tracked.item() for m in method.modules() if hasattr(m, "running_mean")]
    assert set(counts) == {1}


def test_the_constraint_has_gradients_through_both_codes():
    method = card("constrained_ae_compact").create(size=16, width=4, hidden=8, latent=5)
    codes = []
    encode = method.network.encode

    def kept(x):
        codes.append(encode(x)[0])
        codes[-1].retain_grad()
        return [codes[-1]]

    method.network.encode = kept
    method.loss(batch(), "", "")["code"].backward()
    assert all(z.grad is not None and z.grad.abs().sum() > 0 for z in codes)


def test_kept_statistics_normalises_by_the_batch_and_ends():
    norm = nn.BatchNorm1d(3)
    x = torch.randn(8, 3) * 4 + 2
    with kept_statistics(norm):
        torch.testing.assert_close(norm(x).mean(0), torch.zeros(3), atol=1e-5, rtol=0)
    assert not norm.running_mean.any() and norm.num_batches_tracked == 0
    norm.eval()
    with kept_statistics(norm):  # At test the stored ones are used, as ever.
        torch.testing.assert_close(norm(x), x / math.sqrt(1 + norm.eps))
    norm.train()
    with kept_statistics(norm, by="running"):
        torch.testing.assert_close(norm(x), x / math.sqrt(1 + norm.eps))
    assert norm.training and not norm.running_mean.any()
    norm(x)
    assert norm.running_mean.all()


# --- memory


@pytest.mark.parametrize("shrink", [0.0, 0.15])
def test_memory_by_hand(shrink):
    memory = Memory(6, 4, shrink)
    assert memory.slots.abs().max() <= 0.5
    with torch.no_grad():
        memory.slots.mul_(4)
    z = torch.randn(3, 4, generator=torch.Generator().manual_seed(0))
    mixture, attention = memory(z)
    slots = memory.slots.tolist()
    for b, code in enumerate(z.tolist()):
        weights = [math.exp(sum(c * s for c, s in zip(code, m, strict=True))) for m in slots]
        weights = [w / sum(weights) for w in weights]
        weights = [w if w > shrink else 0.0 for w in weights]
        weights = [w / sum(weights) for w in weights]
        assert attention[b].tolist() == pytest.approx(weights, abs=1e-5)
        mixed = [sum(w * m[k] for w, m in zip(weights, slots, strict=True)) for k in range(4)]
        assert mixture[b].tolist() == pytest.approx(mixed, abs=1e-5)
    assert (attention == 0).any() == (shrink > 0)


def test_entropy_against_torch():
    attention = torch.rand(5, 7).softmax(-1)
    expected = Categorical(probs=attention).entropy().mean()
    torch.testing.assert_close(attention_entropy(attention), expected)
    assert attention_entropy(torch.eye(3)).item() == pytest.approx(0, abs=1e-6)


def test_memory_stands_between_encoder_and_decoder():
    coder = CompactAutoencoder(2, 1, 16, Code(5), width=4, hidden=8).eval()
    net = MemoryAutoencoder(coder, Memory(1, 5, 0.0))
    x = torch.rand(3, 1, 16, 16)
    # One slot: every image gets the same code.
    torch.testing.assert_close(net(x), coder.decode(net.memory.slots).expand(3, -1, -1, -1))


def test_memory_loss_has_the_weighted_entropy():
    method = card("memae").create(**SMALL).eval()
    x = 2 * batch().image - 1
    restored, attention = method.network.restore(x)
    terms = method.loss(batch(), "", "")
    torch.testing.assert_close(terms["l2"], (restored - x).square().mean())
    torch.testing.assert_close(terms["entropy"], 2e-4 * attention_entropy(attention))


# --- uncertainty


def test_heteroscedastic_loss_against_torch():
    x, mean, log_variance = torch.randn(3, 50)
    density = Normal(mean, (log_variance / 2).exp()).log_prob(x)
    expected = -2 * density - math.log(2 * math.pi)
    torch.testing.assert_close(heteroscedastic(x, mean, log_variance), expected)


def test_normalised_residual_has_no_log_variance_term():
    x, restored = torch.zeros(1, 2, 1, 2), torch.tensor([[[[2.0, 2.0]], [[4.0, 0.0]]]])
    log_variance = torch.log(torch.tensor([[[[1.0, 4.0]], [[2.0, 7.0]]]]))
    got = normalised_squared(x, restored, log_variance)
    torch.testing.assert_close(got, torch.tensor([[[[(4 + 8) / 2, 1 / 2]]]]))


def test_log_variance_is_cut():
    output = torch.tensor([1e4, -1e4, 3.0, 40.0, -40.0, 0.5]).reshape(1, 6, 1, 1)
    restored, log_variance = split_uncertainty(output)
    assert restored.flatten().tolist() == [1e4, -1e4, 3.0]
    assert log_variance.flatten().tolist() == [10, -10, 0.5]


def test_uncertainty_maps():
    method = card("ae_u").create(channels=3, **SMALL).eval()
    given = batch(channels=3)
    with torch.no_grad():
        x = 2 * given.image - 1
        out = method.network(x)
    maps = method.maps(given)
    assert out.shape[1] == 6
    restored, s = out[:, :3], out[:, 3:].clamp(-10, 10)
    expected = ((x - restored) ** 2 / s.exp()).mean(1, keepdim=True)
    torch.testing.assert_close(maps.map, expected)
    torch.testing.assert_close(maps.uncertainty, s.exp().mean(1, keepdim=True))
    torch.testing.assert_close(maps.reconstruction, (restored + 1) / 2)


# --- structural similarity


def test_clamping_takes_the_gradient_and_only_code_does_it_in_training():
    for preset, learns in (("paper", True), ("code", False)):
        method = card("ae_ssim").create(
            **{**card("ae_ssim").arguments(preset), **SMALL, "window": 5}
        )
        restored = torch.full((4, 1, 16, 16), 3.0, requires_grad=True)
        terms = method._loss(restored, method.scaled(batch()))
        terms["ssim"].backward()
        assert bool(restored.grad.any()) == learns
        map = method._residual(2 * batch().image - 1, torch.full((4, 1, 16, 16), 3.0))
        capped = method._residual(2 * batch().image - 1, torch.ones(4, 1, 16, 16))
        torch.testing.assert_close(map, capped)


# --- length of the code


def test_elbow_of_a_broken_line():
    # Falls by 3 per doubling up to 8 and by 0.1 after it.
    errors = {2**k: 20 - 3 * min(k, 3) - 0.1 * max(k - 3, 0) for k in range(8)}
    assert latent_elbow(errors) == 8
    assert latent_elbow({k: 5 * e + 7 for k, e in reversed(errors.items())}) == 8


def test_elbow_of_an_exponential():
    # exp(-a t) over its chord, t = log d: the slope of the curve is that of the chord.
    lengths = list(range(1, 101))
    errors = {n: n**-1.5 for n in lengths}
    slope = (errors[100] - 1) / math.log(100)
    expected = math.exp(math.log(1.5 / -slope) / 1.5)
    assert abs(latent_elbow(errors) - expected) <= 0.5


def test_a_straight_line_has_no_elbow_and_two_points_are_too_few():
    assert latent_elbow({1: 3.0, 2: 2.0, 4: 1.0}) == 1
    with pytest.raises(ArgumentError, match="at least three"):
        latent_elbow({1: 3.0, 2: 2.0})
    with pytest.raises(ArgumentError, match="from 1 on"):
        latent_elbow({0: 3.0, 2: 2.0, 4: 1.0})
