"""Diffusion of one patch while the rest of the slice stays in sight."""

from __future__ import annotations

import functools
from typing import Any, Unpack, get_type_hints

import torch
from torch import Tensor, nn

from normscan.methods.base import Batch, Method
from normscan.methods.diffusion.engine import (
    Noising,
    PartialDiffusion,
    Process,
    Training,
    diffusion_phase,
    noise_field,
    noising,
    training,
    training_of,
)
from normscan.methods.reconstruction import absolute
from normscan.networks.blocks import pad_to_multiple
from normscan.networks.diffusion import DiffusionSchedule, cosine_betas
from normscan.networks.guided import GuidedUNet, Layout
from normscan.registry import register
from normscan.rng import Rng
from normscan.signatures import Options


def half_absolute(x: Tensor, restored: Tensor) -> Tensor:
    """The absolute difference of images from -1 to 1 in the scale from 0 to 1, (B, 1, *spatial)."""
    return absolute(x, restored) / 2


def cells(x: Tensor, patch: int) -> Tensor:
    """The grid's patches as masks (N, 1, 1, H, W), the last ones as large as the rest allows."""
    down, across = (torch.arange(n, device=x.device) // patch for n in x.shape[2:])
    columns = int(across.max()) + 1
    number = down[:, None] * columns + across
    masks = torch.arange(int(number.max()) + 1, device=x.device).reshape(-1, 1, 1) == number
    return masks[:, None, None]


class Patched(PartialDiffusion):
    """Restores each patch from noise in one step, given the rest of the slice.

    Args:
        patch: pixels of a patch along each axis.
    """

    def __init__(self, *parts: Any, patch: int, **more: Any) -> None:
        super().__init__(*parts, **more)
        self.patch = patch

    def given(self, batch: Batch) -> Tensor:
        """What the network sees of training images before noise comes, as ``seen``."""
        return self.seen(batch)[0]

    def loss(self, batch: Batch, phase: str, player: str) -> dict[str, Tensor]:
        x, _ = self.seen(batch)
        given, t = self.given(batch), self.steps(batch)
        masks = cells(x, self.patch)[:, 0]
        mask = masks[batch.rng.integers(0, len(masks), (len(x),)).to(x.device)]
        noisy = self.schedule.diffuse(given, t, self.noise(x, t, batch))
        said = self.said(torch.where(mask, noisy, given), t)
        # The mean is over the whole slice, so a patch weighs by its share of it.
        return {"patch": ((said - x).abs() * mask).mean()}

    def restored(self, x: Tensor, batch: Batch) -> Tensor:
        t = torch.full((len(x),), self.process.level - 1, device=x.device)
        noisy = self.schedule.diffuse(x, t, self.noise(x, t, batch))
        masks = cells(x, self.patch)
        hidden = torch.where(masks, noisy, x)
        said = self.said(hidden.flatten(0, 1), t.repeat(len(masks))).unflatten(0, hidden.shape[:2])
        return (said * masks).sum(0)


def frequency_part(x: Tensor, half: Tensor, low: Tensor) -> Tensor:
    """What lies inside or outside a square of the spectrum.

    Args:
        x: (B, C, H, W).
        half: (B,) the square reaches from so many frequencies below 0 to one less above.
        low: (B,) bool: keep the inside, else the outside.
    """
    axes = (-2, -1)
    spectrum = torch.fft.fftshift(torch.fft.fft2(x), dim=axes)
    y, z = (torch.arange(n, device=x.device) - n // 2 for n in x.shape[2:])
    half = half.reshape(-1, 1, 1).to(x.device)
    inside = ((y >= -half[:, 0, :1]) & (y < half[:, 0, :1]))[:, :, None] & (
        (z >= -half[:, 0, :1]) & (z < half[:, 0, :1])
    )[:, None]
    keep = (inside == low.reshape(-1, 1, 1).to(x.device))[:, None]
    part: Tensor = torch.fft.ifft2(torch.fft.ifftshift(spectrum * keep, dim=axes)).real
    return part


def random_rectangles(foreground: Tensor, rng: Rng, most: int = 5, share: float = 0.18) -> Tensor:
    """Up to ``most`` rectangles inside the extent of each foreground, (B, 1, H, W) bool.

    Args:
        foreground: (B, 1, H, W) bool.
        rng: source of randomness.
        most: rectangles.
        share: of the foreground's rows, for the longest side; the shortest is half of it.
    """
    n = len(foreground)
    numbers = rng.integers(0, most + 1, (n,)).tolist()
    draws = rng.uniform((n, most, 4)).tolist()
    result = torch.zeros_like(foreground)
    for image, number, drawn, target in zip(foreground, numbers, draws, result, strict=True):
        rows, columns = (image[0].any(d).nonzero()[:, 0].tolist() for d in (1, 0))
        longest = int(len(rows) * share)
        if not longest:
            continue
        for where in drawn[:number]:
            (top, tall), (left, wide) = (
                _side(places, longest, *two)
                for places, two in ((rows, where[:2]), (columns, where[2:]))
            )
            target[0, top : top + tall, left : left + wide] = True
    return result


def _side(places: list[int], longest: int, at: float, size: float) -> tuple[int, int]:
    """Where a rectangle begins on an axis, five pixels inside where there is room, and its size."""
    free = max(1, places[-1] - 9 - longest - places[0])
    start = places[0] + min(5, max(0, places[-1] - places[0] - longest)) + int(at * free)
    shortest = longest // 2
    return start, shortest + int(size * (longest - shortest + 1))


class Masked(Patched):
    """Patches of the slice around the noisy one are hidden, or show a part of its spectrum."""

    def given(self, batch: Batch) -> Tensor:
        if not self.network.training:  # looks at the validation loss hide nothing
            return super().given(batch)
        rng, n = batch.rng, len(batch)
        half, low = rng.integers(2, 11, (n,)), rng.integers(0, 2, (n,)).bool()
        mask = random_rectangles(batch.foreground, rng)
        other = frequency_part(batch.image, half, low)
        hidden = torch.where(mask, other, batch.image) * batch.foreground
        some = mask.flatten(1).any(1).reshape(-1, 1, 1, 1)
        x = torch.where(some, hidden, batch.image)
        return pad_to_multiple(2 * x - 1, self.process.multiple)[0]


class Patching(Noising, Training):
    """The arguments that these methods share."""

    size: int
    width: int
    multipliers: tuple[int, ...]
    blocks: int
    head_width: int
    patch_size: int
    timesteps: int
    level: int


_own = {
    "size": 96, "width": 128, "multipliers": (1, 2, 2), "blocks": 3, "head_width": 64, "patch_size": 48,
    "timesteps": 1000, "level": 500,
}  # fmt: skip
_types = {name: get_type_hints(Patching)[name] for name in _own}
patching = (
    Options(
        _types,
        _own,
        {
            "size": "pixels along each axis.",
            "width": "channels of the first level.",
            "multipliers": "of the width, one per level.",
            "blocks": "residual blocks in a level.",
            "head_width": "channels of a head of the attention, which stands in the middle alone.",
            "patch_size": "pixels of a patch along each axis.",
            "timesteps": "steps of the cosine schedule.",
            "level": "steps that the patches of a test image are diffused.",
        },
    )
    | noising(noise="opensimplex")
    | training(batch_size=32)
)


def patched(
    kind: type[Patched], channels: int, network: nn.Module | None = None, **o: Unpack[Patching]
) -> Method:
    """A method of these from its arguments."""
    layout = Layout(o["width"], o["multipliers"], o["blocks"], head_width=o["head_width"])
    field = noise_field(
        o["noise"], o["octaves"], o["persistence"], o["frequency"], o["noise_resolution"], axes=2
    )
    fitting = functools.partial(diffusion_phase, "patches", keep="best", **training_of(o))
    process = Process(o["level"], objective="x0", multiple=layout.multiple)
    schedule = DiffusionSchedule(cosine_betas(o["timesteps"]))
    unet = GuidedUNet(2, channels, channels, layout)
    return kind(unet, schedule, field, process, fitting, half_absolute, patch=o["patch_size"])


LAPTOP = {
    "size": 64, "width": 32, "multipliers": (1, 2), "blocks": 1, "head_width": 32, "patch_size": 32,
    "frequency": 32.0, "steps": 600, "batch_size": 8, "lr": 1e-3,
}  # fmt: skip
TINY = {
    "size": 32, "width": 8, "multipliers": (1, 2), "blocks": 1, "head_width": 8, "patch_size": 16,
    "frequency": 16.0, "octaves": 3, "timesteps": 20, "level": 10, "steps": 60,
    "batch_size": 4, "lr": 4e-3, "postprocess": ("foreground",),
}  # fmt: skip
_CHAIN = {
    "preprocess": {"scaling": "percentile"},
    "postprocess": ("erode=3", "median=5"),
    "smallest_component": 7,
}


@register(
    "pddpm",
    paper="Behrendt 2023",
    presets={"laptop": LAPTOP},
    tiny=TINY,
    options=patching(steps=20_800),
    **_CHAIN,  # type: ignore[arg-type]
)
def pddpm(dims: int = 2, channels: int = 1, **options: Unpack[Patching]) -> Method:
    """Patched diffusion: each patch is restored from noise, given the rest of the slice (pDDPM).

    Behrendt et al., MIDL 2023: only one patch of a slice, half as wide, is diffused, with simplex
    noise on a cosine schedule of 1000 steps, and a U-Net says the clean slice; the absolute error
    counts in the patch alone. At test each of the four patches is diffused to step 500 and restored
    in one pass; they are put together, and the map is the absolute difference, eroded by 3 pixels,
    median filtered and rid of components of 7 voxels or less. All patches of all slices go through
    the network in one batch.

    Departures:
        field: of its own for each image and channel; the release repeats one over a batch, in half
            precision. Its field has no third coordinate, so nor has ours.
        range: 0 to the 99th percentile become 0..1, unclipped; the release takes the 1st to the 99th
            in the brain of a volume and resamples after that to 96 x 96 x 50 with overshoot. The
            values are mapped to -1..1 inside, as there.
        length: as many updates as 1,600 epochs of its 387 volumes, one slice each, in batches of 32.
        score: the mean of the map in the foreground, as there; its slice-wise figures take another
            axis.
        preparation: registration, N4 and curvature flow are not part of it.

    Args:
        dims: spatial axes, 2.
        channels: of the image; each has a noise field of its own.
        noise: of the patch; the article's is simplex noise, in its release OpenSimplex.
        lr: learning rate of Adam.
    """
    return patched(Patched, channels, **options)


@register(
    "mddpm",
    paper="Iqbal 2023",
    presets={"laptop": LAPTOP},
    tiny=TINY,
    options=patching(steps=115_200),
    **_CHAIN,  # type: ignore[arg-type]
)
def mddpm(dims: int = 2, channels: int = 1, **options: Unpack[Patching]) -> Method:
    """Patched diffusion that trains with parts of the slice hidden (mDDPM).

    Iqbal et al., MICCAI-MLMI 2023, on the network and the code of ``pddpm``: before noise comes, up
    to five rectangles inside the brain, 9 to 18 % of its height long, show the slice without its low
    frequencies or without its high ones, a square of 4 to 20 frequencies; what they show is cut to the
    brain. The network says the clean slice. Nothing is hidden at test, where all is as in ``pddpm``.

    Departures:
        of ``pddpm``: field, range, score and preparation, as listed there.
        loss: without the constant difference between the hidden and the clean slice outside the
            patch, which the release adds and which has no gradient.
        small foregrounds: rectangles move towards the edge where five pixels beside them find no
            room, and a slice without foreground is left as it is; the release ends with an error.
        length: as many updates as 1,600 epochs of 387 volumes listed six times each, as its loader
            does, in batches of 32.

    Args:
        dims: spatial axes, 2.
        channels: of the image; each has a noise field of its own.
        noise: of the patch; the article's is simplex noise, in its release OpenSimplex.
        lr: learning rate of Adam.
    """
    return patched(Masked, channels, **options)
