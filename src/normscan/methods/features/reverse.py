"""Reverse distillation: a decoder learns the features of healthy images from their summary."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal, Unpack

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from normscan.methods.base import Batch, Maps, Method, Phase
from normscan.methods.features.common import (
    LAPTOP,
    PICTURE,
    SMOOTH,
    STAGES,
    TEST_RESNET,
    TINY,
    TINY_SMOOTH,
    Trained,
    TwoRated,
    backbone_of,
    tapped,
    two_rate_phase,
    two_rates,
)
from normscan.methods.schedule import phase, schedule
from normscan.networks.attention import SelfAttention
from normscan.networks.backbones import Backbone
from normscan.networks.reverse import ReverseDecoder, reverse_pair, stages_of, with_momentum
from normscan.objectives.cosine import distance_map, global_distance, global_loss, point_distance
from normscan.registry import register

FOUR_STAGES = tapped(backbone="resnet50.tv_in1k", taps=(*STAGES, "layer4"))
# Batch norms that are folded into the weights at hand can only stay as they are.
ENCODER_LAPTOP: dict[str, Any] = {
    **LAPTOP, "taps": STAGES, "batch_norm": "frozen", "momentum": 0.1, "lr": 2e-3,
}  # fmt: skip
ENCODER_TINY: dict[str, Any] = {
    **TINY, "backbone": TEST_RESNET, "taps": STAGES, "batch_norm": "frozen", "momentum": 0.1,
    "lr": 5e-3, "steps": 100,
}  # fmt: skip


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

    def __init__(self, teacher: Backbone, options: Trained) -> None:
        super().__init__()
        self.teacher = teacher
        self.embedding, self.decoder = reverse_pair(stages_of(teacher, options["size"]))
        self._training = options

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
    presets={"laptop": {**LAPTOP, "batch_size": 8, "steps": 90}},
    postprocess=SMOOTH,
    reduction="max",
    preprocess=PICTURE,
    tiny={
        **TINY_SMOOTH,
        "backbone": TEST_RESNET,
        "batch_size": 16,
        "steps": 100,
        "lr": 2e-2,
    },
    options=tapped | schedule(lr=5e-3, beta1=0.5, batch_size=16, epochs=200),
)
def rd4ad(dims: int = 2, channels: int = 1, **options: Unpack[Trained]) -> Method:
    """Reverse distillation from a one-class embedding (RD4AD).

    Deng and Li, CVPR 2022: the stages of a frozen WideResNet-50-2 are squeezed into one small
    embedding, from which a decoder that mirrors the network restores them; it learns 1 - cosine of
    whole maps on healthy pictures of 256 pixels, with Adam 5e-3, beta1 0.5, batches of 16, 200
    epochs. The map is the sum over the stages of 1 - cosine at each point, smoothed by a Gaussian of
    4 pixels; its largest value is the image's score.

    Departures:
        weights: with ``steps`` instead of ``epochs`` those with the least healthy validation loss
            are kept; with epochs the last ones, as there.

    Args:
        size: pixels along each axis, a multiple of twice the stride of the last stage.
        taps: stages that are compared, the finest first, each at half the grid of the one before.
    """
    return ReverseDistillation(backbone_of(options, channels), options)


class EncoderDecoder(Method):
    """An encoder that learns and a decoder that restores its finer stages from the deepest."""

    def __init__(self, encoder: Backbone, momentum: float, options: TwoRated) -> None:
        super().__init__()
        self.encoder = encoder
        *finer, deepest = stages_of(encoder, options["size"], deepest=0)
        self.decoder = ReverseDecoder(deepest.channels, finer, "bilinear")
        with_momentum(self, momentum)
        self._training = options

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
    presets={"laptop": {**ENCODER_LAPTOP, "batch_size": 8, "steps": 110}},
    reduction="max",
    preprocess=PICTURE,
    tiny={**ENCODER_TINY, "batch_size": 8},
    options=FOUR_STAGES | two_rates,
)
def edc(
    dims: int = 2, channels: int = 1, momentum: float = 0.01, **options: Unpack[TwoRated]
) -> Method:
    """Encoder-decoder contrast: the encoder learns along with the decoder (EDC).

    Guo et al., IEEE TMI 2023: a decoder restores the finer stages of a ResNet-50 from its deepest
    one and learns 1 - cosine of whole maps. The targets are detached, so the encoder learns, slowly,
    only through the deepest stage. The map is the mean over the stages of 1 - cosine at each point,
    on the finest grid; its largest value is the image's score. The defaults are those of Br35H,
    brain MRI, at 256 pixels; on OCT2017 the release trains 6000 steps with ``encoder_lr=1e-5`` and
    ``batch_norm="frozen"``; on ISIC the score is ``reduction="mean"``.

    Departures:
        weights: the last step's; the release reports the best of many looks at the test set.
        score: the largest value of the map as it is enlarged to the image, a little below the one
            on its own grid.

    Args:
        size: pixels along each axis, a multiple of the stride of the last stage.
        taps: stages, the finest first, each at half the grid of the one before; the last one is
            decoded, the others are compared.
        momentum: of all batch norms.
    """
    encoder = backbone_of(options, channels, trainable=True, batch_norm=options["batch_norm"])
    return EncoderDecoder(encoder, momentum, options)


class EncoderTwoDecoders(Method):
    """An encoder that sees an image and its half turn, and a decoder with attention for each."""

    def __init__(
        self,
        encoder: Backbone,
        momentum: float,
        score: Literal["max", "mean"],
        options: TwoRated,
    ) -> None:
        super().__init__()
        self.encoder = encoder
        *finer, deepest = stages_of(encoder, options["size"], deepest=0)
        self.decoders = nn.ModuleList(
            ReverseDecoder(deepest.channels, finer, "bilinear") for _ in range(2)
        )
        # The finest stage is decoded last, so nothing is injected there.
        self.attention = nn.ModuleList(
            nn.ModuleList(SelfAttention(s.channels) for s in finer[1:]) for _ in range(2)
        )
        with_momentum(self, momentum)
        self._score, self._training = score, options

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
    presets={"laptop": {**ENCODER_LAPTOP, "batch_size": 4, "steps": 90}},
    reduction="max",
    preprocess=PICTURE,
    tiny={**ENCODER_TINY, "batch_size": 4},
    options=FOUR_STAGES | two_rates,
)
def e2ad(
    dims: int = 2,
    channels: int = 1,
    momentum: float = 0.01,
    score: Literal["max", "mean"] = "max",
    **options: Unpack[TwoRated],
) -> Method:
    """Encoder, attention and two decoders, for an image and its half turn (E2AD).

    Tang et al., IEEE TMI 2025: EDC with one decoder for the image and one for the image turned by
    180 degrees; the stages between go through self-attention and are added where they are decoded,
    without detaching them; the mean deepest features of both views are drawn together. The defaults
    are those of Br35H, brain MRI; on OCT2017 the release trains 2000 steps with ``encoder_lr=1e-5``
    and ``batch_norm="frozen"``.

    Departures:
        weights: the last step's; the release reports the best of many looks at the test set.
        map: that of the turned view is turned back before both are averaged, which the release,
            without pixel maps, doesn't need.

    Args:
        size: pixels along each axis, a multiple of the stride of the last stage.
        taps: stages, the finest first, each at half the grid of the one before; the last one is
            decoded, the others are compared, and all but the finest of these get attention.
        momentum: of all batch norms.
        score: of an image, the mean over both views of the ``max`` of their map on its own grid, or
            of its ``mean`` (ISIC).
    """
    encoder = backbone_of(options, channels, trainable=True, batch_norm=options["batch_norm"])
    return EncoderTwoDecoders(encoder, momentum, score, options)
