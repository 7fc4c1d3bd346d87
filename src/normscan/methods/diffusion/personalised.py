"""Stable Diffusion that has learnt a few healthy images makes new ones healthy, and CLIP compares."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Unpack

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from normscan.methods.base import Batch, Maps, Method, Phase
from normscan.methods.diffusion.engine import Training, diffusion_phase, training, training_of
from normscan.networks.diffusion import Guess, Walker
from normscan.networks.stable import Clip, StableDiffusion
from normscan.progress import steps_of
from normscan.registry import register
from normscan.synthesis.augment import turned

HEALTHY_WORDS = ("{}", "healthy {}", "normal {}", "{} without findings", "unremarkable {}")
ILL_WORDS = ("abnormal {}", "diseased {}", "{} with a lesion", "{} with an anomaly", "damaged {}")
FRAMES = ("a photo of a {}", "a medical image of a {}", "a scan of a {}")


def prompts_of(words: tuple[str, ...], subject: str) -> list[str]:
    """Every frame with every word about a subject."""
    return [frame.format(word.format(subject)) for frame in FRAMES for word in words]


@dataclass(frozen=True)
class Personal:
    """How images are made healthy and compared.

    Attributes:
        level: steps that an image's code is diffused.
        sample_steps: DDIM steps of the way back.
        guidance: away from the empty prompt; 1 for none.
        pool: healthy images that are made.
        pixels: along each side that CLIP sees.
        pool_weight: of the distance to the pool.
        own_weight: of the distance to an image's own healthy form.
    """

    level: int
    sample_steps: int
    guidance: float
    pool: int
    pixels: int
    pool_weight: float
    own_weight: float


class Personalised(Method):
    """Compares an image with its healthy form, with a pool of healthy ones and with words.

    Args:
        stable: its U-Net learns.
        clip: that knows ``healthy`` prompts, and as many of the others behind them.
        prompt: of what is learnt.
        how: see there.
        fitting: the U-Net to its phase.
    """

    ids: Tensor
    bank: Tensor

    def __init__(
        self, stable: StableDiffusion, clip: Clip, prompt: str, how: Personal,
        fitting: Callable[[nn.Module], Phase],
    ) -> None:  # fmt: skip
        super().__init__()
        self.stable, self.clip, self.how, self._fitting = stable, clip, how, fitting
        self.stable.unet.requires_grad_(True)
        self.register_buffer("ids", stable.ids(["", prompt]))
        cells = (how.pixels // clip.patch) ** 2
        self.register_buffer("bank", torch.zeros(how.pool * cells, clip.width))

    def phases(self) -> list[Phase]:
        return [self._fitting(self.stable.unet)]

    def loss(self, batch: Batch, phase: str, player: str) -> dict[str, Tensor]:
        x, _ = self.stable.seen(turned(batch.image, batch.rng))
        s = self.stable.schedule
        with torch.no_grad():
            context = self.stable.told(self.ids[1:])
            code = self.stable.encode(x)
        t = batch.rng.integers(0, len(s), (len(x),)).to(x.device)
        noise = batch.rng.normal(code.shape).to(code)
        said = self.stable.said(s.diffuse(code, t, noise), t, context)
        return {"noise": F.mse_loss(said, noise)}

    def healthy(self, x: Tensor, batch: Batch) -> Tensor:
        """Healthy forms of images from 0 to 1, (B, 3, H, W)."""
        code, contexts = self.stable.encode(x), self.stable.told(self.ids)
        s = self.stable.schedule.shortened(self.how.level, self.how.sample_steps).to(x.device)

        def predict(noisy: Tensor, t: Tensor) -> Guess:
            said = self.stable.guided(noisy, s.times[t], contexts, self.how.guidance)
            return s.guess("epsilon", said, noisy, t, clip=False)

        walker = Walker(s, predict)
        noise = batch.rng.normal(code.shape).to(code)
        top = s.diffuse(code, walker.at(len(s) - 1, code), noise)
        return self.stable.decode(walker.down(top))

    @torch.no_grad()
    def fit(self, batches: Iterable[Batch]) -> None:
        """Make the pool of healthy images from the references in turn and keep its patches."""
        found: list[Tensor] = []
        references = list(batches)
        for step in steps_of("pool", self.how.pool):
            batch = references[step % len(references)]
            row = step // len(references) % len(batch)
            x, cut = self.stable.seen(batch.image[row : row + 1])
            found.append(self.clip(self.healthy(x, batch)[cut], self.how.pixels)[1].flatten(0, 2))
        self.bank = torch.cat(found)

    @torch.no_grad()
    def maps(self, batch: Batch) -> Maps:
        how = self.how
        x, cut = self.stable.seen(batch.image)
        own = self.healthy(x, batch)[cut]
        whole, patches = self.clip(x[cut], how.pixels)
        _, others = self.clip(own, how.pixels)
        apart = (1 - (patches * others).sum(3)) / 2
        near = (patches.flatten(1, 2) @ self.bank.T).amax(2).reshape(apart.shape)
        from_pool = (1 - near) / 2
        healthy, ill = (p.mean(0) for p in self.clip.prompted.chunk(2))
        logits = 100 * whole @ F.normalize(torch.stack([healthy, ill]), dim=1).T
        words = logits.softmax(1)[:, 1]
        low = how.pool_weight * from_pool + how.own_weight * apart
        size = x[cut].shape[2:]
        found = F.interpolate(low[:, None], size, mode="bilinear", align_corners=False)
        score = words + low.flatten(1).amax(1)
        shown = own if batch.image.shape[1] == 3 else own.mean(1, keepdim=True)
        return Maps(found, score, reconstruction=shown.expand(-1, batch.image.shape[1], -1, -1))


@register(
    "one_to_normal",
    paper="Li 2024",
    regime="few-shot",
    preprocess={"scaling": "file", "crop": "none", "fit": "stretch"},
    presets={
        "laptop": {
            "size": 128, "steps": 20, "sample_steps": 5, "pool": 4,
            "preprocess": {"crop": "foreground", "fit": "pad"},
        },
    },
    tiny={
        "size": 32, "stable": "tiny", "stable_weights": "random", "clip": "tiny",
        "clip_weights": "random", "clip_pixels": 32, "steps": 40, "batch_size": 2, "lr": 2e-3,
        "sample_steps": 3, "guidance": 1.0, "pool": 3,
        "preprocess": {"crop": "foreground", "fit": "pad"},
    },
    options=training(steps=800, batch_size=2, lr=5e-6),
)  # fmt: skip
def one_to_normal(
    dims: int = 2,
    channels: int = 1,
    size: int = 512,
    shots: int = 4,
    subject: str = "brain MRI",
    stable: str = "stable-diffusion-v1-5/stable-diffusion-v1-5",
    stable_weights: str = "hub",
    clip: str = "openai/clip-vit-large-patch14",
    clip_weights: str = "hub",
    clip_pixels: int = 240,
    level: int = 300,
    sample_steps: int = 15,
    guidance: float = 7.5,
    pool: int = 30,
    pool_weight: float = 1.0,
    own_weight: float = 0.5,
    **options: Unpack[Training],
) -> Method:
    """Anomaly personalisation: each image beside its own healthy form (One-to-Normal).

    Li et al., NeurIPS 2024: Stable Diffusion 1.5 learns 2 to 8 healthy images under a word of their
    own (DreamBooth). A new image is diffused over three tenths of the schedule and walked back,
    which personalises its healthy form. CLIP (ViT-L/14 at 240 pixels) compares patches with those of
    a pool of 30 healthy images made likewise, S_N, and of the image's own healthy form at the same
    places, S_P, and the image with words for healthy and anomalous, S_text; the score is
    S_text + S_N + 0.5 S_P.

    Departures:
        details: no code of it was released; its weights and which term each multiplies are second
            hand. Ours are the prompts, the guidance and the DDIM steps, half of one less the cosine
            as distance, the highest patch of an image, that the pool is made from the references in
            turn, and the training: the U-Net alone, without images of the class.
        projection: the article's small one of CLIP's features isn't known, so there is none.
        patches: those of CLIP's last layer at one scale, 17 by 17, since 240 is no multiple of 14.
        last step: of a walk ends at the clean code; diffusers ends at the noise of the schedule's
            first step.

    A saved detector holds all weights, 5.5 GB with those of CLIP.

    Args:
        dims: spatial axes, 2.
        channels: of the image; three are taken as colours, of others the mean.
        size: pixels along each axis.
        shots: healthy references.
        subject: what the scans show, in words.
        stable: repository of Stable Diffusion 1.x on the hub.
        stable_weights: ``hub``, a folder laid out like the repository, or ``random`` for tests.
        clip: repository of CLIP on the hub.
        clip_weights: as ``stable_weights``.
        clip_pixels: along each side that CLIP sees, cut down to whole patches.
        level: steps of 1000 that an image is diffused.
        sample_steps: DDIM steps of the way back.
        guidance: away from the empty prompt; 1 for none.
        pool: healthy images that are made.
        pool_weight: of the distance to them.
        own_weight: of the distance to an image's own healthy form.
        lr: learning rate of AdamW with a weight decay of 0.01.
    """
    prompts = [*prompts_of(HEALTHY_WORDS, subject), *prompts_of(ILL_WORDS, subject)]
    return Personalised(
        StableDiffusion(stable, stable_weights),
        Clip(clip, clip_weights, prompts),
        f"a photo of a sks {subject}",
        Personal(level, sample_steps, guidance, pool, clip_pixels, pool_weight, own_weight),
        lambda unet: diffusion_phase(
            "personalise",
            unet,
            weight_decay=0.01,
            clip=1.0,
            validate_every=0,
            **training_of(options),
        ),
    )
