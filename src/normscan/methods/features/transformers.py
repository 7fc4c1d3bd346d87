"""Transformers that restore the features of a frozen network."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple, Unpack

import torch
from torch import Tensor
from torch.nn import functional as F

from normscan.errors import ArgumentError
from normscan.methods.base import Batch, Maps, Method, Phase
from normscan.methods.features.common import (
    FILLED,
    LAPTOP,
    LITE0_STAGES,
    PICTURE,
    STAGES,
    TEST_RESNET,
    TINY,
    Trained,
    backbone_of,
    lite0,
    tapped,
)
from normscan.methods.schedule import Schedule, phase, schedule
from normscan.networks.aggregation import concatenated
from normscan.networks.attention_layers import MaskedTransformer, TokenDecoder, Tokens
from normscan.networks.backbones import Backbone
from normscan.objectives.cosine import damped, distance_map, global_distance, point_distance
from normscan.objectives.optimizers import dropped, stable_adamw, warm_cosine
from normscan.registry import register
from normscan.synthesis.blur import gaussian_blur


def easiest(distance: Tensor, share: float) -> Tensor:
    """The share of points of a batch with the smallest distances: bool of its shape (Dinomaly)."""
    hard = max(1, int(distance.numel() * (1 - share)))
    return distance < distance.flatten().topk(hard).values[-1]


class Restoring(NamedTuple):
    """Attributes: groups of taps, updates of the rising share, side of the map; see ``dinomaly``."""

    groups: int = 2
    ramp: int = 1000
    map_size: int = 256


class Dinomaly(Method):
    """Tokens restored through a noisy bottleneck; see ``dinomaly``."""

    def __init__(
        self, backbone: Backbone, decoder: TokenDecoder, restoring: Restoring, training: Schedule
    ) -> None:
        super().__init__()
        self.backbone, self.decoder = backbone, decoder
        self.groups, self.ramp, self.map_size = restoring
        self._training = training
        self.seen: Tensor
        self.register_buffer("seen", torch.zeros(()))

    def phases(self) -> list[Phase]:
        return [
            phase(
                self.decoder, self._training, clip=0.1, keep="last", optimizer=stable_adamw,
                rhythm=warm_cosine(),
            )
        ]  # fmt: skip

    def pairs(self, x: Tensor) -> tuple[list[Tensor], list[Tensor]]:
        """Features (B, C, h, w) of each group and their restorations."""
        tokens, before, grid = [], 0, (0, 0)
        with torch.no_grad():
            for patches, prefix in self.backbone.tokens(x).values():
                grid = (patches.shape[-2], patches.shape[-1])
                before = 0 if prefix is None else prefix.shape[1]
                rows = patches.flatten(2).mT
                tokens.append(rows if prefix is None else torch.cat([prefix, rows], dim=1))
        outputs = self.decoder(torch.stack(tokens).mean(0))
        n = len(tokens) // self.groups

        def fused(layers: Sequence[Tensor]) -> list[Tensor]:
            means = [torch.stack(list(layers[i : i + n])).mean(0) for i in range(0, len(layers), n)]
            return [m[:, before:].mT.unflatten(2, grid) for m in means]

        return fused(tokens), fused(outputs)

    def loss(self, batch: Batch, phase: str, player: str) -> dict[str, Tensor]:
        targets, restored = self.pairs(batch.image)
        share = 0.9 * min(1.0, float(self.seen) / max(1, self.ramp))
        self.seen += self.decoder.training
        terms = []
        for a, b in zip(targets, restored, strict=True):
            easy = easiest(point_distance(a, b.detach()), share)
            terms.append(global_distance(a, damped(b, easy, 0.1)))
        return {"cosine": torch.stack(terms).mean()}

    @torch.no_grad()
    def maps(self, batch: Batch) -> Maps:
        targets, restored = self.pairs(batch.image)
        total = distance_map(targets, restored, batch.image.shape[2:]) / self.groups
        sigma = torch.full((len(batch),), 4.0)
        small = F.interpolate(total, (self.map_size, self.map_size), mode="bilinear")
        return Maps(map=gaussian_blur(small, sigma, (5, 5), "constant"))


@register(
    "dinomaly",
    paper="Guo 2025",
    dims=(2,),
    presets={
        "multi_class": {"steps": 10_000},
        "laptop": {
            "backbone": "vit_small_patch14_reg4_dinov2.lvd142m", "size": 112, "map_size": 112,
            "taps": ("blocks.2", "blocks.3", "blocks.4", "blocks.5"), "steps": 150, "ramp": 50,
            "batch_size": 8, "preprocess": FILLED,
        },
    },
    reduction="top_1_percent",
    preprocess={**PICTURE, "crop": 392 / 448},
    tiny={
        **TINY, "backbone": TEST_RESNET, "taps": ("layer1",), "groups": 1, "map_size": 64,
        "dropout": 0.05, "steps": 120,
        "batch_size": 8, "lr": 1e-2, "postprocess": ("erode=4",),
    },
    options=tapped(
        size=392,
        backbone="vit_base_patch14_reg4_dinov2.lvd142m",
        taps=tuple(f"blocks.{i}" for i in range(2, 10)),
    )
    | schedule(lr=2e-3, weight_decay=1e-4, steps=5000),
)  # fmt: skip
def dinomaly(
    dims: int = 2,
    channels: int = 1,
    dropout: float = 0.2,
    groups: int = 2,
    ramp: int = 1000,
    map_size: int = 256,
    **options: Unpack[Trained],
) -> Method:
    """Restores the tokens of a frozen transformer through a noisy bottleneck (Dinomaly).

    Guo et al., CVPR 2025: the mean of eight layers of a DINOv2 with registers, class and register
    tokens included, goes through dropout and two linear layers, then through blocks with linear
    attention, which can't copy single tokens. Halves of the layers are compared with halves of the
    blocks, by 1 - cos of whole maps in training and of points in the map. The gradient at the easiest
    points is damped to a tenth; their share rises to 0.9. StableAdamW, warm-up and cosine, gradients
    clipped to 0.1; 5000 updates for one class, 10,000 for many in one model (``multi_class``).
    Pictures are resized to 448 pixels and cropped to 392; the image score is the mean of the top 1 %
    of the map.

    Departures:
        positions: timm interpolates their code with antialiasing; the release without, and by 28.1
            / 37, which differs by 0.05 of the height of waves of 18.5 patches.
        score: the top 1 % is of the foreground, where one is known.
        warm-up: 100 updates, but at most a tenth of a training; the first one has a hundredth of the
            rate, in the release none.

    Args:
        size: pixels along each axis, a multiple of the patch.
        backbone: timm name with the tag of its weights; a transformer, or one stage of a
            convolutional network.
        taps: layers to restore; the decoder has as many blocks.
        dropout: share of the values dropped in the bottleneck.
        groups: of taps and of blocks whose means are compared.
        ramp: updates in which the share of damped points rises.
        map_size: side of the map that a 5 x 5 Gaussian of 4 pixels smooths.
        lr: learning rate of StableAdamW.
        beta1: its first momentum.
        weight_decay: of StableAdamW.
    """
    backbone, taps = backbone_of(options, channels), options["taps"]
    if len(taps) % groups or len({*zip(backbone.channels, backbone.strides, strict=True)}) > 1:
        raise ArgumentError(
            f"dinomaly averages its {len(taps)} taps in {groups} groups: their number must be a "
            "multiple of it, and all must have one shape, as the blocks of a transformer do."
        )
    decoder = TokenDecoder(backbone.channels[0], len(taps), dropout)
    return Dinomaly(backbone, decoder, Restoring(groups, ramp, map_size), options)


class UniAD(Method):
    """Features restored by a transformer blind to neighbours; see ``uniad``."""

    def __init__(
        self, backbone: Backbone, network: MaskedTransformer, jitter: float, training: Schedule
    ) -> None:
        super().__init__()
        self.backbone, self.network = backbone, network
        self.jitter, self._training = jitter, training

    def phases(self) -> list[Phase]:
        return [
            phase(
                self.network, self._training, clip=0.1, optimizer=torch.optim.AdamW,
                rhythm=dropped(0.8),
            )
        ]  # fmt: skip

    @torch.no_grad()
    def features(self, x: Tensor) -> Tensor:
        """All stages on the grid of the transformer: (B, channels, h, w)."""
        return concatenated(list(self.backbone(x).values()), self.network.grid, align_corners=True)

    def loss(self, batch: Batch, phase: str, player: str) -> dict[str, Tensor]:
        features = noisy = self.features(batch.image)
        if self.network.training:
            scale = self.jitter * features.norm(dim=1, keepdim=True) / features.shape[1]
            noisy = features + scale * batch.rng.normal(features.shape).to(features)
        return {"mse": F.mse_loss(self.network(noisy), features)}

    @torch.no_grad()
    def maps(self, batch: Batch) -> Maps:
        features = self.features(batch.image)
        distance = (self.network(features) - features).norm(dim=1, keepdim=True)
        shape = batch.image.shape[2:]
        enlarged = F.interpolate(distance, shape, mode="bilinear", align_corners=True)
        pooled = F.avg_pool2d(enlarged, min(16, *shape), stride=1)
        return Maps(map=enlarged, score=pooled.flatten(1).amax(1))


_UNIAD_LAPTOP = {
    **LAPTOP, "taps": STAGES, "width": 128, "layers": 2, "hidden": 512, "batch_size": 8,
    "steps": 800, "lr": 1e-3,
    # Of 8 x 8 tokens 7 x 7 would leave nearly none to look at.
    "neighbours": 3,
}  # fmt: skip


@register(
    "uniad",
    paper="You 2022",
    dims=(2,),
    presets={
        "laptop": _UNIAD_LAPTOP,
        "lite0": lite0(_UNIAD_LAPTOP, LITE0_STAGES[1:]),
    },
    reduction="max",
    preprocess=PICTURE,
    tiny={
        **TINY, "size": 48, "width": 32, "layers": 1, "hidden": 64, "neighbours": 5,
        "batch_size": 8, "steps": 200, "lr": 4e-3, "postprocess": ("erode=4",),
    },
    options=tapped(
        size=224,
        backbone="tf_efficientnet_b4.aa_in1k",
        taps=("blocks.0", "blocks.1", "blocks.2", "blocks.4"),
    )
    | schedule(lr=1e-4, weight_decay=1e-4, batch_size=64, epochs=1000),
)  # fmt: skip
def uniad(
    dims: int = 2,
    channels: int = 1,
    width: int = 256,
    layers: int = 4,
    hidden: int = 1024,
    heads: int = 8,
    dropout: float = 0.1,
    neighbours: int = 7,
    jitter: float = 20.0,
    **options: Unpack[Trained],
) -> Method:
    """Restores features by a transformer that can't see a token's neighbours (UniAD).

    You et al., NeurIPS 2022: stages of a frozen EfficientNet-B4, joined on the grid of the last, go
    through an encoder and a decoder whose layers have learnt queries of their own. Attention leaves
    out each token's neighbourhood of 7 x 7, itself included, so that copying is no way out; in
    training the features are jittered. AdamW 1e-4, batches of 64, 1000 epochs, the rate a tenth behind
    80 % of them. The map is the length of the difference, the score the largest mean of it over
    16 x 16 pixels. Pictures have 224 pixels.

    Departures:
        padding: EfficientNet's is for the size that comes in; the release's is for 380 pixels, which
            at 224 moves the third stage by a cell and its border by up to 2 %.
        weights: the last ones; the release keeps those with the best pixel AUROC on the test set.
            With ``steps`` those with the least healthy validation loss.
        backbone: a port of TensorFlow's weights; which of timm's tags they are is not told,
            ``aa_in1k`` is our choice.

    Args:
        taps: stages whose features are joined, the finest first.
        width: numbers in a token of the transformer.
        layers: of the encoder and of the decoder.
        hidden: width of the feed-forward parts.
        heads: of each attention.
        dropout: share of the values dropped in the transformer.
        neighbours: side of the hidden neighbourhood in tokens, odd; 0 hides nothing.
        jitter: deviation of the noise on a token, times its length over its number of channels.
        lr: learning rate of AdamW.
        beta1: its first momentum.
        weight_decay: of AdamW.
    """
    backbone = backbone_of(options, channels)
    side = -(-options["size"] // backbone.strides[-1])
    tokens = Tokens(width, hidden, heads, dropout)
    restorer = MaskedTransformer(sum(backbone.channels), (side, side), layers, tokens, neighbours)
    return UniAD(backbone, restorer, jitter, options)
