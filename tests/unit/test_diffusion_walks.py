"""Walks along a diffusion schedule: against closed forms, other libraries and finite differences."""

from __future__ import annotations

import pytest
import torch
from monai.networks.schedulers import DDIMScheduler
from torch.distributions import Normal, kl_divergence

from normscan.networks.diffusion import (
    DiffusionSchedule,
    Guess,
    Walker,
    cosine_betas,
    gaussian_divergence,
    guided,
    linear_betas,
    scaled_linear_betas,
)
from normscan.progress import Progress

SPREAD = 0.5


def normal_world(schedule):
    """The best guess where all pixels are normal with deviation SPREAD, which is linear."""

    def predict(x, t):
        a, b = schedule.table("signal", t, x), schedule.table("noise", t, x)
        total = a**2 * SPREAD**2 + b**2
        return Guess(a * SPREAD**2 / total * x, b / total * x)

    return predict


def images(seed=0):
    return SPREAD * torch.randn(2, 1, 6, 6, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("betas", [linear_betas, cosine_betas, scaled_linear_betas])
def test_ddim_up_and_down_returns_the_image(betas):
    """And on the way it does what the flow's closed form does: it scales by the deviations."""
    schedule = DiffusionSchedule(betas(1000)[:500])
    walker = Walker(schedule, normal_world(schedule))
    x = images()
    up = walker.up(x)
    deviation = (schedule.signal[-1] ** 2 * SPREAD**2 + schedule.noise[-1] ** 2).sqrt() / SPREAD
    torch.testing.assert_close(up, x * deviation, rtol=0.02, atol=1e-3)
    torch.testing.assert_close(walker.down(up), x, rtol=0.02, atol=2e-3)


def test_ddim_is_exact_where_the_noise_is_known():
    schedule = DiffusionSchedule(linear_betas(40))
    x, e = images(), images(1)
    walker = Walker(schedule, lambda noisy, t: Guess(schedule.clean(noisy, t, e), e))
    start = schedule.diffuse(x, torch.zeros(2, dtype=torch.long), e)
    top = schedule.diffuse(x, torch.full((2,), 39), e)
    torch.testing.assert_close(walker.up(start), top, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(walker.down(top), x, rtol=1e-3, atol=1e-3)


def test_ddim_is_monais():
    """Uncut, since MONAI doesn't derive the noise anew from a cut image; with every step, since
    MONAI's strides are of another length than those it goes back."""
    schedule = DiffusionSchedule(linear_betas(1000)[:60])
    theirs = DDIMScheduler(60, clip_sample=False, beta_end=float(linear_betas(1000)[59]))
    theirs.set_timesteps(60)
    x = expected = 2 * images()
    for t in theirs.timesteps:
        noise = normal_world(schedule)(expected, t[None]).noise
        expected, _ = theirs.step(noise, int(t), expected)
    got = Walker(schedule, normal_world(schedule)).down(x)
    torch.testing.assert_close(got, expected, rtol=1e-3, atol=1e-3)


def test_few_steps_are_those_of_a_coarser_schedule():
    """With a known noise, so that strides make no error: the levels in between are those of all."""
    schedule = DiffusionSchedule(linear_betas(1000))
    short = schedule.shortened(250, 5)
    assert short.times.tolist() == [0, 62, 124, 187, 249]
    torch.testing.assert_close(short.signal, schedule.signal[short.times])
    x, e = images(), images(1)
    noisy = schedule.diffuse(x, torch.tensor([249, 249]), e)
    walker = Walker(short, lambda noisy, t: Guess(short.clean(noisy, t, e), e))
    torch.testing.assert_close(walker.down(noisy), x, rtol=1e-3, atol=1e-3)


def test_an_ancestral_walk_has_the_worlds_deviation():
    """From pure noise, with the exact variance of each step, it ends in the data's distribution."""
    schedule = DiffusionSchedule(linear_betas(200), "small")
    g = torch.Generator().manual_seed(0)
    x = torch.randn(1, 1, 200, 200, generator=g)
    walker = Walker(schedule, normal_world(schedule), lambda t: torch.randn(x.shape, generator=g))
    assert float(walker.down(x).std()) == pytest.approx(SPREAD, rel=0.05)


@pytest.mark.parametrize("kind", ["epsilon", "x0", "v"])
def test_every_objective_means_the_same_image(kind):
    schedule = DiffusionSchedule(cosine_betas(100))
    x, noise, t = images().clamp(-1, 1), images(1), torch.tensor([5, 80])
    noisy = schedule.diffuse(x, t, noise)
    guess = schedule.guess(kind, schedule.target(kind, x, t, noise), noisy, t)
    torch.testing.assert_close(guess.clean, x, rtol=1e-3, atol=1e-4)
    torch.testing.assert_close(guess.noise, noise, rtol=1e-3, atol=1e-3)


def test_posterior_by_sampling():
    """Mean and variance of q(x_{t-1} | x_t, x_0) from draws whose x_t came out alike."""
    schedule, step, x0 = DiffusionSchedule(linear_betas(30), "small"), 12, 0.4
    g = torch.Generator().manual_seed(0)
    before = schedule.signal_before[step] * x0
    x = before + schedule.noise_before[step] * torch.randn(2_000_000, generator=g)
    beta = schedule.beta[step]
    y = (1 - beta).sqrt() * x + beta.sqrt() * torch.randn(x.shape, generator=g)
    near = (y - 0.6).abs() < 0.01
    mean = schedule.mean_clean[step] * x0 + schedule.mean_noisy[step] * 0.6
    assert float(x[near].mean()) == pytest.approx(float(mean), abs=0.02)
    assert float(x[near].std()) == pytest.approx(float(schedule.std[step]), rel=0.03)


def test_guidance_follows_the_gradient():
    """The noise moves by scale * level of noise * gradient, taken by finite differences."""
    schedule = DiffusionSchedule(linear_betas(50))
    weights = images(3).double()[:1]

    def log_probability(x):
        return torch.nn.functional.logsigmoid((x.tanh() * weights).flatten(1).sum(1))

    def gradient(x, t):
        x = x.detach().requires_grad_()
        return torch.autograd.grad(log_probability(x).sum(), x)[0]

    predict = lambda x, t: Guess(0.1 * x, 0.2 * x)  # noqa: E731
    x, t = images().double(), torch.tensor([30, 30])
    got = guided(schedule, predict, gradient, 7.0)(x, t)
    slope = torch.zeros_like(x)
    for i in range(x[0].numel()):
        up, down = x.clone().flatten(1), x.clone().flatten(1)
        up[:, i] += 1e-4
        down[:, i] -= 1e-4
        change = log_probability(up.view_as(x)) - log_probability(down.view_as(x))
        slope.view(2, -1)[:, i] = change / 2e-4
    expected = 0.2 * x - 7.0 * schedule.noise[30] * slope
    torch.testing.assert_close(got.noise, expected, rtol=1e-6, atol=1e-7)
    back = schedule.signal[30] * got.clean + schedule.noise[30] * got.noise
    torch.testing.assert_close(back, x, rtol=1e-5, atol=1e-5)


def test_learned_variance_lies_between_the_two():
    schedule, t = DiffusionSchedule(linear_betas(50)), torch.tensor([0, 20])
    low, high = schedule.posterior[t].log(), schedule.beta[t].log()
    for said, expected in ((-1.0, low), (1.0, high), (0.0, (low + high) / 2)):
        got = schedule.log_variance(torch.full((2, 1, 3, 3), said), t)[:, 0, 0, 0]
        torch.testing.assert_close(got, expected)


def test_divergence_is_that_of_distributions():
    a, b, c, d = images(), images(1), images(2), images(3)
    expected = kl_divergence(Normal(a, (b / 2).exp()), Normal(c, (d / 2).exp()))
    torch.testing.assert_close(gaussian_divergence(a, b, c, d), expected, rtol=1e-4, atol=1e-5)


def test_a_walk_says_how_far_it_is(monkeypatch):
    """Beside the progress that is shown, each step of both ways."""
    schedule, said = DiffusionSchedule(linear_betas(6)), []
    monkeypatch.setattr(Progress, "inside", lambda self, text: said.append(text))
    walker = Walker(schedule, normal_world(schedule))
    with Progress(shown=True) as bar:
        bar.update("predict", 0, 2)
        walker.down(images())
        walker.up(images(), start=1)
    assert said == [f"step down {k}/6" for k in range(6)] + [f"step up {k}/4" for k in range(4)]
