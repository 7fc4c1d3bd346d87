"""Diffusion in the code of an autoencoder."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any, Unpack

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from normscan.methods.base import Batch, Maps, Method, Phase
from normscan.methods.diffusion.engine import Training, diffusion_phase, training
from normscan.methods.reconstruction import absolute
from normscan.networks.blocks import pad_to_multiple
from normscan.networks.diffusion import (
    DiffusionSchedule,
    Guess,
    Walker,
    gaussian_divergence,
    scaled_linear_betas,
)
from normscan.registry import register
from normscan.synthesis.blur import smooth


@dataclass(frozen=True)
class Looking:
    """Where divergences are taken, and how what they show is painted anew.

    Attributes:
        steps: of the schedule at which divergences are taken.
        level: steps that a code is diffused before it is painted anew.
        sample_steps: DDIM steps of the painting.
        share: of the healthy codes at a place below its limit.
    """

    steps: tuple[int, ...]
    level: int
    sample_steps: int
    share: float


class LatentDiffusion(Method):
    """Paints codes anew where the steps of a diffusion model of healthy ones diverge.

    Args:
        autoencoder: with ``encode`` to mean and deviation and ``decode``, as MONAI's.
        network: noisy codes and steps to the noise.
        schedule: of the noise.
        looking: see there.
        kl_weight: of the codes' divergence beside the absolute error.
        factor: pixels to a cell of the code.
        cells: of the code along each axis.
        stages: the two networks to their phases.
    """

    spread: Tensor
    limit: Tensor

    def __init__(
        self, autoencoder: Any, network: nn.Module, schedule: DiffusionSchedule, looking: Looking,
        kl_weight: float, factor: int, cells: int,
        stages: Callable[[nn.Module, nn.Module], list[Phase]],
    ) -> None:  # fmt: skip
        super().__init__()
        self.autoencoder, self.network, self.schedule = autoencoder, network, schedule
        self.looking, self.kl_weight, self.factor = looking, kl_weight, factor
        self._stages = stages
        self.short = schedule.shortened(looking.level, looking.sample_steps)
        self.register_buffer("spread", torch.ones(()))
        self.register_buffer("limit", torch.full((1, cells, cells), float("inf")))

    def phases(self) -> list[Phase]:
        return self._stages(self.autoencoder, self.network)

    def seen(self, batch: Batch) -> tuple[Tensor, tuple[slice, ...]]:
        """Images padded to whole cells of the code and the network, and what cuts them out."""
        return pad_to_multiple(batch.image, self.factor)

    def code(self, x: Tensor) -> Tensor:
        """The mean code of images in units of its deviation, (B, C, h, w)."""
        mean: Tensor = self.autoencoder.encode(x)[0]
        return mean / self.spread

    def loss(self, batch: Batch, phase: str, player: str) -> dict[str, Tensor]:
        x, _ = self.seen(batch)
        if phase == "diffuse":
            with torch.no_grad():
                z = self.code(x)
            t = batch.rng.integers(0, len(self.schedule), (len(z),)).to(z.device)
            noise = batch.rng.normal(z.shape).to(z)
            said = self.network(self.schedule.diffuse(z, t, noise), t)
            return {"noise": (said - noise).square().mean()}
        mean, deviation = self.autoencoder.encode(x)
        if self.autoencoder.training:
            self.spread.lerp_(mean.detach().std(), 0.05)
        code = mean + deviation * batch.rng.normal(mean.shape).to(mean)
        zero = torch.zeros_like(mean)
        divergence = gaussian_divergence(mean, 2 * deviation.log(), zero, zero)
        return {
            "l1": F.l1_loss(self.autoencoder.decode(code), x),
            "divergence": self.kl_weight * divergence.flatten(1).sum(1).mean(),
        }

    def divergence(self, z: Tensor, batch: Batch) -> Tensor:
        """KL between the posterior and the model's step, averaged over steps and channels.

        Args:
            z: (B, C, h, w) codes.
            batch: source of randomness.

        Returns:
            (B, 1, h, w) in nats.
        """
        s, total = self.schedule, torch.zeros_like(z)
        for step in self.looking.steps:
            t = torch.full((len(z),), step, device=z.device, dtype=torch.long)
            noisy = s.diffuse(z, t, batch.rng.normal(z.shape).to(z))
            clean = s.clean(noisy, t, self.network(noisy, t))
            spread = s.table("posterior", t, z).log().expand_as(z)
            true, said = (s.posterior_mean(c, noisy, t) for c in (z, clean))
            total += gaussian_divergence(true, spread, said, spread)
        return (total / len(self.looking.steps)).mean(1, keepdim=True)

    @torch.no_grad()
    def fit(self, batches: Iterable[Batch]) -> None:
        """Find the limit of the divergence at each place of healthy codes."""
        found = [self.divergence(self.code(self.seen(b)[0]), b) for b in batches]
        self.limit = torch.quantile(torch.cat(found), self.looking.share, dim=0)

    def painted(self, z: Tensor, mask: Tensor, batch: Batch) -> Tensor:
        """Codes painted anew in the mask (B, 1, h, w) bool; all others stay."""
        s = self.short

        def predict(noisy: Tensor, t: Tensor) -> Guess:
            return s.guess("epsilon", self.network(noisy, s.times[t]), noisy, t, clip=False)

        walker = Walker(s, predict)

        def keep(step: int, now: Tensor, guess: Guess) -> Tensor:
            known = z
            if step:
                t = walker.at(step - 1, z)
                known = s.diffuse(z, t, batch.rng.normal(z.shape).to(z))
            return torch.where(mask, now, known)

        top = walker.at(len(s) - 1, z)
        return walker.down(s.diffuse(z, top, batch.rng.normal(z.shape).to(z)), after=keep)

    @torch.no_grad()
    def maps(self, batch: Batch) -> Maps:
        x, cut = self.seen(batch)
        z = self.code(x)
        divergence = self.divergence(z, batch)
        mask = divergence > self.limit
        restored = self.autoencoder.decode(self.painted(z, mask, batch) * self.spread)
        large = F.interpolate(mask.to(x), x.shape[2:], mode="nearest")
        found = absolute(x, restored) * smooth(large)
        return Maps(found[cut], divergence.sum((1, 2, 3)), reconstruction=restored[cut])


@register(
    "ldm_brain",
    paper="Pinaya 2022",
    preprocess={"scaling": "percentile", "limit": 1.0},
    presets={
        "laptop": {
            "size": 64, "widths": (16, 32), "latent": 4, "unet_widths": (32, 64),
            "unet_attention": (False, True), "timesteps": 200, "looks": (80, 100, 120), "level": 100,
            "sample_steps": 10, "autoencoder_steps": 400, "steps": 400, "batch_size": 8, "lr": 1e-3,
        },
    },
    tiny={
        "size": 32, "widths": (8, 16), "latent": 4, "unet_widths": (8, 16),
        "unet_attention": (False, False), "timesteps": 20, "looks": (8, 10, 12), "level": 10,
        "sample_steps": 4, "autoencoder_steps": 60, "steps": 60, "batch_size": 4, "lr": 5e-3,
    },
    options=training(steps=200_000, batch_size=32),
)  # fmt: skip
def ldm_brain(
    dims: int = 2,
    channels: int = 1,
    size: int = 160,
    widths: tuple[int, ...] = (128, 128, 256),
    latent: int = 3,
    unet_widths: tuple[int, ...] = (128, 256, 512),
    unet_attention: tuple[bool, ...] = (False, True, True),
    kl_weight: float = 1e-6,
    autoencoder_steps: int = 100_000,
    timesteps: int = 1000,
    looks: tuple[int, ...] = tuple(range(400, 601, 20)),
    level: int = 500,
    sample_steps: int = 50,
    share: float = 0.975,
    **options: Unpack[Training],
) -> Method:
    """Latent diffusion of brains: what its steps find unlikely is painted anew.

    Pinaya et al., MICCAI 2022: an autoencoder compresses healthy FLAIR slices, and a diffusion model
    learns their codes. At steps 400 to 600 of 1000 the divergence between the posterior of a noisy
    code and the model's step, (m_q - m_p)^2 / 2 s^2, averaged, tells where a code is unlikely; where
    it exceeds the 97.5th percentile of healthy codes at that place the code is painted anew by DDIM,
    while all else is kept, and decoded. The map is the absolute difference inside the enlarged,
    smoothed mask, the score the sum of the divergences.

    Departures:
        everything but the idea: no code of it was released. Widths, code and weights are those of
            MONAI's tutorial of latent diffusion; betas are scaled linear, as in its authors' later
            work on whole images.
        autoencoder: learns by its absolute error and the divergence of its codes alone; the tutorial
            adds a perceptual and an adversarial term.
        limit: from the healthy training scans; the article's from healthy validation scans.
        scale: codes are divided by a running deviation; the tutorial's by that of its first batch.
        looks: every 20th step from 400 to 600.

    Args:
        dims: spatial axes, 2.
        size: pixels along each axis, a multiple of the strides of both networks.
        widths: channels of the autoencoder's levels, each half as fine as the one before.
        latent: channels of the code.
        unet_widths: channels of the diffusion model's levels.
        unet_attention: which of these have attention.
        kl_weight: of the codes' divergence beside the absolute error.
        autoencoder_steps: updates of the autoencoder.
        timesteps: steps of the schedule.
        looks: steps at which the divergence is taken.
        level: steps that a code is diffused before it is painted anew.
        sample_steps: DDIM steps of the painting.
        share: of the healthy codes that are below the limit at their place.
        lr: learning rate of Adam, for both.
    """
    from monai.networks.nets import AutoencoderKL, DiffusionModelUNet

    autoencoder = AutoencoderKL(
        2, channels, channels, num_res_blocks=(2,) * len(widths), channels=widths,
        attention_levels=(False,) * len(widths), latent_channels=latent,
        norm_num_groups=min(32, widths[0]), with_encoder_nonlocal_attn=False,
        with_decoder_nonlocal_attn=False,
    )  # fmt: skip
    network = DiffusionModelUNet(
        2, latent, latent, num_res_blocks=2, channels=unet_widths, attention_levels=unet_attention,
        norm_num_groups=min(32, unet_widths[0]), num_head_channels=list(unet_widths),
    )  # fmt: skip
    factor = 2 ** (len(widths) - 1)

    own: dict[str, Any] = {**options, "steps": autoencoder_steps, "ema": None}

    def stages(coder: nn.Module, denoiser: nn.Module) -> list[Phase]:
        first = diffusion_phase("autoencode", coder, **own)
        return [first, diffusion_phase("diffuse", denoiser, **options)]

    return LatentDiffusion(
        autoencoder,
        network,
        DiffusionSchedule(scaled_linear_betas(timesteps)),
        Looking(looks, level, sample_steps, share),
        kl_weight,
        factor * 2 ** (len(unet_widths) - 1),
        size // factor,
        stages,
    )
