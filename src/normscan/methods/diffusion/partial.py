"""Diffusion models that noise an image part of the way and walk back to a healthy one."""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn

from normscan.methods.base import Batch, Maps, Method, Phase, Player
from normscan.methods.reconstruction import squared
from normscan.networks.blocks import pad_to_multiple
from normscan.networks.diffusion import DiffusionSchedule
from normscan.registry import register
from normscan.rng import Rng
from normscan.synthesis.noise import coarse_noise, simplex_noise


def adm_unet(
    dims: int, channels: int, size: int, width: int, multipliers: tuple[int, ...], blocks: int,
    heads: int, attention: tuple[int, ...],
) -> nn.Module:  # fmt: skip
    """Return MONAI's diffusion U-Net laid out as in guided diffusion (Dhariwal 2021).

    Attention stands where the grid has so many cells along an axis; the resolution changes inside
    residual blocks.
    """
    from monai.networks.nets import DiffusionModelUNet

    widths = [width * m for m in multipliers]
    attended = [size // 2**i in attention for i in range(len(widths))]
    network: nn.Module = DiffusionModelUNet(
        spatial_dims=dims,
        in_channels=channels,
        out_channels=channels,
        num_res_blocks=[blocks] * len(widths),
        channels=widths,
        attention_levels=attended,
        norm_num_groups=min(32, width),
        norm_eps=1e-5,
        num_head_channels=[w // heads for w in widths],
        resblock_updown=True,
    )
    return network


def coarse_field(shape: Sequence[int], rng: Rng, t: Tensor, resolution: int) -> Tensor:
    """Coarse Gaussian noise; unlike ``coarse_noise``, each sample is rolled on its own."""
    seeds = rng.integers(0, 2**62, (shape[0],)).tolist()
    one = (1, *shape[1:])
    return torch.cat([coarse_noise(one, Rng(int(seed)), 1.0, resolution) for seed in seeds])


@dataclass(frozen=True)
class Training:
    """Updates, rate and averaging of the weights; see ``anoddpm``."""

    steps: int
    batch_size: int
    lr: float
    ema: float


@dataclass(frozen=True)
class Walk:
    """How far images are diffused and how they come back.

    Attributes:
        timesteps: steps of the schedule.
        level: steps that a test image is diffused.
        train_level: training draws its steps below this one.
        repeats: restorations averaged at test.
        multiple: of which the network takes sides.
    """

    timesteps: int
    level: int
    train_level: int
    repeats: int
    multiple: int


class PartialDiffusion(Method):
    """Noise prediction, partial diffusion at test."""

    def __init__(
        self, network: nn.Module, field: Callable[[Sequence[int], Rng, Tensor], Tensor],
        walk: Walk, training: Training,
    ) -> None:  # fmt: skip
        super().__init__()
        self.network = network
        self.schedule = DiffusionSchedule(walk.timesteps)
        self.field, self.walk = field, walk
        self._training = training

    def phases(self) -> list[Phase]:
        t = self._training
        player = Player(
            "network",
            [self.network],
            lambda p: torch.optim.AdamW(p, lr=t.lr, weight_decay=0.0),
            clip=1.0,
        )
        every = max(1, t.steps // 20)
        return [
            Phase(
                "diffuse", [player], t.steps, batch_size=t.batch_size, ema=t.ema,
                validate_every=every,
            )
        ]  # fmt: skip

    def noise(self, x: Tensor, t: Tensor, batch: Batch) -> Tensor:
        """A noise field like x for the steps t."""
        # The third coordinate is the step on the article's scale of 1000, whatever the schedule.
        depth = t * (1000 / self.walk.timesteps)
        return self.field(x.shape, batch.rng, depth).to(x)

    def loss(self, batch: Batch, phase: str, player: str) -> dict[str, Tensor]:
        x, _ = pad_to_multiple(2 * batch.image - 1, self.walk.multiple)
        t = batch.rng.integers(0, self.walk.train_level, (len(batch),)).to(x.device)
        noise = self.noise(x, t, batch)
        predicted = self.network(self.schedule.diffuse(x, t, noise), t)
        return {"noise": (predicted - noise).square().mean()}

    @torch.no_grad()
    def maps(self, batch: Batch) -> Maps:
        walk = self.walk
        x, cut = pad_to_multiple(2 * batch.image - 1, walk.multiple)
        start = torch.full((len(x),), walk.level - 1, device=x.device, dtype=torch.long)
        restored = torch.zeros_like(x)
        for _ in range(walk.repeats):
            noisy = self.schedule.diffuse(x, start, self.noise(x, start, batch))
            restored += self.schedule.denoise(
                noisy, walk.level, self.network, lambda t: self.noise(x, t, batch)
            )
        restored /= walk.repeats
        return Maps(map=squared(x, restored)[cut], reconstruction=(restored[cut] + 1) / 2)


@register(
    "anoddpm",
    paper="Wyatt 2022",
    dims=(2,),
    preprocess={"scaling": "percentile", "limit": 1.0},
    presets={
        "laptop": {
            "size": 64, "width": 16, "multipliers": (1, 2, 4), "blocks": 1, "attention": (16,),
            "noise": "simplex", "frequency": 16.0,
            "timesteps": 100, "level": 25, "train_level": 50, "steps": 500, "batch_size": 4,
            "lr": 1e-3, "ema": 0.99,
        },
    },
    tiny={
        "size": 32, "width": 8, "multipliers": (1, 2, 2), "blocks": 1, "heads": 1, "attention": (8,),
        "noise": "simplex", "frequency": 4.0, "octaves": 3, "timesteps": 10, "level": 4,
        "train_level": 6, "steps": 60,
        "batch_size": 4, "lr": 2e-3, "ema": 0.95,
    },
)  # fmt: skip
def anoddpm(
    dims: int = 2,
    channels: int = 1,
    size: int = 256,
    width: int = 128,
    multipliers: tuple[int, ...] = (1, 1, 2, 2, 4, 4),
    blocks: int = 2,
    heads: int = 2,
    attention: tuple[int, ...] = (32, 16, 8),
    timesteps: int = 1000,
    level: int = 250,
    train_level: int = 800,
    noise: Literal["simplex", "opensimplex", "coarse"] = "opensimplex",
    octaves: int = 6,
    frequency: float = 64.0,
    noise_resolution: int = 16,
    repeats: int = 1,
    steps: int = 300_000,
    batch_size: int = 1,
    lr: float = 1e-4,
    ema: float = 0.9999,
) -> Method:
    """Diffusion model with simplex noise (AnoDDPM).

    Wyatt et al., CVPR Workshops 2022: the network learns to predict simplex noise; at test an image
    is diffused to step 250 of 1000 and walked back with the same kind of noise and the fixed large
    variance, and the squared difference is the map. Images are mapped to -1..1 inside, where
    restorations are cut. The noise is OpenSimplex, as in the release that made the article's
    figures, a field for each channel; classic simplex noise (``simplex``) is stronger and of a finer
    grain. ``noise=coarse`` is the variant of Kascenas et al., Medical Image Analysis 2023, whose
    forward noise is that of their denoising autoencoder, here with the standard deviation 1 on its
    coarse grid.

    Departures:
        range: 0 to each scan's 99th percentile become -1..1, what is above is cut; the release maps
            the mean less one to plus two deviations.
        augmentation: none; the release moves and turns training images (3 degrees, 2 by 9 %).
        field: of its own for each image; the release can take one image at a time only.
        length: 300,000 updates; 300,100 in the release, whose epochs include both ends.

    Args:
        dims: spatial axes, 2.
        channels: of the image; each has a noise field of its own.
        size: pixels along each axis.
        width: channels of the first level.
        multipliers: of the width, one per level.
        blocks: residual blocks in a level.
        heads: attention heads.
        attention: cells of the grid along an axis where attention stands.
        timesteps: steps of the schedule; a shorter one scales its betas up.
        level: steps that a test image is diffused.
        train_level: training draws its steps below this one.
        noise: ``opensimplex``, ``simplex`` (faster), or ``coarse`` for
            Gaussian noise enlarged from a coarse grid.
        octaves: of simplex noise.
        frequency: period of the first octave in pixels; a quarter of the size in the article.
        noise_resolution: cells of the coarse grid along each axis.
        repeats: restorations averaged at test.
        steps: updates of the network.
        batch_size: images in an update.
        lr: learning rate of AdamW without weight decay; the gradient's norm is clipped at 1.
        ema: decay of the averaged weights.
    """
    network = adm_unet(dims, channels, size, width, multipliers, blocks, heads, attention)
    if noise == "coarse":
        field = functools.partial(coarse_field, resolution=noise_resolution)
    else:
        field = functools.partial(simplex_noise, octaves=octaves, frequency=frequency, kind=noise)
    walk = Walk(timesteps, level, train_level, repeats, multiple=2 ** (len(multipliers) - 1))
    return PartialDiffusion(network, field, walk, Training(steps, batch_size, lr, ema))
