"""Diffusion schedules, what a network predicts in them, and the steps between their levels."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal, NamedTuple

import torch
from torch import Tensor, nn

from normscan.progress import steps_of

Objective = Literal["epsilon", "x0", "v"]
Sampler = Literal["ancestral", "ddim"]
Noise = Callable[[Tensor], Tensor]


def linear_betas(timesteps: int, start: float = 1e-4, end: float = 0.02) -> Tensor:
    """Betas on a line (Ho et al. 2020), (T,) float64.

    Args:
        timesteps: number of steps T.
        start: at T = 1000; scaled by 1000 / T, so that a short schedule ends as noisy.
        end: as ``start``.
    """
    scale = 1000 / timesteps
    return torch.linspace(start * scale, min(0.999, end * scale), timesteps, dtype=torch.float64)


def cosine_betas(timesteps: int, offset: float = 0.008) -> Tensor:
    """Betas whose share of signal falls as a squared cosine (Nichol and Dhariwal 2021), (T,)."""
    at = torch.linspace(0, 1, timesteps + 1, dtype=torch.float64)
    bar = torch.cos((at + offset) / (1 + offset) * math.pi / 2) ** 2
    return (1 - bar[1:] / bar[:-1]).clamp(0, 0.999)


def scaled_linear_betas(timesteps: int, start: float = 0.0015, end: float = 0.0195) -> Tensor:
    """Betas whose roots lie on a line (Rombach et al. 2022), (T,); scaled as ``linear_betas``."""
    scale = 1000 / timesteps
    ends = math.sqrt(start * scale), math.sqrt(min(0.999, end * scale))
    return torch.linspace(*ends, timesteps, dtype=torch.float64) ** 2


class Guess(NamedTuple):
    """What a network says of a noisy image: the clean one and the noise, both like it."""

    clean: Tensor
    noise: Tensor


class DiffusionSchedule(nn.Module):
    """A schedule with its closed forms (Ho et al. 2020).

    Args:
        betas: (T,) variances that the steps add, float64.
        variance: of an ancestral step: ``large`` is beta, ``small`` the posterior's.
        times: (T,) what the network is told at each step; its number by default.
    """

    times: Tensor

    def __init__(
        self,
        betas: Tensor,
        variance: Literal["large", "small"] = "large",
        times: Sequence[int] | None = None,
    ) -> None:
        super().__init__()
        bar = torch.cumprod(1 - betas, 0)
        before = torch.cat([torch.ones(1, dtype=torch.float64), bar[:-1]])
        posterior = betas * (1 - before) / (1 - bar)
        # The first entry is the posterior's second, as in guided diffusion.
        second = posterior[1:2] if len(betas) > 1 else betas
        spread = {"large": torch.cat([second, betas[1:]]), "small": posterior}
        tables = {
            "signal": bar.sqrt(),
            "noise": (1 - bar).sqrt(),
            "mean_clean": betas * before.sqrt() / (1 - bar),
            "mean_noisy": (1 - before) * (1 - betas).sqrt() / (1 - bar),
            "std": spread[variance].sqrt(),
            "beta": betas,
            "posterior": torch.cat([second, posterior[1:]]),
            "signal_before": before.sqrt(),
            "noise_before": (1 - before).sqrt(),
        }
        for name, table in tables.items():
            self.register_buffer(name, table.float(), persistent=False)
        self.variance, self.bar = variance, bar
        known = torch.arange(len(betas)) if times is None else torch.tensor(times)
        self.register_buffer("times", known, persistent=False)

    def __len__(self) -> int:
        return len(self.times)

    def respaced(self, steps: Sequence[int]) -> DiffusionSchedule:
        """The schedule that visits some of the steps only, given in rising order."""
        bar = self.bar[list(steps)]
        before = torch.cat([torch.ones(1, dtype=torch.float64), bar[:-1]])
        return DiffusionSchedule(1 - bar / before, self.variance, list(steps))

    def shortened(self, level: int, steps: int | None) -> DiffusionSchedule:
        """The first ``level`` steps in so many even strides; all of them with None."""
        if steps is None or steps >= level:
            return self.respaced(range(level))
        even = torch.linspace(0, level - 1, steps).round().long() if steps > 1 else [level - 1]
        return self.respaced([int(n) for n in even])

    def table(self, name: str, t: Tensor, x: Tensor) -> Tensor:
        """Values at the steps t (B,), shaped to multiply x (B, C, *spatial)."""
        buffer: Tensor = getattr(self, name)
        return buffer[t].reshape(-1, *[1] * (x.ndim - 1))

    def diffuse(self, x: Tensor, t: Tensor, noise: Tensor) -> Tensor:
        """q(x_t | x_0) with a given noise."""
        return self.table("signal", t, x) * x + self.table("noise", t, x) * noise

    def clean(self, noisy: Tensor, t: Tensor, noise: Tensor) -> Tensor:
        """The x_0 that a predicted noise implies."""
        return (noisy - self.table("noise", t, noisy) * noise) / self.table("signal", t, noisy)

    def implied_noise(self, noisy: Tensor, t: Tensor, clean: Tensor) -> Tensor:
        """The noise that a predicted x_0 implies."""
        return (noisy - self.table("signal", t, noisy) * clean) / self.table("noise", t, noisy)

    def target(self, kind: Objective, x: Tensor, t: Tensor, noise: Tensor) -> Tensor:
        """What a network with this objective should say."""
        if kind == "v":  # Salimans and Ho 2022
            return self.table("signal", t, x) * noise - self.table("noise", t, x) * x
        return noise if kind == "epsilon" else x

    def guess(
        self, kind: Objective, said: Tensor, noisy: Tensor, t: Tensor, clip: bool = True
    ) -> Guess:
        """Read what a network said; x_0 is cut to [-1, 1] with ``clip``, and the noise follows."""
        if kind == "x0":
            clean = said
        elif kind == "v":
            clean = self.table("signal", t, noisy) * noisy - self.table("noise", t, noisy) * said
        else:
            clean = self.clean(noisy, t, said)
        clean = clean.clamp(-1, 1) if clip else clean
        return Guess(clean, self.implied_noise(noisy, t, clean))

    def posterior_mean(self, clean: Tensor, noisy: Tensor, t: Tensor) -> Tensor:
        """The mean of q(x_{t-1} | x_t, x_0)."""
        a, b = self.table("mean_clean", t, noisy), self.table("mean_noisy", t, noisy)
        return a * clean + b * noisy

    def log_variance(self, said: Tensor, t: Tensor) -> Tensor:
        """The learned log variance (Nichol and Dhariwal 2021).

        Args:
            said: -1 for the posterior's variance to 1 for beta, on a log scale between.
            t: (B,) steps.
        """
        share = (said + 1) / 2
        low = self.table("posterior", t, said).log()
        return share * self.table("beta", t, said).log() + (1 - share) * low


@dataclass
class Walker:
    """Goes down a schedule to an image, or up it to noise.

    Attributes:
        schedule: its levels, counted from 0.
        predict: noisy images and steps (B,) of the schedule to a guess.
        noise: steps (B,) to a noise field for an ancestral step; None for DDIM (Song et al. 2021),
            which adds none.
    """

    schedule: DiffusionSchedule
    predict: Callable[[Tensor, Tensor], Guess]
    noise: Noise | None = None

    def at(self, step: int, x: Tensor) -> Tensor:
        """A step for each image, (B,)."""
        return torch.full((len(x),), step, device=x.device, dtype=torch.long)

    def move(self, x: Tensor, step: int, guess: Guess) -> Tensor:
        """From x_t to x_{t-1}, or to the image from step 0."""
        s, t = self.schedule, self.at(step, x)
        if self.noise is None:
            a, b = s.table("signal_before", t, x), s.table("noise_before", t, x)
            return a * guess.clean + b * guess.noise
        mean = s.posterior_mean(guess.clean, x, t)
        return mean + s.table("std", t, x) * self.noise(t) if step else mean

    def step(self, x: Tensor, step: int) -> tuple[Tensor, Guess]:
        """One step down, and the guess that it followed."""
        guess = self.predict(x, self.at(step, x))
        return self.move(x, step, guess), guess

    def down(
        self, x: Tensor, level: int | None = None,
        after: Callable[[int, Tensor, Guess], Tensor] | None = None,
    ) -> Tensor:  # fmt: skip
        """Walk down to an image.

        Args:
            x: (B, C, *spatial) at step ``level`` - 1.
            level: number of steps; all of the schedule's by default.
            after: changes x_{t-1} behind step t, given t, it and the guess.
        """
        level = len(self.schedule) if level is None else level
        for passed in steps_of("step down", level):
            step = level - 1 - passed
            x, guess = self.step(x, step)
            x = after(step, x, guess) if after else x
        return x

    def up(self, x: Tensor, start: int = 0) -> Tensor:
        """Encode images by reversed DDIM steps, from step ``start`` to the last; no noise is added.

        The guess at a step serves the step above it, so the way down returns the image as nearly as
        the guesses of neighbouring steps agree.
        """
        s = self.schedule
        for passed in steps_of("step up", len(s) - 1 - start):
            step = start + passed
            guess, t = self.predict(x, self.at(step, x)), self.at(step + 1, x)
            x = s.diffuse(guess.clean, t, guess.noise)
        return x


def guided(
    schedule: DiffusionSchedule,
    predict: Callable[[Tensor, Tensor], Guess],
    gradient: Callable[[Tensor, Tensor], Tensor],
    scale: float,
) -> Callable[[Tensor, Tensor], Guess]:
    """Predictions that follow a classifier (Dhariwal and Nichol 2021, their form for DDIM).

    The noise loses ``scale`` times the level of noise times the gradient of the log probability of
    the wanted class; the clean image follows from it uncut.

    Args:
        schedule: of the steps.
        predict: unguided.
        gradient: noisy images and steps (B,) to the gradient at the images.
        scale: of the gradient.
    """

    def steered(x: Tensor, t: Tensor) -> Guess:
        plain = predict(x, t)
        noise = plain.noise - scale * schedule.table("noise", t, x) * gradient(x, t)
        return Guess(schedule.clean(x, t, noise), noise)

    return steered


def gaussian_divergence(
    mean_a: Tensor, log_variance_a: Tensor, mean_b: Tensor, log_variance_b: Tensor
) -> Tensor:
    """KL(a | b) of normal distributions in nats, element by element."""
    apart = (mean_a - mean_b).square() * torch.exp(-log_variance_b)
    ratio = torch.exp(log_variance_a - log_variance_b)
    return 0.5 * (log_variance_b - log_variance_a - 1 + ratio + apart)
