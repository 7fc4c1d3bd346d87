"""The diffusion schedule and the steps of partial diffusion."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn

Noise = Callable[[Tensor], Tensor]


class DiffusionSchedule(nn.Module):
    """Linear schedule of betas with the closed forms of Ho et al. 2020.

    Args:
        timesteps: number of steps T.
        beta_start: at T = 1000; scaled by 1000 / T, so that a short schedule ends as noisy.
        beta_end: as ``beta_start``.
    """

    def __init__(self, timesteps: int, beta_start: float = 1e-4, beta_end: float = 0.02) -> None:
        super().__init__()
        scale = 1000 / timesteps
        betas = torch.linspace(
            beta_start * scale, min(0.999, beta_end * scale), timesteps, dtype=torch.float64
        )
        bar = torch.cumprod(1 - betas, 0)
        before = torch.cat([torch.ones(1, dtype=torch.float64), bar[:-1]])
        tables = {
            "signal": bar.sqrt(),
            "noise": (1 - bar).sqrt(),
            "mean_clean": betas * before.sqrt() / (1 - bar),
            "mean_noisy": (1 - before) * (1 - betas).sqrt() / (1 - bar),
            # "Fixed large" variance; the first entry is the posterior's, as in guided diffusion.
            "std": torch.cat([(betas * (1 - before) / (1 - bar))[1:2], betas[1:]]).sqrt(),
        }
        for name, table in tables.items():
            self.register_buffer(name, table.float(), persistent=False)

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

    def denoise(
        self, x: Tensor, level: int, predict: Callable[[Tensor, Tensor], Tensor], noise: Noise
    ) -> Tensor:
        """Walk from step ``level`` back to an image, with x_0 clamped to [-1, 1].

        Args:
            x: (B, C, *spatial) diffused to step ``level`` - 1 (counted from 0).
            level: number of steps to walk.
            predict: (x_t, t) to the noise in it.
            noise: steps (B,) to a noise field like x.
        """
        for step in reversed(range(level)):
            t = torch.full((len(x),), step, device=x.device, dtype=torch.long)
            clean = self.clean(x, t, predict(x, t)).clamp(-1, 1)
            x = self.table("mean_clean", t, x) * clean + self.table("mean_noisy", t, x) * x
            if step:
                x = x + self.table("std", t, x) * noise(t)
        return x
