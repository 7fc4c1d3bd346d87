"""Partial diffusion: noise an image part of the way, walk back to a healthy one, look at the rest."""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, TypedDict, get_type_hints

import torch
from torch import Tensor, nn

from normscan.methods.base import Batch, Maps, Method, Phase, Player
from normscan.methods.reconstruction import Residual, squared
from normscan.networks.blocks import pad_to_multiple
from normscan.networks.diffusion import DiffusionSchedule, Guess, Objective, Sampler, Walker
from normscan.networks.guided import Layout, attended
from normscan.rng import Rng
from normscan.signatures import Options
from normscan.synthesis.noise import coarse_noise, pyramid_noise, simplex_noise

Field = Callable[[Sequence[int], Rng, Tensor], Tensor]
Kind = Literal["gaussian", "simplex", "opensimplex", "coarse", "pyramid"]


def gaussian_field(shape: Sequence[int], rng: Rng, t: Tensor) -> Tensor:
    """Standard normal noise at every pixel."""
    return rng.normal(shape)


def coarse_field(shape: Sequence[int], rng: Rng, t: Tensor, resolution: int) -> Tensor:
    """Coarse Gaussian noise; unlike ``coarse_noise``, each sample is rolled on its own."""
    seeds = rng.integers(0, 2**62, (shape[0],)).tolist()
    one = (1, *shape[1:])
    return torch.cat([coarse_noise(one, Rng(int(seed)), 1.0, resolution) for seed in seeds])


def pyramid_field(shape: Sequence[int], rng: Rng, t: Tensor) -> Tensor:
    """Gaussian noise of many resolutions."""
    return pyramid_noise(shape, rng)


class Noising(TypedDict):
    """Arguments of ``noise_field``."""

    noise: Kind
    octaves: int
    persistence: float
    frequency: float
    noise_resolution: int


def noise_field(
    noise: Kind, octaves: int, persistence: float, frequency: float, noise_resolution: int,
    axes: Literal[2, 3, 4] = 3,
) -> Field:  # fmt: skip
    """The noise function of these arguments: shape, source of randomness and steps to a field."""
    if noise == "gaussian":
        return gaussian_field
    if noise == "pyramid":
        return pyramid_field
    if noise == "coarse":
        return functools.partial(coarse_field, resolution=noise_resolution)
    return functools.partial(
        simplex_noise, octaves=octaves, persistence=persistence, frequency=frequency, kind=noise,
        axes=axes,
    )  # fmt: skip


class Sampling(TypedDict):
    """How far images are diffused and how they come back."""

    timesteps: int
    level: int
    sampler: Sampler
    sample_steps: int | None


class Training(TypedDict):
    """Updates, rate and averaging of the weights."""

    steps: int
    batch_size: int
    lr: float
    ema: float | None


class Laid(TypedDict):
    """How a U-Net is laid out."""

    size: int
    width: int
    multipliers: tuple[int, ...]
    blocks: int
    attention: tuple[int, ...]


laid = Options(
    get_type_hints(Laid),
    {
        "size": 256, "width": 128, "multipliers": (1, 1, 2, 2, 4, 4), "blocks": 2,
        "attention": (32, 16, 8),
    },
    {
        "size": "pixels along each axis.",
        "width": "channels of the first level.",
        "multipliers": "of the width, one per level.",
        "blocks": "residual blocks in a level.",
        "attention": "cells of the grid along an axis where attention stands.",
    },
)  # fmt: skip


class LaidTraining(Laid, Training):
    """The arguments of ``laid`` and of ``training``."""


def training_of(options: Mapping[str, Any], **changes: Any) -> dict[str, Any]:
    """The arguments of ``training`` among others, with changes."""
    return {**{name: options[name] for name in get_type_hints(Training)}, **changes}


def layout_of(o: Laid, **more: Any) -> Layout:
    """The layout of a U-Net of guided diffusion; ``more`` are further fields of it."""
    levels = attended(o["attention"], o["size"], len(o["multipliers"]))
    return Layout(o["width"], o["multipliers"], o["blocks"], levels, **more)


noising = Options(
    get_type_hints(Noising),
    {
        "noise": "gaussian", "octaves": 6, "persistence": 0.8, "frequency": 64.0,
        "noise_resolution": 16,
    },
    {
        "noise": "``gaussian``, ``opensimplex``, ``simplex`` (classic, faster), ``coarse`` for "
        "Gaussian noise enlarged from a coarse grid, or ``pyramid`` for a sum of such grids.",
        "octaves": "of simplex noise.",
        "persistence": "weight of an octave of simplex noise relative to the one before.",
        "frequency": "period of the first octave of simplex noise in pixels.",
        "noise_resolution": "cells of the coarse grid along each axis.",
    },
)  # fmt: skip

sampling = Options(
    get_type_hints(Sampling),
    {"timesteps": 1000, "level": 250, "sampler": "ancestral", "sample_steps": None},
    {
        "timesteps": "steps of the schedule; a shorter one scales its betas up.",
        "level": "steps that a test image is diffused.",
        "sampler": "``ancestral`` adds noise in each step of the way back, ``ddim`` none.",
        "sample_steps": "steps of the way back, in even strides; None for every one.",
    },
)

training = Options(
    get_type_hints(Training),
    {"steps": 100_000, "batch_size": 16, "lr": 1e-4, "ema": None},
    {
        "steps": "updates of the network.",
        "batch_size": "images in an update.",
        "lr": "learning rate.",
        "ema": "decay of the averaged weights; None for none.",
    },
)


def diffusion_phase(
    name: str,
    network: nn.Module,
    steps: int,
    batch_size: int,
    lr: float,
    ema: float | None,
    weight_decay: float | None = None,
    clip: float | None = None,
    **more: Any,
) -> Phase:
    """A phase of one network by the arguments of ``training``.

    Args:
        name: of the phase.
        network: that learns.
        steps: updates.
        batch_size: images in one.
        lr: learning rate.
        ema: decay of the averaged weights; None for none.
        weight_decay: of AdamW; None for Adam.
        clip: largest norm of the gradient; None for no clipping.
        more: fields of the phase.
    """
    optimizer: Callable[..., torch.optim.Optimizer] = torch.optim.Adam
    if weight_decay is not None:
        optimizer = functools.partial(torch.optim.AdamW, weight_decay=weight_decay)
    player = Player("network", [network], lambda p: optimizer(p, lr=lr), clip=clip)
    every = max(1, steps // 20)
    more = {"validate_every": every, **more}
    return Phase(name, [player], steps, batch_size=batch_size, ema=ema, **more)


@dataclass(frozen=True)
class Process:
    """How a method diffuses.

    Attributes:
        level: steps that a test image is diffused.
        train_level: training draws its steps below this one; None for all.
        objective: what the network says.
        sampler: of the way back.
        sample_steps: steps of the way back; None for every one.
        repeats: restorations averaged at test.
        multiple: of which the network takes sides.
        centred: images are seen from -1 to 1, else as they are.
    """

    level: int
    train_level: int | None = None
    objective: Objective = "epsilon"
    sampler: Sampler = "ancestral"
    sample_steps: int | None = None
    repeats: int = 1
    multiple: int = 1
    centred: bool = True


class PartialDiffusion(Method):
    """Learns to denoise; restores test images from part of the way.

    Args:
        network: noisy images and steps (B,) to what the objective asks for.
        schedule: of the noise.
        field: noise of a shape, from a source of randomness, at steps on a scale of 1000.
        process: how far, and how back.
        fitting: network to its phase of training.
        residual: images and restorations to (B, 1, *spatial).
    """

    def __init__(
        self, network: nn.Module, schedule: DiffusionSchedule, field: Field, process: Process,
        fitting: Callable[[nn.Module], Phase], residual: Residual = squared,
    ) -> None:  # fmt: skip
        super().__init__()
        self.network, self.schedule = network, schedule
        self.field, self.process = field, process
        self._fitting, self._residual = fitting, residual

    def phases(self) -> list[Phase]:
        return [self._fitting(self.network)]

    def noise(self, x: Tensor, t: Tensor, batch: Batch) -> Tensor:
        """A noise field like x for the steps t."""
        # The third coordinate is the step on the article's scale of 1000, whatever the schedule.
        depth = t * (1000 / len(self.schedule))
        return self.field(x.shape, batch.rng, depth).to(x)

    def seen(self, batch: Batch) -> tuple[Tensor, tuple[slice, ...]]:
        """Images as the network sees them, and what cuts away their padding."""
        x = 2 * batch.image - 1 if self.process.centred else batch.image
        return pad_to_multiple(x, self.process.multiple)

    def shown(self, restored: Tensor) -> Tensor:
        """A restoration in the scale of the images."""
        return (restored + 1) / 2 if self.process.centred else restored

    def said(self, noisy: Tensor, t: Tensor) -> Tensor:
        """What the network says at the steps t (B,)."""
        result: Tensor = self.network(noisy, t)
        return result

    def steps(self, batch: Batch) -> Tensor:
        """Steps (B,) drawn for training."""
        below = self.process.train_level or len(self.schedule)
        return batch.rng.integers(0, below, (len(batch),)).to(batch.image.device)

    def loss(self, batch: Batch, phase: str, player: str) -> dict[str, Tensor]:
        x, _ = self.seen(batch)
        t = self.steps(batch)
        noise = self.noise(x, t, batch)
        said = self.said(self.schedule.diffuse(x, t, noise), t)
        target = self.schedule.target(self.process.objective, x, t, noise)
        return {"noise": (said - target).square().mean()}

    def walker(self, x: Tensor, batch: Batch, schedule: DiffusionSchedule | None = None) -> Walker:
        """What walks images like x down a schedule, by default the whole one."""
        s = schedule or self.schedule

        def predict(noisy: Tensor, t: Tensor) -> Guess:
            return s.guess(self.process.objective, self.said(noisy, s.times[t]), noisy, t)

        if self.process.sampler == "ddim":
            return Walker(s, predict)
        return Walker(s, predict, lambda t: self.noise(x, s.times[t], batch))

    def restored(self, x: Tensor, batch: Batch) -> Tensor:
        """Images (B, C, *spatial) diffused to the level and walked back once."""
        p = self.process
        start = torch.full((len(x),), p.level - 1, device=x.device, dtype=torch.long)
        noisy = self.schedule.diffuse(x, start, self.noise(x, start, batch))
        if p.sample_steps is None:
            return self.walker(x, batch).down(noisy, p.level)
        short = self.schedule.shortened(p.level, p.sample_steps).to(x.device)
        return self.walker(x, batch, short).down(noisy)

    @torch.no_grad()
    def maps(self, batch: Batch) -> Maps:
        x, cut = self.seen(batch)
        restored = torch.zeros_like(x)
        for _ in range(self.process.repeats):
            restored += self.restored(x, batch)
        restored /= self.process.repeats
        x, restored = x[cut], restored[cut]
        return Maps(map=self._residual(x, restored), reconstruction=self.shown(restored))
