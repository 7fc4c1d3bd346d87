"""Diffusion of the healthy image, given the image with its anomalies."""

from __future__ import annotations

import functools
import itertools
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Literal, Unpack

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from normscan.errors import ArgumentError, nearest
from normscan.methods.base import Batch, Maps, Method
from normscan.methods.diffusion.engine import (
    LaidTraining,
    diffusion_phase,
    laid,
    layout_of,
    training,
    training_of,
)
from normscan.methods.reconstruction import absolute
from normscan.methods.synthesis.many_tasks import FIVE, ManyTasks
from normscan.networks.blocks import pad_to_multiple
from normscan.networks.diffusion import DiffusionSchedule, Guess, Walker, linear_betas
from normscan.networks.guided import GuidedUNet, attended
from normscan.objectives.similarity import ssim_map
from normscan.registry import register
from normscan.synthesis.donors import partners
from normscan.synthesis.tasks import five_tasks


def padded_dissimilarity(x: Tensor, restored: Tensor, data_range: float) -> Tensor:
    """1 - SSIM, cut to 0..1, with zeros around the image; the mean of the channels (B, 1, H, W)."""
    x, restored = (F.pad(y, (5, 5, 5, 5)) for y in (x, restored))
    return (1 - ssim_map(x, restored, data_range=data_range)).clamp(0, 1).mean(1, keepdim=True)


@dataclass(frozen=True)
class Restoring:
    """How images are restored and their training noise is made.

    Attributes:
        steps: of the way from pure noise.
        offset: weight of a constant noise for each channel.
        gamma: ratio of signal to noise above which a step's weight falls.
        clean: share of the training images without an anomaly.
        residual: image and restoration to a map.
    """

    steps: int
    offset: float
    gamma: float
    clean: float
    residual: Callable[[Tensor, Tensor], Tensor]


class Conditioned(ManyTasks):
    """An ensemble of denoisers that see the corrupted image beside the noisy clean one.

    Args:
        networks: two images in a row of channels, and steps, to the noise.
        choices: names of the tasks that each network learns.
        parts: all tasks by name.
        fitting: a network and the name of its phase to the phase.
        schedule: of the noise.
        how: images are restored.
        multiple: of which the networks take sides.
    """

    def __init__(
        self, networks: Sequence[nn.Module], choices: Sequence[tuple[str, ...]],
        parts: dict[str, Any], fitting: Callable[[nn.Module, str], Any],
        schedule: DiffusionSchedule, how: Restoring, multiple: int,
    ) -> None:  # fmt: skip
        super().__init__(networks, choices, parts, False, fitting)
        self.schedule, self.how, self.multiple = schedule, how, multiple
        stride = len(schedule) // how.steps
        self.short = schedule.respaced(range(0, how.steps * stride, stride))

    def weights(self, t: Tensor) -> Tensor:
        """min(SNR, gamma) / SNR at the steps t (Hang et al. 2023)."""
        signal, noise = (self.schedule.table(name, t, t) for name in ("signal", "noise"))
        ratio = (signal / noise).square()
        return ratio.clamp_max(self.how.gamma) / ratio

    def noise(self, x: Tensor, batch: Batch) -> Tensor:
        """Training noise like x: standard normal, and a constant for each channel."""
        shift = batch.rng.normal((*x.shape[:2], *[1] * (x.ndim - 2)))
        return (batch.rng.normal(x.shape) + self.how.offset * shift).to(x)

    def loss(self, batch: Batch, phase: str, player: str) -> dict[str, Tensor]:
        network = self.networks[list(self._choices).index(phase)]
        image, objects = batch.image, batch.foreground
        donor, donor_objects = partners(image, objects, batch.position, batch.subject)
        task = self.corruption(phase, network.training)
        made = task(image, donor, batch.rng, objects, donor_objects)
        plain = (batch.rng.uniform((len(batch), 1)) < self.how.clean).to(image.device)
        given = torch.where(plain.reshape(-1, 1, 1, 1), image, made.image)
        x, _ = pad_to_multiple(image, self.multiple)
        given, _ = pad_to_multiple(given, self.multiple)
        t = batch.rng.integers(0, len(self.schedule), (len(batch),)).to(x.device)
        noise = self.noise(x, batch)
        said = network(torch.cat([self.schedule.diffuse(x, t, noise), given], 1), t)
        error = (said - noise).square().flatten(1).mean(1)
        return {"noise": (self.weights(t) * error).mean()}

    def restored(self, network: nn.Module, given: Tensor, batch: Batch) -> Tensor:
        """Walk from pure noise to an image, given another one."""
        s = self.short

        def predict(noisy: Tensor, t: Tensor) -> Guess:
            said = network(torch.cat([noisy, given], 1), s.times[t])
            return s.guess("epsilon", said, noisy, t)

        def noise(t: Tensor) -> Tensor:
            return batch.rng.normal(given.shape).to(given)

        return Walker(s, predict, noise).down(noise(s.times))

    @torch.no_grad()
    def maps(self, batch: Batch) -> Maps:
        x, cut = pad_to_multiple(batch.image, self.multiple)
        each = [self.restored(network, x, batch)[cut] for network in self.networks]
        maps = torch.stack([self.how.residual(batch.image, r) for r in each])
        restored = torch.stack(each).mean(0).clamp(0, 1)
        return Maps(maps.mean(0) * batch.foreground, reconstruction=restored)


@register(
    "img_cond_ddpm",
    paper="Baugh 2024",
    preprocess={"scaling": "percentile", "limit": 1.0},
    reduction="mean",
    presets={
        "code": {"data_range": 255.0},
        "laptop": {
            "size": 64, "width": 32, "multipliers": (1, 2, 2), "blocks": 1, "head_width": 16,
            "attention": (16,), "attention_up": (16,), "tasks": ("poisson_intra", "sink", "intensity"),
            "train_tasks": 2, "timesteps": 200, "sample_steps": 10, "steps": 300, "batch_size": 8,
            "lr": 1e-3, "residual": "absolute",
        },
    },
    tiny={
        "size": 32, "width": 16, "multipliers": (1, 2), "blocks": 1, "head_width": 8, "attention": (),
        "attention_up": (), "tasks": ("source", "intensity"), "train_tasks": 2,
        "timesteps": 20, "sample_steps": 4, "steps": 60, "batch_size": 4, "lr": 4e-3,
        "residual": "absolute", "ema": 0.95,
    },
    options=laid(size=128, multipliers=(1, 2, 2, 4), attention=(64, 32, 16))
    | training(steps=500_000, ema=0.9999),
)  # fmt: skip
def img_cond_ddpm(
    dims: int = 2,
    channels: int = 1,
    head_width: int = 8,
    attention_up: tuple[int, ...] = (128, 64, 32),
    tasks: tuple[str, ...] = FIVE,
    train_tasks: int = 3,
    timesteps: int = 1000,
    sample_steps: int = 50,
    noise_offset: float = 0.1,
    snr_gamma: float = 1.0,
    clean: float = 0.2,
    residual: Literal["ssim", "absolute"] = "ssim",
    data_range: float = 1.0,
    **options: Unpack[LaidTraining],
) -> Method:
    """Image-conditioned diffusion, trained to take synthetic anomalies away.

    Baugh et al., UNSURE workshop at MICCAI 2024: a denoising U-Net sees the noisy healthy image
    beside the same image with an anomaly of one of five tasks (those of ``many_tasks``), or in one
    case of five without any, and learns the noise, with a constant part for each channel and the
    weight min(SNR, 1) / SNR. At test it walks from pure noise to a restoration in 50 ancestral steps,
    given the image. For each choice of three tasks there is a network, kept at its best loss on the
    two others; the map is the mean of their 1 - SSIM.

    Departures:
        scans: all training scans for each network; other data sets of the blending task are the
            textures of other scans; the tasks are those of ``many_tasks``.
        SSIM: of images from 0 to 1; the release gives it a range of 255, so that its map hardly
            moves: ``code``.
        background: outside the foreground; in the release pixels at the minimum of their column in
            the batch.
        choice: by looks at the validation loss, without the moving average of the release, which
            starts at 5,000 updates and stops after 50,000 without gain.
        range: 0 to the 99th percentile become 0..1, what is above is cut; the maximum of a volume
            there. Restorations are cut to -1..1 on the way.
        attention: on the way up at other levels than on the way down, up to the full grid, as the
            release's list of blocks has it.

    Args:
        dims: spatial axes, 2.
        head_width: channels of a head.
        attention: cells of the grid along an axis where attention stands on the way down.
        attention_up: likewise on the way up.
        tasks: that are shared out, of the five names.
        train_tasks: how many of them each network learns.
        timesteps: steps of the schedule.
        sample_steps: steps of the way back.
        noise_offset: weight of a constant noise for each channel.
        snr_gamma: ratio of signal to noise above which a step's weight falls.
        clean: share of the training images without an anomaly.
        residual: 1 - ``ssim`` or ``absolute`` differences.
        data_range: of SSIM.
        lr: learning rate of AdamW with a weight decay of 0.01; the gradient's norm is cut at 1.
    """
    unknown = [name for name in tasks if name not in FIVE]
    if unknown:
        raise ArgumentError(
            f"img_cond_ddpm has no task '{unknown[0]}'.{nearest(unknown[0], FIVE)} "
            f"It has: {', '.join(FIVE)}."
        )
    up = attended(attention_up, options["size"], len(options["multipliers"]))
    layout = layout_of(
        options, head_width=head_width, attention_up=up, scale_shift=False, resample="conv"
    )
    apart = absolute
    if residual == "ssim":
        apart = functools.partial(padded_dissimilarity, data_range=data_range)
    known = five_tasks(0.1, (0.5, 5.0))
    return Conditioned(
        [
            GuidedUNet(2, 2 * channels, channels, layout)
            for _ in range(math.comb(len(tasks), train_tasks))
        ],
        list(itertools.combinations(tasks, train_tasks)),
        {name: known[name] for name in tasks},
        lambda network, name: diffusion_phase(
            name, network, weight_decay=0.01, clip=1.0, keep="best", **training_of(options)
        ),
        DiffusionSchedule(linear_betas(timesteps), "small"),
        Restoring(sample_steps, noise_offset, snr_gamma, clean, apart),
        layout.multiple,
    )
