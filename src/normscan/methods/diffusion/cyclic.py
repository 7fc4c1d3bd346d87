"""Cycles between modalities with masked conditional diffusion."""

from __future__ import annotations

from collections.abc import Callable
from types import MappingProxyType
from typing import Unpack

import torch
from torch import Tensor, nn

from normscan.methods.base import Batch, Maps, Method, Phase, Use
from normscan.methods.diffusion.engine import (
    LaidTraining,
    diffusion_phase,
    laid,
    layout_of,
    training,
    training_of,
)
from normscan.networks.blocks import pad_to_multiple
from normscan.networks.diffusion import DiffusionSchedule, Guess, Walker, linear_betas
from normscan.networks.guided import GuidedUNet
from normscan.registry import register


def stripes(height: int, width: int, thickness: int, stride: int) -> Tensor:
    """Stripes across and along an image, at even offsets, (N, 1, 1, H, W) bool.

    The last ones shrink at the edge.
    """
    found = []
    for axis, n in ((1, width), (0, height)):
        at = torch.arange(n)
        for start in range(0, n, stride):
            line = (at >= start) & (at < start + thickness)
            found.append(line.expand(height, -1) if axis else line[:, None].expand(-1, width))
    return torch.stack(found)[:, None, None]


class Cyclic(Method):
    """Translates an image, a stripe of it hidden, to another modality and back.

    Args:
        forward_network: noisy target beside the image, and steps, to the target.
        backward_network: target to image.
        schedule: of the noise.
        sample_steps: DDIM steps of a translation.
        thickness: pixels of a stripe.
        stride: pixels from a stripe to the next one.
        fitting: name of a phase and a network to the phase.
        multiple: of which the networks take sides.
    """

    uses = MappingProxyType({"target": Use()})

    def __init__(
        self, forward_network: nn.Module, backward_network: nn.Module, schedule: DiffusionSchedule,
        sample_steps: int, thickness: int, stride: int, targets: int,
        fitting: Callable[[str, nn.Module], Phase], multiple: int,
    ) -> None:  # fmt: skip
        super().__init__()
        self.translate, self.back, self.schedule = forward_network, backward_network, schedule
        apart = len(schedule) // sample_steps
        self.short = schedule.respaced(range(0, sample_steps * apart, apart))
        self.thickness, self.stride, self.targets = thickness, stride, targets
        self._fitting, self.multiple = fitting, multiple

    def phases(self) -> list[Phase]:
        return [self._fitting("translate", self.translate), self._fitting("back", self.back)]

    def seen(self, image: Tensor) -> tuple[Tensor, tuple[slice, ...]]:
        """Images from -3, where 1 becomes 3, and what cuts away their padding."""
        return pad_to_multiple(6 * image - 3, self.multiple)

    def loss(self, batch: Batch, phase: str, player: str) -> dict[str, Tensor]:
        assert batch.target is not None
        x, y = self.seen(batch.image)[0], self.seen(batch.target)[0]
        if phase == "back":
            return {"l2": (self.back(y) - x).square().mean()}
        masks = stripes(x.shape[2], x.shape[3], self.thickness, self.stride)[:, 0].to(x.device)
        mask = masks[batch.rng.integers(0, len(masks), (len(x),)).to(x.device)]
        t = batch.rng.integers(0, len(self.schedule), (len(x),)).to(x.device)
        noisy = self.schedule.diffuse(y, t, batch.rng.normal(y.shape).to(y))
        given = torch.where(mask, batch.rng.normal(x.shape).to(x), x)
        said = self.translate(torch.cat([noisy, given], 1), t)
        return {"l2": (said - y).square().mean()}

    def cycled(self, x: Tensor, mask: Tensor, start: Tensor, batch: Batch) -> Tensor:
        """Images back from the other modality, a stripe (1, 1, H, W) hidden on the way."""
        s = self.short

        def predict(noisy: Tensor, t: Tensor) -> Guess:
            given = torch.where(mask, batch.rng.normal(x.shape).to(x), x)
            said = self.translate(torch.cat([noisy, given], 1), s.times[t])
            return s.guess("x0", said, noisy, t, clip=False)

        result: Tensor = self.back(Walker(s, predict).down(start))
        return result

    @torch.no_grad()
    def maps(self, batch: Batch) -> Maps:
        x, cut = self.seen(batch.image)
        start = batch.rng.normal((len(x), self.targets, *x.shape[2:])).to(x)
        error, restored, times = torch.zeros_like(x), torch.zeros_like(x), 0
        for mask in stripes(x.shape[2], x.shape[3], self.thickness, self.stride).to(x.device):
            back = self.cycled(x, mask[0], start, batch)
            error += (back - x).square() * mask[0]
            restored += back * mask[0]
            times = times + mask[0]
        error, restored = error / times, (restored / times + 3) / 6
        return Maps(error.mean(1, keepdim=True)[cut], reconstruction=restored[cut])


@register(
    "mmccd",
    paper="Liang 2023",
    regime="paired-modality",
    preprocess={"scaling": "percentile", "percentile": 90.0, "limit": 10.0},
    postprocess=("erode=4",),
    presets={
        "laptop": {
            "size": 64, "multipliers": (1, 2, 4), "blocks": 1, "attention": (16,), "stride": 8,
            "timesteps": 100, "sample_steps": 10, "steps": 400, "batch_size": 8, "lr": 1e-3,
        },
    },
    tiny={
        "size": 32, "width": 8, "multipliers": (1, 2), "blocks": 1, "attention": (), "stride": 16,
        "thickness": 16, "dropout": 0.0, "timesteps": 20, "sample_steps": 3, "steps": 60,
        "batch_size": 4, "lr": 5e-3, "postprocess": ("foreground",),
    },
    options=laid(size=128, width=32, multipliers=(1, 1, 2, 3, 4))
    | training(steps=100_000, batch_size=32),
)  # fmt: skip
def mmccd(
    dims: int = 2,
    channels: int = 1,
    targets: int = 1,
    dropout: float = 0.1,
    thickness: int = 16,
    stride: int = 2,
    timesteps: int = 1000,
    sample_steps: int = 100,
    **options: Unpack[LaidTraining],
) -> Method:
    """Modality cycles with masked conditional diffusion (MMCCD).

    Liang et al., MICCAI Workshop 2023: from healthy slices in two modalities a diffusion model that
    says the clean image learns to translate one into the other, given the first with a stripe of 16
    pixels hidden by noise, and a second U-Net, told no step, learns the way back. At test each of
    128 stripes is hidden in turn, the image is translated by 100 DDIM steps from one noise, the
    stripe's noise being drawn anew in each, and translated back; the map is the squared error inside
    the stripes, averaged over those that cover a pixel, 4 pixels inside the foreground. New scans
    need the first modality alone.

    Departures:
        range: 0 to the 90th percentile of the foreground become -3..3, which is what the release's
            formula does; what is above the tenfold of it is cut.
        scale: the map as it is; the release maps the errors of all test scans to 0..1 together.
        stripe: of its own for each image of a batch; the release hides the same one in all.
        weights: the last ones, without a moving average, as the release saves them.

    Args:
        dims: spatial axes, 2.
        targets: channels of the other modalities.
        thickness: pixels of a stripe.
        stride: pixels from a stripe to the next one.
        timesteps: steps of the schedule.
        sample_steps: DDIM steps of a translation.
        steps: updates of each network.
        lr: learning rate of AdamW without weight decay.
    """
    layout = layout_of(options, dropout=dropout, groups=16)
    return Cyclic(
        GuidedUNet(2, channels + targets, targets, layout),
        GuidedUNet(2, targets, channels, layout),
        DiffusionSchedule(linear_betas(timesteps)),
        sample_steps,
        thickness,
        stride,
        targets,
        lambda name, network: diffusion_phase(
            name, network, weight_decay=0.0, **training_of(options)
        ),
        layout.multiple,
    )
