"""Stable Diffusion with two branches that learns a few anomalies and generates more, with masks."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Unpack

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from normscan.methods.base import Batch, Method, Phase
from normscan.methods.diffusion.engine import Training, diffusion_phase, training, training_of
from normscan.methods.diffusion.generated import (
    PICTURE,
    SEGMENT,
    TINY,
    GeneratedPairs,
    Generating,
    generating,
    segment_phase,
)
from normscan.networks.branches import BranchAttention, LowRank, adapt, branch
from normscan.networks.diffusion import Guess, Walker
from normscan.networks.stable import StableDiffusion
from normscan.registry import register


def parted_by_variance(x: Tensor, bins: int = 256) -> Tensor:
    """The threshold of each image that parts its values best (Otsu 1979), (B, 1, 1, 1).

    Args:
        x: (B, 1, H, W) from 0 to 1.
        bins: of the histogram; the threshold is the middle of one, and what exceeds it is above.
    """
    found = []
    middles = (torch.arange(bins, device=x.device) + 0.5) / bins
    for image in x.detach():
        counts = torch.histc(image.float(), bins, 0, 1)
        below = counts.cumsum(0)
        total, moment = counts * middles, (counts * middles).cumsum(0)
        above = below[-1] - below
        apart = moment / below.clamp_min(1) - (total.sum() - moment) / above.clamp_min(1)
        found.append(middles[(below * above * apart.square()).argmax()])
    return torch.stack(found).reshape(-1, 1, 1, 1)


class TwoBranches(GeneratedPairs):
    """Learns images and their anomalies alone, side by side, and generates both together.

    Args:
        prompts: empty, of the image, and of the anomaly alone.
        ranks: of the changes to attention and to the text tower.
        fitting: what learns of Stable Diffusion to its phase.
        sample_steps: of the generation.
        guidance: away from the empty prompt.
    """

    ids: Tensor

    def __init__(
        self, *parts: Any, prompts: tuple[str, str, str], rank: int,
        fitting: Callable[[nn.Module], Phase], sample_steps: int, guidance: float,
    ) -> None:  # fmt: skip
        super().__init__(*parts)
        self._fitting, self.sample_steps, self.guidance = fitting, sample_steps, guidance
        self.register_buffer("ids", self.stable.ids(prompts))
        branch(self.stable.unet, rank)
        adapt(self.stable.text, rank)

    def phases(self) -> list[Phase]:
        # U-Net and text tower hold what learns; as a part of its own it would be stored twice.
        kinds = BranchAttention, LowRank
        changes = nn.ModuleList(p for p in self.stable.modules() if isinstance(p, kinds))
        return [self._fitting(changes), *super().phases()]

    def loss(self, batch: Batch, phase: str, player: str) -> dict[str, Tensor]:
        if phase == SEGMENT:
            return super().loss(batch, phase, player)
        assert batch.lesion is not None
        flip = (batch.rng.uniform((len(batch), 1)) < 0.5).to(batch.image.device)
        flip = flip.reshape(-1, 1, 1, 1)
        x, _ = self.stable.seen(batch.image)
        lesion, _ = self.stable.seen(batch.lesion.to(x))
        x, lesion = (torch.where(flip, y.flip(-1), y) for y in (x, lesion))
        # Outside the anomaly the second image is 0 of -1 to 1.
        alone = 0.5 + (x - 0.5) * lesion
        pairs = torch.stack([x, alone], 1).flatten(0, 1)
        with torch.no_grad():
            code = self.stable.encode(pairs)
        s = self.stable.schedule
        t = batch.rng.integers(0, len(s), (len(batch),)).to(x.device).repeat_interleave(2)
        noise = batch.rng.normal((len(batch), 2, *code.shape[1:])).to(code).flatten(0, 1)
        told = self.stable.told(self.ids[1:]).repeat(len(batch), 1, 1)
        said = self.stable.unet(s.diffuse(code, t, noise), t, encoder_hidden_states=told).sample
        return {"noise": F.mse_loss(said, noise)}

    @torch.no_grad()
    def pair(self, batch: Batch) -> tuple[Tensor, Tensor]:
        x, cut = self.stable.seen(batch.image[:1])
        sides = [n // self.stable.factor for n in x.shape[2:]]
        empty, whole, alone = self.stable.told(self.ids)
        # Of two pairs, the first one told nothing.
        told = torch.stack([empty, empty, whole, alone])
        s = self.stable.schedule.shortened(1000, self.sample_steps).to(x.device)

        def predict(noisy: Tensor, t: Tensor) -> Guess:
            times = s.times[t].repeat(2)
            said = self.stable.unet(noisy.repeat(2, 1, 1, 1), times, encoder_hidden_states=told)
            plain, wanted = said.sample.chunk(2)
            steered = plain + self.guidance * (wanted - plain)
            return s.guess("epsilon", steered, noisy, t, clip=False)

        channels = self.stable.unet.config.in_channels
        noise = batch.rng.normal((1, 2, channels, *sides)).to(x)[0]
        image, part = self.stable.decode(Walker(s, predict).down(noise))[:, None]
        apart = (2 * part[cut] - 1).abs().amax(1, keepdim=True)
        return image[cut], apart > parted_by_variance(apart)


class Branching(Generating, Training):
    """The arguments of ``dual_ano_diff`` that it shares."""


@register(
    "dual_ano_diff",
    paper="Jin 2025",
    regime="few-anomalies",
    preprocess=PICTURE,
    presets={
        "laptop": {
            "size": 128, "steps": 20, "batch_size": 1, "sample_steps": 5, "pairs": 4,
            "segment_steps": 60, "segment_batch": 4, "segment_width": 16, "segment_lr": 1e-3,
        },
    },
    tiny={**TINY, "rank": 2, "sample_steps": 3, "steps": 40, "batch_size": 4, "lr": 1e-3},
    options=generating | training(steps=5000, batch_size=4, lr=2e-5),
)  # fmt: skip
def dual_ano_diff(
    dims: int = 2,
    channels: int = 1,
    rank: int = 32,
    prompt: str = "a vfx with sks",
    anomaly_prompt: str = "sks",
    sample_steps: int = 100,
    guidance: float = 2.5,
    **options: Unpack[Branching],
) -> Method:
    """Two branches of Stable Diffusion that generate an image and its anomaly together (DualAnoDiff).

    Jin et al., CVPR 2025, from a few anomalies with masks: Stable Diffusion 1.5 denoises an image
    and the same image outside its anomaly set to the middle grey, each with changes of rank 32 to
    its attention and a prompt of its own, and behind every attention each place looks at itself in
    both branches. The text tower has such changes too. It learns with one step and separate noises
    for both, at a rate of 2e-5 in 5,000 updates. Then it generates 500 pairs in 100 steps, and a
    U-Net learns from these and healthy images, half and half, by focal loss, to segment new images;
    their score is the highest mean of 21 by 21 pixels.

    Departures:
        mask: where the second branch differs from the middle grey by more than Otsu's threshold; the
            article's is that of a saliency network (U2-Net), which its code lacks too.
        sampler: DDIM; the release takes what the pipeline brings.
        size: the segmenter sees images of the size that they are generated in; 256 pixels there.
        choice: the segmenter's last weights; the release keeps those best on its test images.
        anomalies: one model of all that the cohort labels; the release has one for each kind, of
            the first third of its test images.
        background: its variant that keeps a background isn't part of it.

    Args:
        dims: spatial axes, 2.
        channels: of the image; three are taken as colours, of others the mean.
        rank: of the changes to attention and text tower.
        prompt: of the image.
        anomaly_prompt: of the anomaly alone.
        sample_steps: of the generation.
        guidance: away from the empty prompt.
        steps: updates of the diffusion model.
        lr: learning rate of AdamW with a weight decay of 0.01, of the diffusion model.
    """
    return TwoBranches(
        StableDiffusion(options["stable"], options["stable_weights"]),
        options["size"],
        options["pairs"],
        options["segment_width"],
        segment_phase(options),
        prompts=("", prompt, anomaly_prompt),
        rank=rank,
        fitting=lambda changes: diffusion_phase(
            "diffuse", changes, part="anomalous", weight_decay=0.01, clip=1.0, validate_every=0,
            **training_of(options),
        ),
        sample_steps=sample_steps,
        guidance=guidance,
    )  # fmt: skip
