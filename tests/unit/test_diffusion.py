"""The diffusion schedule against MONAI's scheduler and the closed forms."""

from __future__ import annotations

import pytest
import torch
from monai.networks.schedulers import DDPMScheduler

from normscan.networks.diffusion import DiffusionSchedule, Walker, linear_betas


def betas(timesteps):
    scale = 1000 / timesteps
    return torch.linspace(1e-4 * scale, min(0.999, 0.02 * scale), timesteps, dtype=torch.float64)


def monai_scheduler(timesteps):
    scale = 1000 / timesteps
    return DDPMScheduler(
        timesteps,
        schedule="linear_beta",
        variance_type="fixed_large",
        beta_start=1e-4 * scale,
        beta_end=0.02 * scale,
    )


def guesses(schedule, network, kind="epsilon", clip=True):
    return lambda x, t: schedule.guess(kind, network(x, t), x, t, clip)


@pytest.mark.parametrize("timesteps", [1000, 250, 40])
def test_signal_and_noise_against_monai(timesteps):
    schedule, theirs = DiffusionSchedule(linear_betas(timesteps)), monai_scheduler(timesteps)
    torch.testing.assert_close(schedule.signal**2, theirs.alphas_cumprod, atol=1e-6, rtol=1e-4)
    total = schedule.signal**2 + schedule.noise**2
    torch.testing.assert_close(total, torch.ones(timesteps))
    x, noise = torch.randn(3, 1, 4, 4), torch.randn(3, 1, 4, 4)
    t = torch.tensor([0, timesteps // 2, timesteps - 1])
    expected = theirs.add_noise(x, noise, t)
    torch.testing.assert_close(schedule.diffuse(x, t, noise), expected, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("timesteps", [1000, 40])
def test_posterior_mean_against_monai(timesteps):
    schedule, theirs = DiffusionSchedule(linear_betas(timesteps)), monai_scheduler(timesteps)
    clean, noisy = torch.randn(1, 1, 4, 4), torch.randn(1, 1, 4, 4)
    for step in (0, 1, timesteps // 3, timesteps - 1):
        mean = schedule.mean_clean[step] * clean + schedule.mean_noisy[step] * noisy
        expected = theirs._get_mean(step, clean, noisy)
        torch.testing.assert_close(mean, expected, atol=1e-4, rtol=2e-3)


def test_posterior_is_the_product_of_two_gaussians():
    """q(x_{t-1} | x_t, x_0) by Bayes: precisions add, means are weighted by them."""
    timesteps, step = 100, 37
    schedule, beta = DiffusionSchedule(linear_betas(timesteps)), betas(timesteps)
    before = torch.cumprod(1 - beta, 0)[step - 1]
    clean, noisy = 0.7, -0.4
    # x_{t-1} is N(sqrt(before) x_0, 1 - before) a priori; x_t is N(sqrt(1 - beta) x_{t-1}, beta).
    prior, likelihood = 1 / (1 - before), (1 - beta[step]) / beta[step]
    seen = noisy / (1 - beta[step]).sqrt()
    expected = (prior * before.sqrt() * clean + likelihood * seen) / (prior + likelihood)
    got = schedule.mean_clean[step] * clean + schedule.mean_noisy[step] * noisy
    assert got.item() == pytest.approx(expected.item(), rel=1e-5)


@pytest.mark.parametrize("timesteps", [1000, 40])
def test_variance_is_the_fixed_large_one(timesteps):
    schedule, beta = DiffusionSchedule(linear_betas(timesteps)), betas(timesteps)
    torch.testing.assert_close(schedule.std[1:].double() ** 2, beta[1:], rtol=1e-5, atol=0)
    bar = torch.cumprod(1 - beta, 0)
    first = beta[1] * (1 - bar[0]) / (1 - bar[1])
    assert schedule.std[0].item() ** 2 == pytest.approx(first.item(), rel=1e-5)


def test_a_short_schedule_ends_as_noisy():
    ends = [DiffusionSchedule(linear_betas(n)).signal[-1].item() for n in (1000, 250, 100)]
    assert max(ends) < 0.01
    middles = [
        DiffusionSchedule(linear_betas(n)).signal[n // 4 - 1].item() for n in (1000, 250, 100)
    ]
    assert max(middles) - min(middles) < 0.02


def test_clean_undoes_diffuse():
    schedule = DiffusionSchedule(linear_betas(200))
    x, noise = torch.randn(4, 2, 5, 5), torch.randn(4, 2, 5, 5)
    t = torch.tensor([0, 20, 99, 150])
    back = schedule.clean(schedule.diffuse(x, t, noise), t, noise)
    torch.testing.assert_close(back, x, atol=1e-3, rtol=1e-3)


@pytest.mark.parametrize("level", [1, 2, 30, 50])
def test_an_oracle_walks_back_to_the_image(level):
    schedule = DiffusionSchedule(linear_betas(50))
    x = torch.rand(2, 1, 6, 6) * 1.8 - 0.9
    generator = torch.Generator().manual_seed(0)

    def noise(t):
        return torch.randn(x.shape, generator=generator)

    def oracle(noisy, t):
        return (noisy - schedule.table("signal", t, x) * x) / schedule.table("noise", t, x)

    start = torch.full((2,), level - 1)
    noisy = schedule.diffuse(x, start, noise(start))
    assert (noisy - x).abs().max() > 0.01
    walker = Walker(schedule, guesses(schedule, oracle), noise)
    torch.testing.assert_close(walker.down(noisy, level), x, atol=1e-3, rtol=1e-3)


def test_a_step_is_monais_step():
    """With the same noise a step gives the same image; x_0 is clamped in both."""
    schedule, theirs = DiffusionSchedule(linear_betas(60)), monai_scheduler(60)
    network = lambda x, t: 0.3 * x + 0.01 * t.reshape(-1, 1, 1, 1)  # noqa: E731
    x = 3 * torch.randn(1, 1, 5, 5)
    field = {}

    def noise(t):
        field[int(t)] = torch.randn(x.shape, generator=torch.Generator().manual_seed(int(t)))
        return field[int(t)]

    expected = x
    for step in reversed(range(3)):
        generator = torch.Generator().manual_seed(step)
        predicted = network(expected, torch.tensor([step]))
        expected, _ = theirs.step(predicted, step, expected, generator)
    got = Walker(schedule, guesses(schedule, network), noise).down(x, 3)
    torch.testing.assert_close(got, expected, atol=1e-4, rtol=1e-3)
    # The last step adds no noise.
    assert sorted(field) == [1, 2]
