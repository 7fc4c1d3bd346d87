"""Reverse distillation: a decoder learns the features of healthy images from their summary."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any, Literal, TypedDict, Unpack, get_type_hints

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from normscan.methods.base import Batch, Maps, Method, Phase, Player
from normscan.methods.schedule import Schedule, phase, schedule
from normscan.networks.attention import SelfAttention
from normscan.networks.backbones import Backbone
from normscan.networks.reverse import ReverseDecoder, reverse_pair, stages_of, with_momentum
from normscan.objectives.cosine import distance_map, global_distance, global_loss, point_distance
from normscan.registry import register
from normscan.signatures import Options

STAGES = ("layer1", "layer2", "layer3")


class TwoRates(TypedDict):
    """The arguments of ``two_rates``, for ``**training: Unpack[TwoRates]`` in a signature."""

    lr: float
    encoder_lr: float
    weight_decay: float
    clip: float | None
    batch_size: int
    steps: int
    batch_norm: Literal["frozen", "train"]


two_rates = Options(
    get_type_hints(TwoRates),
    {
        "lr": 5e-4,
        "encoder_lr": 5e-5,
        "weight_decay": 1e-4,
        "clip": 1.0,
        "batch_size": 32,
        "steps": 4000,
        "batch_norm": "train",
    },
    {
        "lr": "learning rate of AdamW for all but the encoder.",
        "encoder_lr": "learning rate of AdamW for the encoder.",
        "weight_decay": "of AdamW.",
        "clip": "largest norm of the gradient; None for no clipping.",
        "batch_size": "images in an update.",
        "steps": "number of updates.",
        "batch_norm": "of the learning encoder: ``train``, or ``frozen``, which normalises with the "
        "statistics of its weights (for weights whose batch norms are folded it must).",
    },
)


def two_rate_phase(encoder: nn.Module, others: Sequence[nn.Module], training: TwoRates) -> Phase:
    """One phase in which AdamW trains an encoder slowly and the rest fast, for one loss.

    The weights of the last step are kept: choosing a step takes test labels in the released codes.

    Args:
        encoder: learns with ``encoder_lr``.
        others: learn with ``lr``.
        training: the shared arguments.
    """
    slow = {id(p) for p in encoder.parameters()}

    def optimizer(parameters: Iterable[nn.Parameter]) -> torch.optim.Optimizer:
        known = list(parameters)
        groups: list[dict[str, Any]] = [
            {"params": [p for p in known if id(p) in slow], "lr": training["encoder_lr"]},
            {"params": [p for p in known if id(p) not in slow]},
        ]
        return torch.optim.AdamW(groups, training["lr"], weight_decay=training["weight_decay"])

    player = Player("network", [encoder, *others], optimizer, clip=training["clip"])
    steps = training["steps"]
    return Phase(
        "distil",
        [player],
        steps=steps,
        batch_size=training["batch_size"],
        validate_every=max(1, steps // 10),
    )


def mean_map(
    targets: Sequence[Tensor], maps: Sequence[Tensor], mode: Literal["nearest", "bilinear"]
) -> Tensor:
    """Mean over the levels of the point distances on the finest grid, (B, 1, h, w)."""
    size = tuple(maps[0].shape[2:])
    corners = False if mode == "bilinear" else None
    return torch.stack(
        [
            F.interpolate(point_distance(a, b), size, mode=mode, align_corners=corners)
            for a, b in zip(targets, maps, strict=True)
        ]
    ).mean(0)


class ReverseDistillation(Method):
    """A frozen teacher, the embedding of its features, and a student that decodes it."""

    def __init__(self, teacher: Backbone, size: int, training: Schedule) -> None:
        super().__init__()
        self.teacher = teacher
        self.embedding, self.decoder = reverse_pair(stages_of(teacher, size))
        self._training = training

    def phases(self) -> list[Phase]:
        return [phase([self.embedding, self.decoder], self._training, "distil")]

    def features(self, image: Tensor) -> tuple[list[Tensor], list[Tensor]]:
        """The teacher's maps and the student's, the finest first."""
        targets = list(self.teacher(image).values())
        return targets, self.decoder(self.embedding(targets))

    def loss(self, batch: Batch, phase: str, player: str) -> dict[str, Tensor]:
        return {"cosine": global_loss(*self.features(batch.image))}

    @torch.no_grad()
    def maps(self, batch: Batch) -> Maps:
        targets, student = self.features(batch.image)
        return Maps(map=distance_map(targets, student, batch.image.shape[2:]))


@register(
    "rd4ad",
    paper="Deng 2022",
    presets={
        "laptop": {"backbone": "resnet18.tv_in1k", "size": 128, "batch_size": 8, "steps": 90},
    },
    postprocess=("smooth=4",),
    reduction="max",
    preprocess={"scaling": "percentile"},
    tiny={
        "backbone": "resnet18.tv_in1k", "weights": "random", "size": 64, "batch_size": 8,
        "taps": ("layer1", "layer2"), "steps": 40, "lr": 5e-3, "postprocess": ("smooth=1",),
    },
    options=schedule(lr=5e-3, beta1=0.5, batch_size=16, epochs=200),
)  # fmt: skip
def rd4ad(
    dims: int = 2,
    channels: int = 1,
    size: int = 256,
    backbone: str = "wide_resnet50_2.tv_in1k",
    taps: tuple[str, ...] = STAGES,
    weights: str = "hub",
    **training: Unpack[Schedule],
) -> Method:
    """Reverse distillation from a one-class embedding (RD4AD).

    The stages of a frozen network are squeezed into one small embedding, from which a decoder that
    mirrors the network restores them; it learns 1 - cosine of whole maps on healthy images. The map
    is the sum over the stages of 1 - cosine at each point; its largest value, smoothed, is the
    image's score. Deng and Li, CVPR 2022. As in the article the last epoch counts and images are
    neither cropped nor augmented; with ``steps`` instead of ``epochs`` the weights with the least
    healthy validation loss are kept. Each scan's 99th percentile becomes 1, where the article takes
    the values of the file.

    Args:
        dims: spatial axes, 2.
        size: pixels along each axis, a multiple of twice the stride of the last stage.
        backbone: timm name with the tag of its weights.
        taps: stages that are compared, the finest first, each at half the grid of the one before.
    """
    teacher = Backbone(backbone, taps, weights, channels=channels)
    return ReverseDistillation(teacher, size, training)


class EncoderDecoder(Method):
    """An encoder that learns and a decoder that restores its finer stages from the deepest."""

    def __init__(self, encoder: Backbone, size: int, momentum: float, training: TwoRates) -> None:
        super().__init__()
        self.encoder = encoder
        *finer, deepest = stages_of(encoder, size, deepest=0)
        self.decoder = ReverseDecoder(deepest.channels, finer, "bilinear")
        with_momentum(self, momentum)
        self._training = training

    def phases(self) -> list[Phase]:
        return [two_rate_phase(self.encoder, [self.decoder], self._training)]

    def features(self, image: Tensor) -> tuple[list[Tensor], list[Tensor]]:
        """The encoder's finer maps and the decoder's, the finest first."""
        *finer, deepest = self.encoder(image).values()
        return finer, self.decoder(deepest)

    def loss(self, batch: Batch, phase: str, player: str) -> dict[str, Tensor]:
        # The encoder learns only through what is decoded: its finer maps are detached as targets.
        return {"cosine": global_loss(*self.features(batch.image))}

    @torch.no_grad()
    def maps(self, batch: Batch) -> Maps:
        return Maps(map=mean_map(*self.features(batch.image), "bilinear"))


@register(
    "edc",
    paper="Guo 2023",
    presets={
        "laptop": {
            "backbone": "resnet18.tv_in1k", "taps": STAGES, "size": 128, "batch_size": 8,
            "steps": 110, "batch_norm": "frozen", "momentum": 0.1, "lr": 2e-3,
        },
    },
    reduction="max",
    preprocess={"scaling": "percentile"},
    tiny={
        "backbone": "resnet18.tv_in1k", "weights": "random", "size": 64, "batch_size": 8,
        "taps": STAGES, "steps": 30, "batch_norm": "frozen", "momentum": 0.1, "lr": 5e-3,
    },
    options=two_rates,
)  # fmt: skip
def edc(
    dims: int = 2,
    channels: int = 1,
    size: int = 256,
    backbone: str = "resnet50.tv_in1k",
    taps: tuple[str, ...] = (*STAGES, "layer4"),
    weights: str = "hub",
    momentum: float = 0.01,
    **training: Unpack[TwoRates],
) -> Method:
    """Encoder-decoder contrast: the encoder learns along with the decoder (EDC).

    A decoder restores the finer stages of a network from its deepest one and learns 1 - cosine of
    whole maps. The targets are detached, so the encoder learns, slowly, only through the deepest
    stage. The map is the mean over the stages of 1 - cosine at each point, on the finest grid. Guo
    et al., IEEE TMI 2023. The defaults are those of Br35H, brain MRI; the released code trains 6000
    steps with ``encoder_lr=1e-5`` and ``batch_norm="frozen"`` on OCT2017. Its reported result is the
    best of many looks at the test set, which can't be reproduced here: the last step counts. The
    image's score is the largest value of the map as it is enlarged to the image, a little below the
    one on its own grid; ISIC's mean is ``reduction="mean"``.

    Args:
        dims: spatial axes, 2.
        size: pixels along each axis, a multiple of the stride of the last stage.
        backbone: timm name with the tag of its weights.
        taps: stages, the finest first, each at half the grid of the one before; the last one is
            decoded, the others are compared.
        momentum: of all batch norms.
    """
    encoder = Backbone(
        backbone, taps, weights, channels=channels, trainable=True,
        batch_norm=training["batch_norm"],
    )  # fmt: skip
    return EncoderDecoder(encoder, size, momentum, training)


class EncoderTwoDecoders(Method):
    """An encoder that sees an image and its half turn, and a decoder with attention for each."""

    def __init__(
        self,
        encoder: Backbone,
        size: int,
        momentum: float,
        score: Literal["max", "mean"],
        training: TwoRates,
    ) -> None:
        super().__init__()
        self.encoder = encoder
        *finer, deepest = stages_of(encoder, size, deepest=0)
        self.decoders = nn.ModuleList(
            ReverseDecoder(deepest.channels, finer, "bilinear") for _ in range(2)
        )
        # The finest stage is decoded last, so nothing is injected there.
        self.attention = nn.ModuleList(
            nn.ModuleList(SelfAttention(s.channels) for s in finer[1:]) for _ in range(2)
        )
        with_momentum(self, momentum)
        self._score, self._training = score, training

    def phases(self) -> list[Phase]:
        return [two_rate_phase(self.encoder, [self.decoders, self.attention], self._training)]

    def view(self, image: Tensor, number: int) -> tuple[list[Tensor], list[Tensor], Tensor]:
        """The encoder's finer maps, the decoder's, and the encoder's deepest map.

        Args:
            image: (B, C, H, W).
            number: of the decoder.
        """
        *finer, deepest = self.encoder(image).values()
        attention, decoder = self.attention[number], self.decoders[number]
        assert isinstance(attention, nn.ModuleList)

        def skip(level: int, decoded: Tensor) -> Tensor:
            injected: Tensor = decoded + attention[level - 1](finer[level])
            return injected

        return finer, decoder(deepest, skip), deepest

    def loss(self, batch: Batch, phase: str, player: str) -> dict[str, Tensor]:
        views = [batch.image, batch.image.rot90(2, (2, 3))]
        (a, da, ea), (b, db, eb) = (self.view(x, i) for i, x in enumerate(views))
        return {
            "image": 0.5 * global_loss(a, da),
            "turned": 0.5 * global_loss(b, db),
            "consistency": 0.5 * global_distance(ea.mean((2, 3)), eb.mean((2, 3))),
        }

    @torch.no_grad()
    def maps(self, batch: Batch) -> Maps:
        views = [batch.image, batch.image.rot90(2, (2, 3))]
        maps = [mean_map(*self.view(x, i)[:2], "nearest") for i, x in enumerate(views)]
        flat = torch.stack(maps).flatten(2)
        score = flat.amax(2) if self._score == "max" else flat.mean(2)
        return Maps(map=(maps[0] + maps[1].rot90(2, (2, 3))) / 2, score=score.mean(0))


@register(
    "e2ad",
    paper="Tang 2025",
    presets={
        "laptop": {
            "backbone": "resnet18.tv_in1k", "taps": STAGES, "size": 128, "batch_size": 4,
            "steps": 90, "batch_norm": "frozen", "momentum": 0.1, "lr": 2e-3,
        },
    },
    reduction="max",
    preprocess={"scaling": "percentile"},
    tiny={
        "backbone": "resnet18.tv_in1k", "weights": "random", "size": 64, "batch_size": 4,
        "taps": STAGES, "steps": 30, "batch_norm": "frozen", "momentum": 0.1, "lr": 5e-3,
    },
    options=two_rates,
)  # fmt: skip
def e2ad(
    dims: int = 2,
    channels: int = 1,
    size: int = 256,
    backbone: str = "resnet50.tv_in1k",
    taps: tuple[str, ...] = (*STAGES, "layer4"),
    weights: str = "hub",
    momentum: float = 0.01,
    score: Literal["max", "mean"] = "max",
    **training: Unpack[TwoRates],
) -> Method:
    """Encoder, attention and two decoders, for an image and its half turn (E2AD).

    EDC with one decoder for the image and one for the image turned by 180 degrees; the stages
    between go through self-attention and are added where they are decoded, without detaching them;
    the mean deepest features of both views are drawn together. Tang et al., IEEE TMI 2025. The
    defaults are those of Br35H, brain MRI; the released code trains 2000 steps with
    ``encoder_lr=1e-5`` and ``batch_norm="frozen"`` on OCT2017. Its reported result is the best of
    many looks at the test set, which can't be reproduced here: the last step counts. The map of the
    turned view is turned back before both are averaged, which the code, without pixel maps, doesn't
    need.

    Args:
        dims: spatial axes, 2.
        size: pixels along each axis, a multiple of the stride of the last stage.
        backbone: timm name with the tag of its weights.
        taps: stages, the finest first, each at half the grid of the one before; the last one is
            decoded, the others are compared, and all but the finest of these get attention.
        momentum: of all batch norms.
        score: of an image, the mean over both views of the ``max`` of their map on its own grid, or
            of its ``mean`` (ISIC).
    """
    encoder = Backbone(
        backbone, taps, weights, channels=channels, trainable=True,
        batch_norm=training["batch_norm"],
    )  # fmt: skip
    return EncoderTwoDecoders(encoder, size, momentum, score, training)
