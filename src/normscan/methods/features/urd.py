"""Reverse distillation with an expert beside the teacher, which learns from planted textures."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Literal, TypedDict, Unpack, get_type_hints

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from normscan.methods.base import Batch, Maps, Method, Phase, Player, adam
from normscan.methods.features.common import (
    LAPTOP,
    PICTURE,
    SMOOTH,
    TEST_RESNET,
    TINY_SMOOTH,
    Tapped,
    backbone_of,
    tapped,
)
from normscan.methods.synthesis.textures import Textures
from normscan.networks.backbones import Backbone
from normscan.networks.reverse import Stage, convolved, reverse_pair, stages_of, trainable_copy
from normscan.objectives.cosine import distance_map, global_loss, point_distance
from normscan.registry import register
from normscan.signatures import Options
from normscan.synthesis.perlin import perlin_masks, texture_blend


class Rates(TypedDict):
    """The training of ``urd``."""

    lr: float
    teacher_lr: float
    batch_norm: Literal["frozen", "train"]
    batch_size: int
    steps: int


class Urd(Tapped, Rates):
    """The arguments of ``tapped`` and the training of ``urd``."""


RATES = Options(
    get_type_hints(Rates),
    {"lr": 5e-3, "teacher_lr": 1e-4, "batch_norm": "train", "batch_size": 16, "steps": 3000},
    {
        "lr": "learning rate of Adam for the student.",
        "teacher_lr": "learning rate of Adam for the teacher.",
        "batch_norm": "of the teacher in its own updates: ``train``, or ``frozen``, which normalises "
        "with the statistics of its weights (for weights whose batch norms are folded it must).",
        "batch_size": "images in an update.",
        "steps": "number of updates of each.",
    },
)


@contextmanager
def evaluating(module: nn.Module) -> Iterator[None]:
    """Within it a module is in evaluation mode."""
    mode = module.training
    module.eval()
    try:
        yield
    finally:
        module.train(mode)


def masked_distance(targets: Sequence[Tensor], maps: Sequence[Tensor], mask: Tensor) -> Tensor:
    """Sum over the levels of mean |1 - cos - M|: near where nothing was planted, else orthogonal.

    The mask M is brought from level to level bilinearly and made binary at 0.5 each time.

    Args:
        targets: (B, C, h, w) per level, the finest first.
        maps: of the same shapes.
        mask: (B, 1, H, W) bool, true where something was planted.
    """
    level, terms = mask.to(maps[0].dtype), []
    for a, b in zip(targets, maps, strict=True):
        level = F.interpolate(level, b.shape[2:], mode="bilinear", align_corners=True)
        level = (level >= 0.5).to(level)
        terms.append((point_distance(a, b) - level).abs().mean())
    return torch.stack(terms).sum()


class GuidedInjection(nn.Module):
    """What the teacher knows, let into the decoder where both agree.

    Args:
        stages: of the teacher, the finest first.
        gated: weigh the teacher's features by their cosine with the decoder's; else the code's
            ungated form.
    """

    def __init__(self, stages: Sequence[Stage], gated: bool) -> None:
        super().__init__()
        widths = [s.channels for s in stages]
        deeper = widths[1:]
        pairs = zip(widths, deeper, strict=False)
        self.down = nn.ModuleList(convolved(a, b, 1) for a, b in pairs)
        self.mix = nn.ModuleList(convolved(c, c) for c in deeper)
        self.gate = nn.ModuleList(convolved(c, c) for c in deeper) if gated else None
        self.fuse = nn.ModuleList(convolved(2 * c, c) for c in deeper)

    def forward(self, level: int, decoded: Tensor, features: Sequence[Tensor]) -> Tensor:
        """What the next group of the decoder gets, (B, C, h, w).

        Args:
            level: number of the stage, 1 or more.
            decoded: (B, C, h, w) of that stage.
            features: of the teacher, the finest first.
        """
        i = level - 1
        finer = F.interpolate(features[i], scale_factor=0.5, mode="bilinear")
        known = self.mix[i](features[level] + self.down[i](finer))
        if self.gate is not None:
            near = 1 - point_distance(decoded, features[level]).detach()
            known = self.gate[i](known * near + decoded * (1 - near))
        injected: Tensor = self.fuse[i](torch.cat([decoded, known], 1))
        return injected


class ExpertTeacherStudent(Method):
    """A frozen expert, a teacher that learns to tell planted anomalies, and a reverse student."""

    def __init__(
        self, expert: Backbone, similarity: bool, textures: Textures, options: Urd
    ) -> None:
        super().__init__()
        stages = stages_of(expert, options["size"])
        self.expert, self.teacher = expert, trainable_copy(expert, options["batch_norm"])
        self.embedding, self.decoder = reverse_pair(stages)
        self.injection = GuidedInjection(stages, similarity)
        for part in (self.embedding, self.decoder, self.injection):
            for module in part.modules():
                if isinstance(module, nn.Conv2d):
                    nn.init.xavier_normal_(module.weight)
        self.textures, self._training = textures, options

    def phases(self) -> list[Phase]:
        self.textures.files()  # a wrong folder is told before training
        t = self._training
        student = [self.embedding, self.decoder, self.injection]
        players = [
            Player("teacher", [self.teacher], adam(t["teacher_lr"], betas=(0.5, 0.999))),
            Player("student", student, adam(t["lr"], betas=(0.5, 0.999))),
        ]
        steps = t["steps"]
        every = max(1, steps // 10)
        return [Phase("distil", players, steps, batch_size=t["batch_size"], validate_every=every)]

    def planted(self, batch: Batch) -> tuple[Tensor, Tensor]:
        """Images with planted anomalies and their masks (B, 1, H, W) bool."""
        mask = perlin_masks(batch.foreground, batch.rng)
        share = 0.8 * batch.rng.uniform((len(batch), 1, 1, 1)).to(batch.image)
        texture = self.textures.like(batch.image, batch.rng)
        return texture_blend(batch.image, texture, mask, share), mask

    def student(self, features: Sequence[Tensor]) -> list[Tensor]:
        """What the student decodes of the teacher's features, the finest first."""

        def between(level: int, decoded: Tensor) -> Tensor:
            injected: Tensor = self.injection(level, decoded, features)
            return injected

        decoded: list[Tensor] = self.decoder(self.embedding(features), between)
        return decoded

    def loss(self, batch: Batch, phase: str, player: str) -> dict[str, Tensor]:
        x = batch.image
        planted, mask = self.planted(batch)
        with torch.no_grad():
            expert = list(self.expert(x).values())
        if player == "teacher":
            with torch.no_grad():
                expert_planted = list(self.expert(planted).values())
            normal, changed = (list(self.teacher(i).values()) for i in (x, planted))
            near = [point_distance(a, b).mean() for a, b in zip(expert, normal, strict=True)]
            return {
                "normal": torch.stack(near).sum(),
                "planted": masked_distance(expert, changed, mask),
                "expert": global_loss(expert_planted, changed),
            }
        with torch.no_grad(), evaluating(self.teacher):
            normal, changed = (list(self.teacher(i).values()) for i in (x, planted))
        students = [self.student(features) for features in (normal, changed)]
        return {
            "teacher": torch.stack([global_loss(normal, s) for s in students]).sum(),
            "expert": torch.stack([global_loss(expert, s) for s in students]).sum(),
        }

    @torch.no_grad()
    def maps(self, batch: Batch) -> Maps:
        teacher = list(self.teacher(batch.image).values())
        return Maps(map=distance_map(teacher, self.student(teacher), batch.image.shape[2:]))


@register(
    "urd",
    paper="Liu 2025",
    presets={
        "code": {"similarity": False, "steps": 5000},
        "laptop": {**LAPTOP, "size": 96, "batch_size": 4, "steps": 40, "batch_norm": "frozen"},
    },
    postprocess=SMOOTH,
    reduction="max",
    preprocess=PICTURE,
    tiny={
        **TINY_SMOOTH, "backbone": TEST_RESNET, "batch_size": 8, "steps": 40, "lr": 1e-2,
        "teacher_lr": 3e-3,
        "batch_norm": "frozen",
    },
    options=tapped | RATES,
)  # fmt: skip
def urd(
    dims: int = 2,
    channels: int = 1,
    similarity: bool = True,
    textures: str = "",
    **options: Unpack[Urd],
) -> Method:
    """Reverse distillation with an expert, a teacher and a student (URD).

    Liu et al., AAAI 2025: the teacher starts as a copy of the frozen expert and learns to agree with
    it on healthy images and to differ where an anomaly is planted; the student, RD4AD's embedding and
    decoder, restores healthy features of teacher and expert, helped by the teacher's features where
    they resemble what it decodes. Anomalies have the outlines of Perlin noise and a foreign texture,
    of which 20 to 100 % show. The map is the sum over the stages of 1 - cosine of student and teacher
    at each point, smoothed. The gate by similarity is off in the released training script, whose flag
    is inverted, and it trains 5000 steps, 10,000 for two of MVTec's classes: preset ``code``.

    Departures:
        textures: without a folder of ``textures`` (the article takes DTD) they are made of the other
            images of the batch, tiles shuffled, half of them inverted.
        place: anomalies lie in the foreground of every scan; the article finds it with GrabCut or
            Otsu for objects only.
        batches: teacher and student draw their own.
        weights: the last step's; the release takes the best epoch on the test set.

    Args:
        size: pixels along each axis, a multiple of twice the stride of the last stage.
        taps: stages that are compared, the finest first, each at half the grid of the one before.
        similarity: weigh the teacher's features by their cosine with what is decoded.
        textures: folder of images to plant, searched with its subfolders; empty for textures made of
            the training images. Each is scaled to 0..1.
    """
    expert = backbone_of(options, channels)
    return ExpertTeacherStudent(expert, similarity, Textures(textures), options)
