"""Reverse distillation with encoders that learn beside a frozen one."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Literal, Unpack

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from normscan.errors import ArgumentError
from normscan.methods.base import Batch, Maps, Method, Phase, Player, adam
from normscan.methods.features.reverse import STAGES, TwoRates, two_rate_phase, two_rates
from normscan.networks.backbones import Backbone
from normscan.networks.reverse import (
    Stage,
    convolved,
    initialise,
    reverse_pair,
    stages_of,
    trainable_copy,
)
from normscan.objectives.cosine import distance_map, global_loss, point_distance
from normscan.objectives.mining import mined_loss, mining_strength
from normscan.registry import register
from normscan.rng import Rng
from normscan.synthesis.perlin import perlin_masks, shuffled_tiles, texture_blend


class ReContrast(Method):
    """Each of two encoders, one frozen and one that learns, is restored from the other."""

    def __init__(self, frozen: Backbone, size: int, training: TwoRates) -> None:
        super().__init__()
        stages = stages_of(frozen, size)
        self.frozen = frozen
        self.encoder = trainable_copy(frozen, training["batch_norm"])
        self.embedding, self.decoder = reverse_pair(stages)
        self.heads = nn.ModuleList(
            nn.ModuleList(nn.Conv2d(s.channels, s.channels, 1) for s in stages) for _ in range(2)
        )
        initialise(self.heads)
        self.step: Tensor
        self.register_buffer("step", torch.zeros((), dtype=torch.long))
        self._training = training

    def phases(self) -> list[Phase]:
        others = [self.embedding, self.decoder, self.heads]
        return [two_rate_phase(self.encoder, others, self._training)]

    def features(self, image: Tensor) -> tuple[list[list[Tensor]], list[list[Tensor]]]:
        """Targets and what is decoded for them: first of the frozen encoder, then of the other."""
        learnt, frozen = list(self.encoder(image).values()), list(self.frozen(image).values())
        # One batch, so that both encoders share the statistics of the batch norms.
        both = [torch.cat(pair) for pair in zip(learnt, frozen, strict=True)]
        halves = [m.chunk(2) for m in self.decoder(self.embedding(both))]
        decoded = []
        for view, heads in enumerate(self.heads):
            assert isinstance(heads, nn.ModuleList)
            decoded.append([head(h[view]) for head, h in zip(heads, halves, strict=True)])
        return [frozen, learnt], decoded

    def loss(self, batch: Batch, phase: str, player: str) -> dict[str, Tensor]:
        alpha = mining_strength(int(self.step), self._training["steps"])
        if torch.is_grad_enabled():  # not while validating
            self.step += 1
        targets, decoded = self.features(batch.image)
        names = ("frozen", "learnt")
        return {
            name: mined_loss(t, d, alpha) / 2
            for name, t, d in zip(names, targets, decoded, strict=True)
        }

    @torch.no_grad()
    def maps(self, batch: Batch) -> Maps:
        targets, decoded = self.features(batch.image)
        size = batch.image.shape[2:]
        ways = [distance_map(t, d, size) for t, d in zip(targets, decoded, strict=True)]
        return Maps(map=ways[0] + ways[1])


@register(
    "recontrast",
    paper="Guo 2023",
    presets={
        "laptop": {
            "backbone": "resnet18.tv_in1k", "size": 128, "batch_size": 4, "steps": 70,
            "batch_norm": "frozen",
        },
    },
    postprocess=("smooth=4",),
    reduction="max",
    preprocess={"scaling": "percentile"},
    tiny={
        "backbone": "resnet18.tv_in1k", "weights": "random", "size": 64, "batch_size": 4,
        "taps": ("layer1", "layer2"), "steps": 60, "batch_norm": "frozen", "lr": 5e-3,
        "postprocess": ("smooth=1",),
    },
    options=two_rates(lr=2e-3, encoder_lr=1e-5, weight_decay=1e-5, clip=None, steps=1000),
)  # fmt: skip
def recontrast(
    dims: int = 2,
    channels: int = 1,
    size: int = 256,
    backbone: str = "wide_resnet50_2.tv_in1k",
    taps: tuple[str, ...] = STAGES,
    weights: str = "hub",
    **training: Unpack[TwoRates],
) -> Method:
    """Contrastive reconstruction of a frozen encoder and one that learns (ReContrast).

    Two encoders start with the same weights; one learns, slowly. The features of each go through
    the embedding and decoder of RD4AD and must restore those of the other, with an output
    convolution for each way; 1 - cosine of whole maps, whose gradient is stopped at points that are
    matched better than mean + alpha * std of the batch, alpha from -3 to 1 in the first tenth of the
    steps. The map is the sum of all six of 1 - cosine at each point. Guo et al., NeurIPS 2023. The
    defaults are those of APTOS, fundus images; on MVTec the article has ``batch_size=16`` and
    ``steps=2000``. The released code chooses ``batch_norm`` by data set with knowledge of the test
    (``frozen`` for OCT2017, ``train`` for APTOS and ISIC); its ``stable`` variant of the batch norm
    isn't built. ISIC's image score is ``reduction="mean"``, that of one model for many classes
    ``reduction="top_1_percent"``.

    Args:
        dims: spatial axes, 2.
        size: pixels along each axis, a multiple of twice the stride of the last stage.
        backbone: timm name with the tag of its weights.
        taps: stages that are compared, the finest first, each at half the grid of the one before.
    """
    return ReContrast(Backbone(backbone, taps, weights, channels=channels), size, training)


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
        self,
        expert: Backbone,
        size: int,
        similarity: bool,
        textures: str,
        batch_norm: Literal["frozen", "train"],
        phase: tuple[float, float, int, int],
    ) -> None:
        super().__init__()
        stages = stages_of(expert, size)
        self.expert, self.teacher = expert, trainable_copy(expert, batch_norm)
        self.embedding, self.decoder = reverse_pair(stages)
        self.injection = GuidedInjection(stages, similarity)
        for part in (self.embedding, self.decoder, self.injection):
            for module in part.modules():
                if isinstance(module, nn.Conv2d):
                    nn.init.xavier_normal_(module.weight)
        self._textures, self._phase = textures, phase
        self._found: list[Path] | None = None  # a saved detector needs no textures

    def phases(self) -> list[Phase]:
        self._texture_files()  # a wrong folder is told before training
        lr, teacher_lr, batch_size, steps = self._phase
        student = [self.embedding, self.decoder, self.injection]
        players = [
            Player("teacher", [self.teacher], adam(teacher_lr, betas=(0.5, 0.999))),
            Player("student", student, adam(lr, betas=(0.5, 0.999))),
        ]
        every = max(1, steps // 10)
        return [Phase("distil", players, steps, batch_size=batch_size, validate_every=every)]

    def _texture_files(self) -> list[Path]:
        if self._found is None:
            from normscan.io import EXTENSIONS

            paths = sorted(Path(self._textures).rglob("*")) if self._textures else []
            self._found = [p for p in paths if p.name.lower().endswith(EXTENSIONS)]
        if self._textures and not self._found:
            raise ArgumentError(
                f"textures={self._textures!r} is no folder with images. Give one, such as the images "
                "of DTD, or leave it empty to make textures of the training images."
            )
        return self._found

    def texture(self, image: Tensor, rng: Rng) -> Tensor:
        """Textures (B, C, H, W) for a batch, from the folder or from the batch itself."""
        files = self._texture_files()
        if not files:
            return shuffled_tiles(image, rng)
        from normscan.io import read_scan

        chosen = rng.integers(0, len(files), (len(image), 1))[:, 0]
        result = []
        for number in chosen.tolist():
            x = torch.from_numpy(read_scan(files[number]).data)
            if x.ndim != 3:
                raise ArgumentError(
                    f"the texture {files[number]} is no picture but has {x.ndim - 1} axes."
                )
            x = (x - x.min()) / (x.max() - x.min()).clamp_min(1e-6)
            x = x if len(x) == image.shape[1] else x.mean(0, keepdim=True)
            size = tuple(image.shape[2:])
            result.append(F.interpolate(x[None], size, mode="bilinear", antialias=True)[0])
        return torch.stack([x.expand(image.shape[1:]) for x in result]).to(image)

    def planted(self, batch: Batch) -> tuple[Tensor, Tensor]:
        """Images with planted anomalies and their masks (B, 1, H, W) bool."""
        mask = perlin_masks(batch.foreground, batch.rng)
        share = 0.8 * batch.rng.uniform((len(batch), 1, 1, 1)).to(batch.image)
        texture = self.texture(batch.image, batch.rng)
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
        "laptop": {
            "backbone": "resnet18.tv_in1k", "size": 96, "batch_size": 4, "steps": 40,
            "batch_norm": "frozen",
        },
    },
    postprocess=("smooth=4",),
    reduction="max",
    preprocess={"scaling": "percentile"},
    tiny={
        "backbone": "resnet18.tv_in1k", "weights": "random", "size": 64, "batch_size": 8,
        "taps": ("layer1", "layer2"), "steps": 30, "teacher_lr": 3e-3, "batch_norm": "frozen",
        "postprocess": ("smooth=1",),
    },
)  # fmt: skip
def urd(
    dims: int = 2,
    channels: int = 1,
    size: int = 256,
    backbone: str = "wide_resnet50_2.tv_in1k",
    taps: tuple[str, ...] = STAGES,
    weights: str = "hub",
    similarity: bool = True,
    textures: str = "",
    lr: float = 5e-3,
    teacher_lr: float = 1e-4,
    batch_norm: Literal["frozen", "train"] = "train",
    batch_size: int = 16,
    steps: int = 3000,
) -> Method:
    """Reverse distillation with an expert, a teacher and a student (URD).

    The teacher starts as a copy of the frozen expert and learns to agree with it on healthy images
    and to differ where an anomaly is planted; the student, RD4AD's embedding and decoder, restores
    healthy features of teacher and expert, helped by the teacher's features where they resemble what
    it decodes. The map is the sum over the stages of 1 - cosine of student and teacher at each
    point. Liu et al., AAAI 2025. Anomalies have the outlines of Perlin noise and a foreign texture,
    of which 20 to 100 % show. Departures: without a folder of ``textures`` (the article takes DTD)
    they are made of the other images of the batch, tiles shuffled, half of them inverted; anomalies
    lie in the foreground of every scan, where the article finds it with GrabCut or Otsu for objects
    only; teacher and student draw their own batches; the last step counts, where the released code
    takes the best epoch on the test set. The article's gate by similarity is off in the released
    training script, whose flag is inverted, and it trains 5000 steps: preset ``code``.

    Args:
        dims: spatial axes, 2.
        size: pixels along each axis, a multiple of twice the stride of the last stage.
        backbone: timm name with the tag of its weights.
        taps: stages that are compared, the finest first, each at half the grid of the one before.
        similarity: weigh the teacher's features by their cosine with what is decoded.
        textures: folder of images to plant, searched with its subfolders; empty for textures made of
            the training images. Each is scaled to 0..1.
        lr: learning rate of Adam for the student.
        teacher_lr: learning rate of Adam for the teacher.
        batch_norm: of the teacher in its own updates: ``train``, or ``frozen``, which normalises
            with the statistics of its weights (for weights whose batch norms are folded it must).
        batch_size: images in an update.
        steps: number of updates of each.
    """
    expert = Backbone(backbone, taps, weights, channels=channels)
    training = (lr, teacher_lr, batch_size, steps)
    return ExpertTeacherStudent(expert, size, similarity, textures, batch_norm, training)
