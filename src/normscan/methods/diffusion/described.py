"""Anomalies that Stable Diffusion paints into healthy images by a description, without training."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Unpack

import torch
from torch import Tensor
from torch.nn import functional as F

from normscan.errors import ArgumentError
from normscan.methods.base import Batch, Method
from normscan.methods.diffusion.generated import (
    PICTURE,
    TINY,
    GeneratedPairs,
    Generating,
    generating,
    segment_phase,
)
from normscan.networks.branches import CrossAttention
from normscan.networks.diffusion import DiffusionSchedule, Guess, Walker
from normscan.networks.stable import Clip, StableDiffusion
from normscan.progress import steps_of
from normscan.registry import register
from normscan.synthesis.blur import gaussian_blur


def place_of(word: Tensor, prompt: Tensor) -> int:
    """Where the first token of a word stands in a prompt.

    Args:
        word: (n,) tokens of it alone, with those that begin and end a text.
        prompt: (n,) tokens.

    Raises:
        ArgumentError: it isn't there.
    """
    tokens = word[1 : 1 + int((word[1:] != word[-1]).sum())].tolist()
    all_tokens = prompt.tolist()
    for i in range(1, len(all_tokens)):
        if tokens and all_tokens[i : i + len(tokens)] == tokens:
            return i
    raise ArgumentError("the prompt doesn't hold the anomaly's word.")


def attention_of(share: Tensor, place: int) -> Tensor:
    """How much each cell looks at a word beside the others, smoothed, (B, h, w).

    Args:
        share: (B, h, w, n) attention to the tokens; the first and the last one don't count.
        place: of the word among them.
    """
    looks = (100 * share[..., 1:-1]).softmax(3)[:, None, ..., place - 1]
    # The exponent of the release's filter is the square of x over twice 0.5.
    return gaussian_blur(looks, looks.new_full((len(looks),), 0.5**0.5), (3, 3))[:, 0]


def turned_prompt(
    told: Tensor, detailed: Tensor, healthy: Tensor, place: int, moves: int
) -> Tensor:
    """Contexts whose anomaly differs from the healthy prompt as the detailed one does.

    Steps of 0.1 along the cosine between what differs at the anomaly's place and what differs on
    the mean of all places.

    Args:
        told: (B, n, D) with the anomaly's word.
        detailed: likewise, of the detailed description.
        healthy: likewise, of the healthy prompt.
        place: of the word.
        moves: steps.
    """
    told = told.clone()
    word, target = told[:, place].detach(), (detailed - healthy).mean(1)
    for _ in range(moves):
        with torch.enable_grad():
            word = word.detach().requires_grad_()
            cosine = F.cosine_similarity(word - healthy[:, place], target, dim=1)
            word = word - 0.1 * torch.autograd.grad((1 - cosine).sum(), word)[0]
    told[:, place] = word.detach()
    return told


@dataclass(frozen=True)
class Painting:
    """How an anomaly is painted; the numbers are the release's.

    Attributes:
        level: steps of 1000 that a healthy image's code is diffused.
        sample_steps: DDIM steps of the way back.
        guidance: away from the empty prompt.
        cells: along each side of the attention that is looked at.
        moves: of the code and the contexts in each step.
        prompt_moves: of the word before the first step.
        late: share of the steps behind which CLIP counts.
        rate: of these moves at first; it falls by 0.0001 a step.
        push: rate of the moves for attention in the first step.
        threshold: of the mask, of the attention's maximum.
        pixels: along each side that CLIP sees.
    """

    level: int
    sample_steps: int
    guidance: float
    cells: int
    moves: int
    prompt_moves: int
    threshold: float
    pixels: int
    late: float = 0.7
    rate: float = 0.02
    push: float = 50.0


class Described(GeneratedPairs):
    """Paints what a prompt describes where the U-Net looks at its word.

    Args:
        clip: that knows the detailed description.
        prompts: empty, with the anomaly's word, in detail, and healthy.
        word: of the anomaly.
        painting: see there.
    """

    ids: Tensor
    place: Tensor

    def __init__(
        self, *parts: Any, clip: Clip, prompts: tuple[str, str, str, str], word: str,
        painting: Painting,
    ) -> None:  # fmt: skip
        super().__init__(*parts)
        self.clip, self.painting = clip, painting
        ids = self.stable.ids([*prompts, word])
        known = self.stable.tokens is not None
        self.register_buffer("ids", ids[:4])
        self.register_buffer("place", torch.tensor(place_of(ids[4], ids[1]) if known else 1))
        self.looks = CrossAttention(self.stable.unet, painting.cells)

    def contexts(self) -> tuple[Tensor, Tensor]:
        """What the U-Net is told at first, and what it should be told at last, (2, n, D) each."""
        empty, plain, detailed, healthy = self.stable.told(self.ids)[:, None]
        moves = self.painting.prompt_moves
        turned = turned_prompt(plain, detailed, healthy, int(self.place), moves)
        return torch.cat([empty, turned]), torch.cat([empty, detailed])

    def looked(self, code: Tensor, t: Tensor, context: Tensor) -> Tensor:
        """How much each cell looks at the anomaly, (B, cells, cells)."""
        self.looks.kept.clear()
        self.stable.said(code, t, context)
        return attention_of(self.looks.taken(), int(self.place))

    def pushed(self, code: Tensor, t: Tensor, context: Tensor, weaker: float) -> Tensor:
        """A code moved till some cell looks at the anomaly; only in the first step."""
        found = self.looked(code, t, context)
        many = int((found >= found.mean()).sum())
        if found.max() >= 0.05 or 10 < many < 50:
            return code
        for rate in (*[self.painting.push * weaker] * 5, self.painting.push):
            code = code.detach().requires_grad_()
            lack = (1 - self.looked(code, t, context).max()).clamp_min(0)
            code = code - rate * torch.autograd.grad(lack, code)[0]
        return code.detach()

    def moved(
        self, code: Tensor, contexts: Tensor, detailed: Tensor, t: Tensor, step: int
    ) -> tuple[Tensor, Tensor]:
        """Code and contexts after the moves of one step, for attention and for CLIP."""
        p = self.painting
        rate = max(0.0001, p.rate - 0.0001 * step)
        for _ in range(p.moves):
            code = code.detach().requires_grad_()
            contexts = contexts.detach().requires_grad_()
            lack = (1 - self.looked(code, t, contexts[1:]).max()).clamp_min(0)
            cost = 0.5 * step / p.sample_steps * lack
            if step > p.late * p.sample_steps:
                image, _ = self.clip(self.stable.decode(code), p.pixels)
                cost = cost + 0.1 * (1 - (image @ self.clip.prompted.T)).mean()
            away = 1 - F.cosine_similarity(contexts, detailed, dim=1).mean()
            toward, told = torch.autograd.grad(cost, (code, contexts))
            (back,) = torch.autograd.grad(away, contexts)
            code, contexts = code - 2 * rate * toward, contexts - rate * (told + back)
        return code.detach(), contexts.detach()

    def pair(self, batch: Batch) -> tuple[Tensor, Tensor]:
        p = self.painting
        x, cut = self.stable.seen(batch.image[:1])
        inside, _ = self.stable.seen(batch.foreground[:1].to(x))
        with torch.no_grad():
            source = self.stable.encode(x)
        keep = F.interpolate(inside[:, :1], source.shape[2:], mode="nearest")
        contexts, detailed = self.contexts()
        s: DiffusionSchedule = self.stable.schedule.shortened(p.level, p.sample_steps).to(x.device)

        def predict(noisy: Tensor, t: Tensor) -> Guess:
            said = self.stable.guided(noisy, s.times[t], contexts, p.guidance)
            return s.guess("epsilon", said, noisy, t, clip=False)

        walker = Walker(s, predict)

        def noised(step: int) -> Tensor:
            noise = batch.rng.normal(source.shape).to(source)
            return s.diffuse(source, walker.at(step, source), noise)

        code, looks = noised(len(s) - 1), list[Tensor]()
        for down in steps_of("painting", len(s)):
            step = len(s) - 1 - down
            t = s.times[walker.at(step, code)]
            with torch.enable_grad():
                code, contexts = self.moved(code, contexts, detailed, t, down)
                if down == 0:
                    code = self.pushed(code, t, contexts[1:], 0.1**0.5)
            with torch.no_grad():
                looks.append(self.looked(code, t, contexts[1:]))
                code, _ = walker.step(code, step)
                code = code * keep + noised(step) * (1 - keep)
        self.looks.kept.clear()
        with torch.no_grad():
            made = self.stable.decode(code)
        shown = torch.stack(looks).mean(0)[:, None]
        shown = (
            F.interpolate(shown, x.shape[2:], mode="bilinear", align_corners=False) * inside[:, :1]
        )
        mask = shown > p.threshold * shown.amax()
        return made[cut], mask[cut]


@register(
    "anomaly_any",
    paper="Sun 2025",
    regime="few-shot",
    preprocess=PICTURE,
    presets={
        "code": {"prompt_moves": 0},
        "laptop": {
            "size": 256, "pairs": 2, "sample_steps": 4, "moves": 1, "segment_steps": 60,
            "segment_batch": 4, "segment_width": 16, "segment_lr": 1e-3,
        },
    },
    tiny={
        **TINY, "clip": "tiny", "clip_weights": "random", "clip_pixels": 32, "cells": 8,
        "sample_steps": 3, "moves": 1, "guidance": 2.0, "pairs": 3,
    },
    options=generating(pairs=100),
)  # fmt: skip
def anomaly_any(
    dims: int = 2,
    channels: int = 1,
    shots: int = 1,
    subject: str = "brain MRI",
    anomaly: str = "lesion",
    detail: str = "a bright irregular mass that displaces the tissue around it",
    clip: str = "openai/clip-vit-large-patch14",
    clip_weights: str = "hub",
    clip_pixels: int = 224,
    level: int = 300,
    sample_steps: int = 60,
    guidance: float = 12.5,
    moves: int = 10,
    prompt_moves: int = 20,
    cells: int = 16,
    threshold: float = 0.5,
    **options: Unpack[Generating],
) -> Method:
    """Anomalies that Stable Diffusion paints into a healthy image by a description (AnomalyAny).

    Sun et al., CVPR 2025, without training the diffusion model: the code of a healthy image is
    diffused over three tenths of the schedule and walked back in 60 of 200 steps under a prompt with
    the anomaly's word. In each step ten gradient steps move the code and what the U-Net is told:
    some cell shall look at the word, in the last third the decoded image shall be like the detailed
    description to CLIP (ViT-L/14), and what is told shall become that description. Outside the
    foreground the healthy image returns after each step. The numbers are the release's: what its
    thresholds and decays never reach is left out.

    Departures:
        prompt: before the first step 20 gradient steps turn the word towards the description. The
            release's cosine runs over the tokens, where it has no gradient, so its prompt stays:
            ``code``.
        detector: the release has only the generator. Ours is the segmenter that ``dual_ano_diff``
            evaluates with, on healthy references and generated images, half and half.
        mask: the mean over the steps of where the U-Net looks at the word, above half of its
            maximum, in the foreground; the release shows it and cuts it nowhere.
        sampler: DDIM; the release takes what the pipeline brings.
        weights: of version 1.5, as in the release's notebooks; its script names 1.4.

    Args:
        dims: spatial axes, 2.
        channels: of the image; three are taken as colours, of others the mean.
        shots: healthy references.
        subject: what the scans show, in words.
        anomaly: its word.
        detail: what it looks like.
        clip: repository of CLIP on the hub.
        clip_weights: as ``stable_weights``.
        clip_pixels: along each side that CLIP sees, cut down to whole patches.
        level: steps of 1000 that a healthy image is diffused.
        sample_steps: of the way back.
        guidance: away from the empty prompt.
        moves: gradient steps in each of them.
        prompt_moves: gradient steps of the word before.
        cells: along each side of the attention that is looked at; a quarter of the code's at 512.
        threshold: of the mask, of the attention's maximum.
    """
    healthy = f"a photo of a {subject}"
    plain = f"a photo of a {subject} with a {anomaly}"
    detailed = f"{plain}, {detail}"
    return Described(
        StableDiffusion(options["stable"], options["stable_weights"]),
        options["size"],
        options["pairs"],
        options["segment_width"],
        segment_phase(options),
        clip=Clip(clip, clip_weights, [detailed]),
        prompts=("", plain, detailed, healthy),
        word=anomaly,
        painting=Painting(
            level, sample_steps, guidance, cells, moves, prompt_moves, threshold, clip_pixels
        ),
    )  # fmt: skip
