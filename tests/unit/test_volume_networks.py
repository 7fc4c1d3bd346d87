"""Networks and scores of the volume autoencoders, the study's codes, and vector quantisation."""

from __future__ import annotations

import functools

import numpy as np
import pytest
import torch
from torch import nn

from normscan import registry
from normscan.errors import ArgumentError
from normscan.methods.autoencoders.denoising import noise_field
from normscan.methods.autoencoders.volumes import NeonatalAutoencoder
from normscan.methods.base import Batch
from normscan.methods.diffusion.engine import coarse_field
from normscan.networks.quantised import QuantisedAutoencoder, VectorQuantiser
from normscan.networks.strided import StridedAutoencoder
from normscan.networks.volumes import PooledAutoencoder, StridedResidualAutoencoder
from normscan.rng import Rng
from normscan.synthesis.noise import coarse_noise


def create(name, **changes):
    card = registry.card(name)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return card.create(**card.arguments("tiny", **changes)).eval()


def batch(image, seed=5):
    foreground = torch.ones(image[:, :1].shape, dtype=torch.bool)
    return Batch(image, foreground, Rng(seed), torch.zeros(len(image)))


def widths(network):
    return [m.out_channels for m in network.modules() if isinstance(m, nn.Conv2d | nn.Conv3d)]


def grid_of(module, x):
    """Shape of what a module gives."""
    seen = []
    handle = module.register_forward_hook(lambda *a: seen.append(a[2].shape))
    x()
    handle.remove()
    return tuple(seen[0])


@pytest.mark.parametrize(("dims", "size"), [(2, 33), (3, 17)])
def test_residual_autoencoder_halves_four_times_and_keeps_any_size(dims, size):
    net = StridedResidualAutoencoder(dims, 2, 4)
    x = torch.rand(1, 2, *[size] * dims)
    code = grid_of(net.encoder, functools.partial(net, x))
    assert code == (1, 32, *[-(-size // 16)] * dims)
    assert net(x).shape == x.shape


def test_paper_sizes():
    net = StridedResidualAutoencoder()
    stages = list(net.encoder)
    assert [s.shortcut.out_channels for s in stages] == [32, 64, 128, 256]
    assert all(s.shortcut.stride == (2, 2, 2) for s in stages)
    pooled = PooledAutoencoder()
    assert widths(pooled.encoder) == [8, 16, 32, 64, 128]
    strided = StridedAutoencoder()
    assert widths(strided.encoder) == [32, 64, 128, 128, 128]
    assert [(m.in_features, m.out_features) for m in strided.code if isinstance(m, nn.Linear)] == [
        (8192, 128), (128, 8192),
    ]  # fmt: skip
    spatial = StridedAutoencoder(latent=2, spatial=True)
    x = torch.rand(2, 1, 256, 256)
    assert grid_of(spatial.code[0], lambda: spatial(x)) == (2, 2, 8, 8)
    assert spatial(x).shape == x.shape


def test_pooled_autoencoder_with_a_gaussian_code():
    net = PooledAutoencoder(3, 1, 20, width=2, levels=3, latent=5)
    x = torch.rand(2, 1, 20, 20, 20)
    mean, log_std = net.encode(x)
    assert mean.shape == log_std.shape == (2, 5)
    assert net(x).shape == x.shape
    (code,) = PooledAutoencoder(3, 1, 20, width=2, levels=3).encode(x)
    assert code.shape == (2, 8, 3, 3, 3)


# --- vector quantisation


def test_quantiser_takes_the_nearest_code_and_passes_gradients():
    torch.manual_seed(0)
    quantise = VectorQuantiser(3, 7).eval()
    z = torch.randn(2, 3, 4, 5, requires_grad=True)
    got, numbers, commitment = quantise(z)
    vectors = z.detach().movedim(1, -1).reshape(-1, 3)
    nearest = torch.cdist(vectors, quantise.codebook).argmin(1)
    assert torch.equal(numbers.reshape(-1), nearest)
    chosen = quantise.codebook[nearest].reshape(2, 4, 5, 3).movedim(-1, 1)
    torch.testing.assert_close(got.detach(), chosen)
    assert float(commitment.detach()) == pytest.approx(
        float((z.detach() - chosen).square().mean()), rel=1e-5
    )
    weight = torch.randn_like(z)
    (gradient,) = torch.autograd.grad((got * weight).sum(), z)
    torch.testing.assert_close(gradient, weight)


def test_codebook_follows_the_means_of_its_vectors():
    torch.manual_seed(0)
    quantise = VectorQuantiser(2, 3, decay=0.5, epsilon=0.0)
    quantise.codebook.copy_(torch.tensor([[0.0, 0.0], [10.0, 0.0], [0.0, 10.0]]))
    quantise.sums.copy_(quantise.codebook)
    quantise.counts.fill_(1.0)
    vectors = torch.tensor([[1.0, 0.0], [9.0, 1.0], [11.0, 1.0], [1.0, 9.0]])
    z = vectors.T[None, :, :, None]
    before = quantise.codebook.clone()
    quantise.eval()(z)
    assert torch.equal(quantise.codebook, before)
    quantise.train()(z)
    # counts: (1 + 1) / 2, (1 + 2) / 2, (1 + 1) / 2; sums: (old + sum of the vectors) / 2.
    expected = [[0.5, 0.0], [15.0 / 1.5, 1.0 / 1.5], [0.5, 9.5]]
    torch.testing.assert_close(quantise.codebook, torch.tensor(expected))


def test_quantised_autoencoder_has_two_grids_and_learns_an_image():
    torch.manual_seed(0)
    net = QuantisedAutoencoder(2, 1, width=16, blocks=1, length=8, codes=32)
    x = torch.rand(2, 1, 30, 26)
    shapes = {}
    for name in ("quantise_top", "quantise_bottom"):
        getattr(net, name).register_forward_hook(
            lambda _, __, out, name=name: shapes.update({name: tuple(out[1].shape)})
        )
    assert net(x).shape == x.shape
    assert shapes == {"quantise_top": (2, 4, 4), "quantise_bottom": (2, 8, 8)}
    x = torch.linspace(0, 1, 32).expand(1, 1, 32, 32)
    optimizer = torch.optim.Adam(net.parameters(), 3e-3)
    errors = []
    for _ in range(60):
        restored, commitment = net.restore(x)
        error = (restored - x).abs().mean()
        errors.append(float(error.detach()))
        optimizer.zero_grad()
        (error + 0.25 * commitment).backward()
        optimizer.step()
    assert errors[-1] < 0.3 * errors[0]


@pytest.mark.parametrize("code", ["dense", "spatial", "quantised"])
def test_pitfalls_trains_with_adamw_on_the_absolute_error(code):
    method = create("residual_pitfalls", code=code)
    b = batch(torch.rand(2, 1, 32, 32))
    (phase,) = method.phases()
    (player,) = phase.players
    optimizer = player.optimizer(player.parameters())
    assert isinstance(optimizer, torch.optim.AdamW)
    assert optimizer.param_groups[0]["weight_decay"] == 2e-2
    terms = method.loss(b, phase.name, player.name)
    expected = (method.network(b.image) - b.image).abs().mean()
    torch.testing.assert_close(terms["l1"], expected)
    assert ("commitment" in terms) == (code == "quantised")
    if code == "quantised":
        torch.testing.assert_close(terms["commitment"], 0.25 * method.network.restore(b.image)[1])


# --- the newborns' score


class Half(nn.Module):
    """Restores half of every image."""

    dims = 3

    def forward(self, x):
        return x / 2


def neonatal(bright=None, tiles=2):
    training = {"lr": 1e-3, "batch_size": 1}
    return NeonatalAutoencoder(Half(), 1.0, bright, 0.1, tiles, training).eval()


def test_bright_fluid_is_left_out_by_the_image():
    x = torch.rand(2, 1, 4, 4, 3)
    got = neonatal(bright=0.6).maps(batch(x)).map
    torch.testing.assert_close(got, torch.where(x <= 0.6, x / 2, 0) / 0.1)


def test_score_is_in_deviations_of_each_tile_and_slice():
    method = neonatal()
    healthy = torch.rand(5, 1, 8, 8, 3) * torch.rand(1, 1, 1, 1, 3)
    method.fit(iter([batch(healthy[:3]), batch(healthy[3:])]))
    x = batch(torch.rand(2, 1, 8, 8, 3))
    x.foreground[:, :, :2] = False
    expected = np.zeros(2)
    for i in range(0, 8, 4):
        for j in range(0, 8, 4):
            for k in range(3):
                d = healthy[:, 0, i : i + 4, j : j + 4, k].numpy() / 2
                mean, std = d.mean(dtype=np.float64), max(d.std(dtype=np.float64), 0.01)
                own = x.image[:, 0, i : i + 4, j : j + 4, k].numpy() / 2
                inside = x.foreground[:, 0, i : i + 4, j : j + 4, k].numpy()
                expected += (np.abs((own - mean) / std) * inside).sum((1, 2))
    np.testing.assert_allclose(method.maps(x).score, expected, rtol=1e-4)


def test_variational_loss_counts_the_divergence_per_voxel():
    method = create("neonatal_ae", dims=2, variational=True, latent=6)
    b = batch(torch.rand(3, 1, 32, 32))
    terms = method.loss(b, "reconstruct", "network")
    mean, log_std = method.network.encode(b.image)
    normal = torch.distributions.Normal
    kl = torch.distributions.kl_divergence(
        normal(mean, log_std.exp()), normal(torch.zeros(()), torch.ones(()))
    )
    torch.testing.assert_close(terms["kl"], kl.sum(1).mean() / 1024)
    assert set(create("neonatal_ae", dims=2).loss(b, "reconstruct", "network")) == {"l2"}


# --- noises


def test_noise_kinds():
    shape = (4, 2, 32, 24)
    coarse = noise_field("coarse", shape, Rng(3), 0.2, 8)
    assert torch.equal(coarse, coarse_noise(shape, Rng(3), 0.2, 8))
    pixel = noise_field("pixel", shape, Rng(3), 0.2, 8)
    assert torch.equal(pixel, 0.2 * Rng(3).normal(shape))
    simplex = noise_field("simplex", shape, Rng(3), 0.2, 8)
    assert simplex.shape == shape
    torch.testing.assert_close(simplex.flatten(1).std(1), torch.full((4,), 0.2))
    torch.testing.assert_close(simplex.flatten(1).mean(1), torch.zeros(4), atol=1e-6, rtol=0)
    # Neighbours agree in coarse and in simplex noise, not in pixel noise.
    along = [
        float(np.corrcoef(n[..., 1:].flatten(), n[..., :-1].flatten())[0, 1])
        for n in (coarse, pixel, simplex)
    ]
    assert along[0] > 0.7 and abs(along[1]) < 0.1 and along[2] > 0.4


def test_simplex_noise_is_refused_in_volumes():
    with pytest.raises(ArgumentError, match="simplex"):
        create("dae", dims=3, noise="simplex")


def test_coarse_diffusion_noise_of_a_sample_is_its_own():
    t = torch.zeros(3)
    three = coarse_field((3, 1, 32, 32), Rng([4, 5, 6]), t, 8)
    one = coarse_field((1, 1, 32, 32), Rng([5]), t[:1], 8)
    assert torch.equal(three[1:2], one)
    assert float(three.std()) == pytest.approx(0.67, abs=0.15)


def test_anoddpm_learns_coarse_noise():
    method = create("anoddpm", noise="coarse", noise_resolution=4)
    b = batch(torch.rand(2, 1, 32, 32), seed=[1, 2])
    t = torch.tensor([3, 3])
    noise = method.noise(b.image, t, b)
    fresh = Batch(b.image, b.foreground, Rng([1, 2]), b.position)
    assert torch.equal(noise, coarse_field(b.image.shape, fresh.rng, t, 4))
    assert torch.isfinite(method.loss(b, "diffuse", "network")["noise"])
