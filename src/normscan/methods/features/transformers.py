"""Transformers that restore the features of a frozen network."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Unpack

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from normscan.errors import ArgumentError
from normscan.methods.base import Batch, Maps, Method, Phase
from normscan.methods.schedule import Schedule, phase, schedule
from normscan.networks.aggregation import concatenated
from normscan.networks.attention_layers import MaskedTransformer, TokenDecoder
from normscan.networks.backbones import Backbone
from normscan.objectives.cosine import damped, distance_map, global_distance, point_distance
from normscan.objectives.optimizers import dropped, stable_adamw, warm_cosine
from normscan.registry import register
from normscan.synthesis.blur import gaussian_blur


def _phase(
    module: nn.Module,
    training: Schedule,
    optimizer: Callable[[Iterable[nn.Parameter]], torch.optim.Optimizer],
    rhythm: Callable[[int, int], float],
) -> Phase:
    result = phase(module, training, clip=0.1)
    result.players[0].optimizer, result.players[0].schedule = optimizer, rhythm
    return result


def easiest(distance: Tensor, share: float) -> Tensor:
    """The share of points of a batch with the smallest distances: bool of its shape (Dinomaly)."""
    hard = max(1, int(distance.numel() * (1 - share)))
    return distance < distance.flatten().topk(hard).values[-1]


class Dinomaly(Method):
    """Tokens restored through a noisy bottleneck; see ``dinomaly``."""

    def __init__(
        self, backbone: Backbone, decoder: TokenDecoder, groups: int, ramp: int, map_size: int,
        training: Schedule,
    ) -> None:  # fmt: skip
        super().__init__()
        self.backbone, self.decoder = backbone, decoder
        self.groups, self.ramp, self.map_size = groups, ramp, map_size
        self._training = training
        self.seen: Tensor
        self.register_buffer("seen", torch.zeros(()))

    def phases(self) -> list[Phase]:
        t = self._training
        optimizer = stable_adamw(t["lr"], t["weight_decay"], t["beta1"])
        result = _phase(self.decoder, t, optimizer, warm_cosine())
        result.keep = "last"
        return [result]

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
            "batch_size": 8,
        },
    },
    reduction="top_1_percent",
    preprocess={"scaling": "percentile"},
    tiny={
        "backbone": "resnet18.tv_in1k", "weights": "random", "taps": ("layer1",), "groups": 1,
        "size": 64, "map_size": 64, "dropout": 0.05, "steps": 120, "batch_size": 8, "lr": 1e-2,
        "postprocess": ("erode=4",),
    },
    options=schedule(lr=2e-3, weight_decay=1e-4, steps=5000),
)  # fmt: skip
def dinomaly(
    dims: int = 2,
    channels: int = 1,
    size: int = 392,
    backbone: str = "vit_base_patch14_reg4_dinov2.lvd142m",
    taps: tuple[str, ...] = tuple(f"blocks.{i}" for i in range(2, 10)),
    weights: str = "hub",
    dropout: float = 0.2,
    groups: int = 2,
    ramp: int = 1000,
    map_size: int = 256,
    **training: Unpack[Schedule],
) -> Method:
    """Restores the tokens of a frozen transformer through a noisy bottleneck (Dinomaly).

    The mean of the tapped layers, class and register tokens included, goes through dropout and two
    linear layers, then through blocks with linear attention, which can't copy single tokens. Halves
    of the layers are compared with halves of the blocks, by 1 - cos of whole maps in training and
    of points in the map. The gradient at the easiest points is damped to a tenth; their share rises
    to 0.9. StableAdamW, warm-up and cosine, gradients clipped to 0.1. Guo et al., CVPR 2025.

    The article resizes to 448 pixels and crops the middle 392; here the foreground fills 392. Its
    image score, the mean of the top 1 % of the map, is over the foreground here. The warm-up of 100
    updates takes a tenth of a shorter training. 10,000 updates are for many classes in one model,
    the preset ``multi_class``.

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
    network = Backbone(backbone, taps, weights, channels=channels)
    if len(taps) % groups or len({*zip(network.channels, network.strides, strict=True)}) > 1:
        raise ArgumentError(
            f"dinomaly averages its {len(taps)} taps in {groups} groups: their number must be a "
            "multiple of it, and all must have one shape, as the blocks of a transformer do."
        )
    decoder = TokenDecoder(network.channels[0], len(taps), dropout)
    return Dinomaly(network, decoder, groups, ramp, map_size, training)


class UniAD(Method):
    """Features restored by a transformer blind to neighbours; see ``uniad``."""

    def __init__(
        self, backbone: Backbone, network: MaskedTransformer, jitter: float, training: Schedule
    ) -> None:
        super().__init__()
        self.backbone, self.network = backbone, network
        self.jitter, self._training = jitter, training

    def phases(self) -> list[Phase]:
        t = self._training
        betas = (t["beta1"], 0.999)

        def adamw(parameters: Iterable[nn.Parameter]) -> torch.optim.Optimizer:
            return torch.optim.AdamW(
                parameters, lr=t["lr"], betas=betas, weight_decay=t["weight_decay"]
            )

        return [_phase(self.network, t, adamw, dropped(0.8))]

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


@register(
    "uniad",
    paper="You 2022",
    dims=(2,),
    presets={
        "laptop": {
            "backbone": "resnet18.tv_in1k", "taps": ("layer1", "layer2", "layer3"), "size": 128,
            "width": 128, "layers": 2, "hidden": 512, "batch_size": 8, "steps": 800, "lr": 1e-3,
            # Of 8 x 8 tokens 7 x 7 would leave nearly none to look at.
            "neighbours": 3,
        },
    },
    reduction="max",
    preprocess={"scaling": "percentile"},
    tiny={
        "backbone": "resnet18.tv_in1k", "weights": "random", "taps": ("layer1", "layer2"),
        "size": 48, "width": 32, "layers": 1, "hidden": 64, "neighbours": 5, "batch_size": 8,
        "steps": 250, "lr": 4e-3, "postprocess": ("erode=4",),
    },
    options=schedule(lr=1e-4, weight_decay=1e-4, batch_size=64, epochs=1000),
)  # fmt: skip
def uniad(
    dims: int = 2,
    channels: int = 1,
    size: int = 224,
    backbone: str = "tf_efficientnet_b4.aa_in1k",
    taps: tuple[str, ...] = ("blocks.0", "blocks.1", "blocks.2", "blocks.4"),
    weights: str = "hub",
    width: int = 256,
    layers: int = 4,
    hidden: int = 1024,
    heads: int = 8,
    dropout: float = 0.1,
    neighbours: int = 7,
    jitter: float = 20.0,
    **training: Unpack[Schedule],
) -> Method:
    """Restores features by a transformer that can't see a token's neighbours (UniAD).

    Stages of a frozen network, joined on the grid of the last, go through an encoder and a decoder
    whose layers have learnt queries of their own. Attention leaves out each token's neighbourhood,
    itself included, so that copying is no way out; in training the features are jittered. The map
    is the length of the difference, the score the largest mean of it over 16 x 16 pixels. You et
    al., NeurIPS 2022.

    The article's weights are a port of TensorFlow's EfficientNet-B4; which of timm's tags they are
    is not told, ``aa_in1k`` is our choice. The rate falls to a tenth behind 80 % of the training.

    Args:
        backbone: timm name with the tag of its weights.
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
    network = Backbone(backbone, taps, weights, channels=channels)
    side = -(-size // network.strides[-1])
    restorer = MaskedTransformer(
        sum(network.channels), (side, side), width, layers, hidden, heads, dropout, neighbours
    )
    return UniAD(network, restorer, jitter, training)
