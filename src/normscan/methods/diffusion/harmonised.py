"""Diffusion that is steered by where the image looks unhealthy: re-painting and harmonisation."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from typing import Any, Unpack

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from normscan.methods.base import Batch, Maps, Method
from normscan.methods.diffusion.engine import (
    Noising,
    PartialDiffusion,
    Process,
    Sampling,
    Training,
    diffusion_phase,
    noise_field,
    noising,
    sampling,
    training,
    training_of,
)
from normscan.methods.reconstruction import absolute
from normscan.networks.diffusion import DiffusionSchedule, Guess, linear_betas
from normscan.objectives.lpips import SpatialLPIPS
from normscan.progress import steps_of
from normscan.registry import register
from normscan.signatures import Options
from normscan.synthesis.blur import smooth


def dilated(x: Tensor, side: int) -> Tensor:
    """The largest value in a square around each pixel of (B, 1, H, W)."""
    return F.max_pool2d(x, side, 1, side // 2)


def region(x: Tensor, side: int = 13) -> Tensor:
    """The mean of a map and of its closing, dilated, (B, 1, H, W) from 0 to 1."""
    closed = -dilated(-dilated(x, side), side)
    return ((dilated(closed, side) + x) / 2).clamp(0, 1)


class Perceptive(PartialDiffusion):
    """Sees differences with LPIPS besides.

    Args:
        perceptual: the map of LPIPS.
        as_released: LPIPS sees -3 to 1, since the releases map the range twice; what else that
            means, the methods say.
    """

    def __init__(self, *parts: Any, perceptual: nn.Module, as_released: bool = False) -> None:
        super().__init__(*parts)
        self.perceptual, self.as_released = perceptual, as_released

    def unlike(self, x: Tensor, restored: Tensor) -> Tensor:
        """LPIPS of images from 0 to 1, (B, 1, H, W)."""
        a, b = 2 * x - 1, 2 * restored - 1
        if self.as_released:
            a, b = 2 * a - 1, 2 * b - 1
        result: Tensor = self.perceptual(a, b)
        return result


class Repainted(Perceptive):
    """Restores, then paints anew only where restoration and image differ.

    Args:
        threshold: of the mask; None for each image's 95th percentile.
        inner_level: steps that the restoration is diffused before it is painted anew.
        resamples: rounds in each step of that.
    """

    def __init__(
        self, *parts: Any, threshold: float | None, inner_level: int, resamples: int, **more: Any
    ) -> None:
        super().__init__(*parts, **more)
        self.threshold, self.inner_level, self.resamples = threshold, inner_level, resamples

    def product(self, x: Tensor, restored: Tensor) -> Tensor:
        """The residual over its 95th percentile, at most 1, times LPIPS; (B, 1, H, W)."""
        residual = absolute(x, restored)
        high = torch.quantile(residual.flatten(1), 0.95, dim=1).reshape(-1, 1, 1, 1)
        return (residual / high.clamp_min(1e-12)).clamp(0, 1) * self.unlike(x, restored)

    def mask(self, product: Tensor) -> Tensor:
        """Where the image is painted anew, (B, 1, H, W) bool."""
        if self.threshold is None:
            high = torch.quantile(product.flatten(1), 0.95, dim=1).clamp(0, 1)
            over = product > high.reshape(-1, 1, 1, 1)
        else:
            over = product > self.threshold
        return dilated(over.to(product), 3) > 0

    def repainted(self, x: Tensor, restored: Tensor, mask: Tensor, batch: Batch) -> Tensor:
        """RePaint (Lugmayr et al. 2022) of the mask, from the diffused restoration on.

        Args:
            x: (B, C, H, W), of which all outside the mask stays.
            restored: like x.
            mask: (B, 1, H, W) bool.
            batch: source of randomness.
        """
        p, steps = self.process, self.process.sample_steps
        if steps is not None:
            steps = max(2, round(steps * self.inner_level / p.level))
        short = self.schedule.shortened(self.inner_level, steps).to(x.device)
        walker = self.walker(x, batch, short)
        top = walker.at(len(short) - 1, x)
        known, now = x * ~mask, short.diffuse(restored, top, self.noise(x, top, batch))
        for passed in steps_of("step of painting", len(short) - 1):
            step = len(short) - 1 - passed
            t = walker.at(step - 1, x)
            for turn in range(self.resamples):
                kept = short.diffuse(known, t, self.noise(x, t, batch))
                now = torch.where(mask, walker.step(now, step)[0], kept)
                if turn < self.resamples - 1:
                    beta = short.table("beta", t, x)
                    now = (1 - beta).sqrt() * now + beta.sqrt() * self.noise(x, t, batch)
        # As in the release, the network isn't asked at step 0.
        return torch.where(mask, now, x)

    @torch.no_grad()
    def maps(self, batch: Batch) -> Maps:
        x, cut = self.seen(batch)
        first = self.restored(x, batch).clamp(0, 1)
        product = self.product(x, first)
        final = self.repainted(x, first, self.mask(product), batch).clamp(0, 1)
        return Maps((absolute(x, final) * product)[cut], reconstruction=final[cut])


class Harmonised(Perceptive):
    """Puts back on the way what looks healthy in the image.

    Args:
        at: steps, counted from 0, behind which that happens; also those whose maps count.
        every: further steps whose maps count are multiples of this.
    """

    def __init__(self, *parts: Any, at: Sequence[int], every: int, **more: Any) -> None:
        super().__init__(*parts, **more)
        self.at, self.every = tuple(at), every

    def said(self, noisy: Tensor, t: Tensor) -> Tensor:
        said = super().said(noisy, t)
        # The released trainer maps what the network says to 0..1, but its sampler doesn't.
        return (said + 1) / 2 if self.as_released and self.network.training else said

    def product(self, x: Tensor, clean: Tensor) -> Tensor:
        """The residual times smooth LPIPS of images from -1 to 1, over its maximum."""
        x, clean = ((y + 1) / 2 for y in (x, clean))
        apart = absolute(x, clean) * smooth(self.unlike(clean, x)).clamp(0, 1)
        return (apart / (apart.amax((1, 2, 3), keepdim=True) + 1e-8)).clamp(0, 1)

    @torch.no_grad()
    def maps(self, batch: Batch) -> Maps:
        p = self.process
        x, cut = self.seen(batch)
        short = self.schedule.shortened(p.level, p.sample_steps).to(x.device)
        full = p.sample_steps is None
        walker = self.walker(x, batch, self.schedule if full else short)
        s, top = walker.schedule, (p.level if full else len(short)) - 1
        field = self.noise(x, s.times[walker.at(top, x)], batch)
        # A step of a shorter walk stands for those that it leaves out.
        near = [int((short.times - n).abs().argmin()) for n in self.at if n < p.level]
        shown = [int((short.times - n).abs().argmin()) for n in range(0, p.level, self.every)]
        found: list[Tensor] = []

        def after(step: int, now: Tensor, guess: Guess) -> Tensor:
            if step in near or step in shown:
                found.append(self.product(x, guess.clean))
            if step not in near:
                return now
            keep = region(found[-1])
            mixed = keep * guess.clean + (1 - keep) * x
            mixed = mixed.clamp(0, 1) if self.as_released else mixed.clamp(-1, 1)
            return s.diffuse(mixed, walker.at(step, x), field)

        noisy = s.diffuse(x, walker.at(top, x), field)
        final = walker.down(noisy, top + 1, after)
        # The harmonic mean; one map of zero makes it zero.
        mean = len(found) / sum(1 / m for m in found)
        shown_image = ((final + 1) / 2).clamp(0, 1)
        return Maps(torch.as_tensor(mean)[cut].clamp(0, 0.999), reconstruction=shown_image[cut])


class Seeing(Noising, Sampling, Training):
    """The arguments that these methods share."""

    size: int
    widths: tuple[int, ...]
    attention_levels: tuple[bool, ...]
    blocks: int
    perceptual: str


seeing = (
    Options(
        {"size": int, "widths": tuple[int, ...], "attention_levels": tuple[bool, ...],
         "blocks": int, "perceptual": str},
        {"size": 128, "widths": (128, 256, 256), "attention_levels": (False, True, True),
         "blocks": 1, "perceptual": "squeezenet1_1.pth"},
        {
            "size": "pixels along each axis.",
            "widths": "channels of each level.",
            "attention_levels": "which levels have attention.",
            "blocks": "residual blocks in a level.",
            "perceptual": "weights of LPIPS: path of torchvision's ``squeezenet1_1``, ``pip:NAME`` "
            "for the network of a package with equal channel weights, or ``random``.",
        },
    )
    | noising
    | sampling
    | training(steps=100_000, batch_size=16)
)  # fmt: skip


def perceptive(
    kind: type[Perceptive], channels: int, centred: bool, more: dict[str, Any], **o: Unpack[Seeing]
) -> Method:
    """A method of these from its arguments."""
    from monai.networks.nets import DiffusionModelUNet

    network = DiffusionModelUNet(
        2, channels, channels, num_res_blocks=o["blocks"], channels=o["widths"],
        attention_levels=o["attention_levels"], norm_num_groups=min(32, o["widths"][0]),
        num_head_channels=list(o["widths"]),
    )  # fmt: skip
    field = noise_field(
        o["noise"], o["octaves"], o["persistence"], o["frequency"], o["noise_resolution"]
    )
    process = Process(
        o["level"], sampler=o["sampler"], sample_steps=o["sample_steps"], centred=centred,
        multiple=2 ** (len(o["widths"]) - 1),
    )  # fmt: skip
    fitting = functools.partial(diffusion_phase, "diffuse", **training_of(o))
    schedule = DiffusionSchedule(linear_betas(o["timesteps"]), "small")
    parts = (network, schedule, field, process, fitting, absolute)
    return kind(*parts, perceptual=SpatialLPIPS(o["perceptual"]), **more)


LAPTOP = {
    "size": 64, "widths": (16, 32, 64), "timesteps": 100, "lr": 1e-3, "steps": 600,
    "batch_size": 8, "perceptual": "pip:efficientnet-lite0",
}  # fmt: skip
TINY = {
    "size": 32, "widths": (8, 16), "attention_levels": (False, True), "timesteps": 10, "lr": 3e-3,
    "steps": 60, "batch_size": 4, "perceptual": "random",
}  # fmt: skip
_RANGE = {"scaling": "percentile", "limit": 1.0}


@register(
    "autoddpm",
    paper="Bercea 2023",
    preprocess=_RANGE,
    presets={
        "code": {"threshold": None, "as_released": True},
        "laptop": {**LAPTOP, "level": 21, "inner_level": 6, "threshold": None},
    },
    tiny={**TINY, "level": 5, "inner_level": 3, "resamples": 2, "threshold": None},
    options=seeing(level=201),
)
def autoddpm(
    dims: int = 2,
    channels: int = 1,
    threshold: float | None = 0.13,
    inner_level: int = 51,
    resamples: int = 5,
    as_released: bool = False,
    **options: Unpack[Seeing],
) -> Method:
    """Masks what a diffusion model changed, stitches and re-samples it (AutoDDPM).

    Bercea et al., ICML Workshop 2023: an image is diffused to step 200 of 1000 with Gaussian noise
    and walked back. Where the residual, over its 95th percentile and at most 1, times LPIPS is above
    0.13, and one pixel around, the restoration is diffused again, to step 50, and painted anew with
    five rounds in each step, while all else is the image, noised afresh. The map is the second
    residual times the first product.

    Departures:
        range: 0 to the 99th percentile become 0..1 and what is above is cut, as restorations are;
            the release pads slices with their minimum and knows no percentile. x_0 is cut to -1..1
            though images are in 0..1, as there.
        threshold: 0.13 can't run in the release, which takes one for each image; ``code`` takes what
            runs there, the 95th percentile of each product, and LPIPS of images that were mapped to
            -1..1 twice. LPIPS of several channels is the mean of theirs.
        attention: with its output projection, as MONAI has it; the release declares one that it never
            applies.
        augmentation: none; the release turns, moves, scales and flips.
        length: ours; 3,000 epochs of a set whose size isn't told.
        level: counts steps, so 201 and 51 begin at the steps 200 and 50 of the release.

    Args:
        dims: spatial axes, 2.
        threshold: of the mask; None for each image's 95th percentile.
        inner_level: steps that the restoration is diffused before it is painted anew.
        resamples: rounds in each step of the painting.
        as_released: LPIPS sees the range -3 to 1.
        lr: learning rate of Adam.
    """
    more = {
        "threshold": threshold, "inner_level": inner_level, "resamples": resamples,
        "as_released": as_released,
    }  # fmt: skip
    return perceptive(Repainted, channels, False, more, **options)


@register(
    "thor",
    paper="Bercea 2024",
    preprocess=_RANGE,
    presets={
        "code": {"as_released": True},
        "simplex": {"noise": "opensimplex", "level": 251, "harmonise": (200, 150, 100, 50)},
        "laptop": {**LAPTOP, "level": 36, "harmonise": (30, 15, 5), "every": 5},
    },
    tiny={**TINY, "level": 5, "harmonise": (3,), "every": 2},
    options=seeing(level=351),
)
def thor(
    dims: int = 2,
    channels: int = 1,
    harmonise: tuple[int, ...] = (300, 150, 50),
    every: int = 50,
    as_released: bool = False,
    **options: Unpack[Seeing],
) -> Method:
    """Diffusion with temporal harmonisation (THOR).

    Bercea et al., MICCAI 2024: an image from -1 to 1 is diffused to step 350 of 1000 and walked
    back. At the steps 300, 150 and 50 the residual of the predicted clean image times smooth LPIPS,
    over its maximum, closed and dilated, says where the prediction stays; elsewhere the image
    returns, and the mixture is diffused again with the first noise. The map is the harmonic mean of
    these maps and of those at every 50th step. ``simplex`` is the form with simplex noise.

    Departures:
        objective: the plain error of the noise, and mixtures cut to -1..1, as the article has it.
            The newer release trains (what the network says + 1) / 2 towards the noise, samples
            without that, cuts mixtures to 0..1 and lets LPIPS see images mapped to -1..1 twice:
            ``code``. The older one samples on 0..1 and takes the maximum of a batch.
        filter: of each image by itself; the release's also runs along the batch, which is one there.
        range: 0 to the 99th percentile become -1..1, what is above is cut.
        simplex: its third coordinate is the step in training as well; 1000 in the release.
        attention: with its output projection, as MONAI has it; the release declares one that it never
            applies.
        augmentation: none; the release turns, moves, scales and flips.
        length: ours; 1,500 epochs of a set whose size isn't told.
        level: counts steps, so 351 begins at the step 350 of the release.

    Args:
        dims: spatial axes, 2.
        harmonise: steps, counted from 0, behind which the image returns where it looks healthy.
        every: maps count at multiples of this step, too.
        as_released: as the newer release does it, see the departures.
        lr: learning rate of Adam.
    """
    more = {"at": harmonise, "every": every, "as_released": as_released}
    return perceptive(Harmonised, channels, True, more, **options)
