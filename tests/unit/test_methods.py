"""What the methods put together: corruption, losses, maps and scores by hand."""

from __future__ import annotations

import functools

import numpy as np
import pytest
import torch
from skimage.exposure import equalize_hist
from torch import nn
from torch.nn import functional as F

from normscan import registry
from normscan.methods.autoencoders.denoising import cosine_cycle
from normscan.methods.base import Batch
from normscan.methods.diffusion.engine import PartialDiffusion, Process, diffusion_phase
from normscan.methods.diffusion.partial import adm_unet
from normscan.methods.reconstruction import absolute, positive, squared
from normscan.networks.diffusion import DiffusionSchedule, linear_betas
from normscan.rng import Rng
from normscan.synthesis.noise import coarse_noise, simplex_noise


def create(name, **changes):
    card = registry.card(name)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return card.create(**card.arguments("tiny", **changes)).eval()


def batch(n=3, size=32, channels=1, dims=2, seed=5):
    generator = torch.Generator().manual_seed(1)
    image = torch.rand(n, channels, *[size] * dims, generator=generator)
    foreground = torch.rand(n, 1, *[size] * dims, generator=generator) > 0.3
    return Batch(image, foreground, Rng(seed), torch.zeros(n))


def test_residuals_average_the_channels():
    x, y = torch.rand(2, 3, 4, 4), torch.rand(2, 3, 4, 4)
    np.testing.assert_allclose(absolute(x, y), np.abs(x - y).mean(1, keepdims=True), rtol=1e-5)
    np.testing.assert_allclose(squared(x, y), ((x - y) ** 2).mean(1, keepdims=True), rtol=1e-5)


# --- denoising autoencoder


class Seen(nn.Module):
    """Keeps what it is given and returns a fixed answer."""

    def __init__(self, answer=None):
        super().__init__()
        self.answer = answer

    def forward(self, x, *_):
        self.x = x
        return x if self.answer is None else self.answer


def test_dae_adds_noise_inside_the_foreground_and_the_loss_counts_it():
    method, b = create("dae", channels=2), batch(channels=2)
    method.network = Seen()
    loss = method.loss(b, "denoise", "network")
    noise = coarse_noise(b.image.shape, Rng(5), 0.2, 8) * b.foreground
    assert noise.abs().max() > 0.1
    torch.testing.assert_close(method.network.x, b.image + noise)
    # Masked, yet divided by all pixels.
    torch.testing.assert_close(loss["l2"], (noise**2).sum() / b.image.numel())


def test_dae_adds_no_noise_at_test():
    method, b = create("dae"), batch()
    method.network = Seen(torch.full_like(b.image, 0.25))
    maps = method.maps(b)
    assert torch.equal(method.network.x, b.image)
    # The loss never sees what lies outside the foreground, so neither does the map.
    torch.testing.assert_close(maps.map, (b.image - 0.25).abs() * b.foreground)


def test_dae_trains_as_on_its_card():
    card = registry.card("dae")
    method = card.create(**card.arguments("paper", width=2))
    (phase,) = method.phases()
    (player,) = phase.players
    optimizer = player.optimizer(player.parameters())
    options = optimizer.param_groups[0]
    assert (phase.steps, phase.batch_size, phase.keep) == (67_200, 16, "best")
    assert (options["lr"], options["weight_decay"], options["amsgrad"]) == (1e-4, 1e-5, True)
    assert card.postprocess == ("inner=5", "median_inplane=5")


def test_cosine_cycle_against_torch():
    parameter = nn.Parameter(torch.zeros(1))
    optimizer = torch.optim.SGD([parameter], lr=1.0)
    scheduler = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, T_max=100)
    for epoch in range(350):
        assert cosine_cycle(32 * epoch + 7, 0) == pytest.approx(
            scheduler.get_last_lr()[0], abs=1e-9
        )
        optimizer.step()
        scheduler.step()


# --- autoencoders


def test_ae_sums_the_absolute_error_of_an_image():
    method, b = create("ae_dense"), batch()
    restored = method.network(b.image).detach()
    error = sum(np.abs(x - y).sum() for x, y in zip(b.image.numpy(), restored.numpy(), strict=True))
    loss = method.loss(b, "reconstruct", "network")
    assert loss["l1"].item() == pytest.approx(error / 3, rel=1e-4)
    brighter = np.maximum(b.image - restored, 0)
    np.testing.assert_allclose(method.maps(b).map, brighter, atol=1e-6)


def test_ae_of_medianomaly_averages_the_squared_error():
    """Of images in -1..1; the restoration comes back in 0..1."""
    method, b = create("ae4ad"), batch()
    x = 2 * b.image - 1
    restored = method.network(x).detach()
    loss = method.loss(b, "reconstruct", "network")
    torch.testing.assert_close(loss["l2"], F.mse_loss(restored, x))
    maps = method.maps(b)
    np.testing.assert_allclose(maps.map, (x - restored) ** 2, atol=1e-6)
    torch.testing.assert_close(maps.reconstruction, (restored + 1) / 2)


@pytest.mark.parametrize("name", ["ae_dense", "vae"])
def test_baurs_schedule(name):
    card = registry.card(name)
    method = card.create(**card.arguments("paper", width=2))
    (phase,) = method.phases()
    options = phase.players[0].optimizer(phase.players[0].parameters()).param_groups[0]
    assert (options["lr"], options["betas"]) == (1e-4, (0.5, 0.999))
    assert (phase.epochs, phase.batch_size, phase.patience) == (1000, 8, 5)
    assert card.postprocess == ("erode=12", "median=5")
    assert card.preprocess == {
        "scaling": "percentile", "percentile": 99.8, "over": "image", "limit": 1.0, "crop": "none",
        "fit": "stretch",
    }  # fmt: skip


@pytest.mark.parametrize("name", ["ae_dense", "ae_spatial", "constrained_ae", "vae"])
def test_code_of_the_comparative_study(name):
    """Norms that never normalise, the last weights, no dropout behind the plain decoder's layer."""
    card = registry.card(name)
    method = card.create(**card.arguments("code", width=4))
    assert not any(isinstance(m, nn.BatchNorm2d) for m in method.modules())
    assert method.phases()[0].keep == "last"
    rates = [m.p for m in method.network.decoder if isinstance(m, nn.Dropout)]
    assert rates == {"ae_dense": [0.0], "ae_spatial": []}.get(name, [card.defaults["dropout"]])
    x, darker = torch.ones(1, 1, 2, 2), torch.full((1, 1, 2, 2), 1.5)
    assert not method._residual(x, darker).any() and method._residual is positive


# --- variational autoencoder


@pytest.mark.parametrize("name", ["vae", "vae_compact"])
def test_vae_loss_by_hand(name):
    method, b = create(name, kl_weight=0.3), batch()
    x = b.image if name == "vae" else 2 * b.image - 1
    mean, spread = (v.detach() for v in method.network.encode(x))
    # The second head is log sigma in one study and log sigma squared in the other.
    std = spread.exp() if name == "vae" else (0.5 * spread).exp()
    z = mean + std * Rng(5).normal(mean.shape)
    restored = method.network.decode(z).detach()
    kl = torch.distributions.kl_divergence(
        torch.distributions.Normal(mean, std), torch.distributions.Normal(0.0, 1.0)
    )
    loss = method.loss(b, "reconstruct", "network")
    if name == "vae":
        torch.testing.assert_close(loss["l1"], (restored - b.image).abs().sum() / 3)
        torch.testing.assert_close(loss["kl"], 0.3 * kl.sum() / 3)
    else:
        torch.testing.assert_close(loss["l2"], F.mse_loss(restored, x))
        torch.testing.assert_close(loss["kl"], 0.3 * kl.mean())


def test_vae_can_take_the_mean_or_several_samples():
    b = batch()
    mean = create("vae", inference="mean")
    expected = mean.network.decode(mean.network.encode(b.image)[0]).detach()
    torch.testing.assert_close(mean.maps(b).reconstruction, expected)

    several = create("vae", samples=3)
    mu, log_std = (v.detach() for v in several.network.encode(b.image))
    rng = Rng(5)
    draws = [several.network.decode(mu + log_std.exp() * rng.normal(mu.shape)) for _ in range(3)]
    maps = several.maps(b)
    torch.testing.assert_close(maps.reconstruction, (sum(draws) / 3).detach())
    torch.testing.assert_close(maps.map, (b.image - maps.reconstruction).clamp_min(0))


# --- f-AnoGAN


def test_fanogan_losses_by_hand():
    method, b = create("f_anogan", size=32), batch()
    real = 2 * b.image - 1
    rng = Rng(5)
    fake = method.generator(rng.normal((3, 16))).detach()
    mix = rng.uniform((3,)).reshape(-1, 1, 1, 1)
    between = ((1 - mix) * real + mix * fake).requires_grad_(True)
    (gradient,) = torch.autograd.grad(method.critic(between).sum(), between)
    penalty = ((gradient.flatten(1).norm(dim=1) - 1) ** 2).mean()
    critic = method.loss(b, "gan", "critic")
    wasserstein = method.critic(fake).mean() - method.critic(real).mean()
    torch.testing.assert_close(critic["wasserstein"], wasserstein)
    torch.testing.assert_close(critic["penalty"], 10 * penalty)
    b.rng = Rng(5)
    generator = method.loss(b, "gan", "generator")
    torch.testing.assert_close(generator["adversarial"], -method.critic(fake).mean())


@pytest.mark.parametrize("tanh_code", [True, False])
def test_fanogan_scores_by_hand(tanh_code):
    method, b = create("f_anogan", size=32, kappa=0.7, tanh_code=tanh_code), batch()
    x = 2 * b.image - 1
    with torch.no_grad():
        z = method.encoder(x)
        restored = method.generator(torch.tanh(z) if tanh_code else z)
        image = ((x - restored) ** 2).mean((1, 2, 3))
        f = method.critic.blocks(method.critic.start(x))
        g = method.critic.blocks(method.critic.start(restored))
        features = ((f - g) ** 2).mean(1)
    maps = method.maps(b)
    torch.testing.assert_close(maps.score, image + 0.7 * features)
    torch.testing.assert_close(maps.map, (x - restored).abs())
    torch.testing.assert_close(maps.reconstruction, (restored + 1) / 2)
    loss = method.loss(b, "encode", "encoder")
    total = (loss["image"] + loss["features"]).detach()
    torch.testing.assert_close(total, maps.score.mean())


def test_fanogan_trains_as_on_its_card():
    card = registry.card("f_anogan")
    method = card.create(**card.arguments("paper", width=2))
    gan, encode = method.phases()
    assert [(p.name, p.turns) for p in gan.players] == [("critic", 5), ("generator", 1)]
    assert (gan.epochs, gan.batch_size, encode.steps, encode.batch_size) == (7, 64, 50_000, 64)
    adam = gan.players[0].optimizer(gan.players[0].parameters()).param_groups[0]
    assert (adam["lr"], adam["betas"]) == (1e-4, (0.0, 0.9))
    assert [m is method.encoder for m in encode.players[0].modules] == [True]
    rms = encode.players[0].optimizer(encode.players[0].parameters())
    assert isinstance(rms, torch.optim.RMSprop) and rms.param_groups[0]["lr"] == 5e-5


# --- AnoDDPM


def diffusion(network, level=6, repeats=1):
    field = functools.partial(simplex_noise, octaves=2, frequency=8.0)
    process = Process(level, 12, repeats=repeats, multiple=4)
    fitting = functools.partial(
        diffusion_phase, "diffuse", steps=100, batch_size=2, lr=1e-3, ema=0.9
    )
    schedule = DiffusionSchedule(linear_betas(20))
    return PartialDiffusion(network, schedule, field, process, fitting).eval()


def test_anoddpm_learns_the_noise():
    method, b = diffusion(Seen(torch.zeros(3, 1, 16, 16))), batch(size=16)
    loss = method.loss(b, "diffuse", "network")
    rng = Rng(5)
    t = rng.integers(0, 12, (3,))
    again = Batch(b.image, b.foreground, rng, b.position)
    noise = method.noise(b.image, t, again)
    noisy = DiffusionSchedule(linear_betas(20)).diffuse(2 * b.image - 1, t, noise)
    torch.testing.assert_close(method.network.x, noisy)
    torch.testing.assert_close(loss["noise"], (noise**2).mean())


@pytest.mark.parametrize("size", [16, 15])
def test_anoddpm_with_an_oracle_restores_the_image(size):
    b = batch(size=size)

    class Oracle(nn.Module):
        def forward(self, noisy, t):
            pad = noisy.shape[-1] - size
            x = F.pad(2 * b.image - 1, (0, pad, 0, pad), mode="replicate")
            schedule = DiffusionSchedule(linear_betas(20))
            return (noisy - schedule.table("signal", t, x) * x) / schedule.table("noise", t, x)

    maps = diffusion(Oracle(), repeats=2).maps(b)
    torch.testing.assert_close(maps.reconstruction, b.image, atol=1e-3, rtol=1e-3)
    assert maps.map.shape == b.image.shape and maps.map.max() < 1e-4


def test_anoddpm_starts_at_its_level():
    class Steps(nn.Module):
        def __init__(self):
            super().__init__()
            self.seen = []

        def forward(self, noisy, t):
            self.seen.append(int(t[0]))
            return torch.zeros_like(noisy)

    network = Steps()
    diffusion(network, level=6).maps(batch(size=16))
    assert network.seen == [5, 4, 3, 2, 1, 0]


def test_adm_unet_attends_where_it_is_told():
    laid = {
        "size": 32, "width": 8, "multipliers": (1, 2, 2), "blocks": 1, "heads": 2,
        "attention": (16, 8),
    }  # fmt: skip
    net = adm_unet(2, 1, laid)
    kinds = [type(block).__name__ for block in net.down_blocks]
    assert kinds == ["DownBlock", "AttnDownBlock", "AttnDownBlock"]
    out = net(torch.rand(2, 1, 32, 32), torch.tensor([1, 5]))
    assert out.shape == (2, 1, 32, 32)


# --- baselines


def test_equalised_intensity_by_scikit_image():
    b = batch(channels=2)
    b.image[:, :, :4] = 0  # Background inside the foreground doesn't count.
    maps = create("hist_threshold_baseline", channels=2).maps(b)
    for i in range(3):
        grey = b.image[i].double().mean(0).numpy()
        mask = b.foreground[i, 0].numpy() & (grey > 0)
        expected = np.where(mask, equalize_hist(grey, 256, mask=mask), 0)
        # A value on the border of two bins may fall to either side.
        np.testing.assert_allclose(maps.map[i, 0], expected, atol=2 / mask.sum())


def test_equalised_integers_have_a_bin_each():
    """As scikit-image equalises whole numbers, whatever number of bins it is asked for."""
    b = batch()
    b.image = b.image * 40
    maps = create("hist_threshold_baseline", integers=True).maps(b)
    for i in range(3):
        grey = b.image[i, 0].numpy()
        mask = b.foreground[i, 0].numpy() & (grey > 0)
        expected = equalize_hist(grey.astype(np.int64), 256, mask=mask) * mask
        np.testing.assert_allclose(maps.map[i, 0], expected, atol=1e-6)


def test_an_empty_foreground_gives_a_zero_map():
    b = batch()
    b.foreground[0] = False
    maps = create("hist_threshold_baseline").maps(b)
    assert (maps.map[0] == 0).all() and maps.map[1].max() == 1


def test_mean_image():
    b = batch(5)
    method = create("mean_image")
    parts = [Batch(*(v[s] for v in (b.image, b.foreground)), Rng(0), b.position[s])
             for s in (slice(0, 2), slice(2, 5))]  # fmt: skip
    method.fit(parts)
    mean = b.image.numpy().astype(np.float64).mean(0)
    np.testing.assert_allclose(method.maps(b).map, np.abs(b.image.numpy() - mean), atol=1e-6)


def test_image_statistics_is_a_mahalanobis_distance():
    b = batch(20, size=8)
    b.image *= torch.linspace(0.5, 2, 20).reshape(-1, 1, 1, 1)
    method = create("image_statistics")
    method.fit([b])
    x = b.image.double().flatten(1).numpy()
    share = b.foreground.flatten(1).numpy().mean(1)
    q = np.quantile(x, [0.05, 0.25, 0.5, 0.75, 0.95], axis=1, method="nearest")
    values = np.stack([x.mean(1), x.std(1, ddof=1), *q, share], axis=1)
    covariance = np.cov(values.T)
    covariance = 0.99 * covariance + 0.01 * np.trace(covariance) / 8 * np.eye(8)
    d = values - values.mean(0)
    expected = np.sqrt(np.einsum("ni,ij,nj->n", d, np.linalg.inv(covariance), d))
    np.testing.assert_allclose(method.maps(b).score, expected, rtol=1e-4)
