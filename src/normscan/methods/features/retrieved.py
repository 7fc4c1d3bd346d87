"""Patches compared with those at the same place of the most similar healthy images."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Unpack

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from normscan.errors import ArgumentError
from normscan.methods.base import Batch, Maps, Method, Phase
from normscan.methods.features.common import (
    LAPTOP,
    RESNET18,
    SMOOTH,
    TINY,
    Trained,
    backbone_of,
    tapped,
)
from normscan.methods.schedule import phase, schedule
from normscan.networks.backbones import Backbone
from normscan.registry import register
from normscan.scores.retrieval import BlockWords, local_distance
from normscan.synthesis import blends, donors, labels, placement, shapes
from normscan.synthesis.corruption import Corruption

# Of the hinges on cosines, and the power of what is beyond them.
NEAR, FAR, POWER = 0.8, -0.2, 3


def _unit(inputs: int, outputs: int, kernel: int = 1) -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(inputs, outputs, kernel, padding=kernel // 2, bias=False),
        nn.BatchNorm2d(outputs, eps=1e-3),
        nn.ReLU(),
    )


class Inception(nn.Module):
    """Four branches of convolutions side by side, each with a quarter of the channels.

    Args:
        inputs: channels, a multiple of 4.
        outputs: channels, a multiple of 4.
    """

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__()
        quarter = outputs // 4
        self.branches = nn.ModuleList(
            [
                _unit(inputs, quarter),
                nn.Sequential(_unit(inputs, inputs // 4), _unit(inputs // 4, quarter, 3)),
                _unit(inputs, quarter),
                nn.Sequential(
                    nn.AvgPool2d(3, 1, 1, count_include_pad=False), _unit(inputs, quarter)
                ),
            ]
        )

    def forward(self, x: Tensor) -> Tensor:
        return torch.cat([branch(x) for branch in self.branches], 1)


def local_branch(inputs: int, width: int, outputs: int) -> nn.Sequential:
    """From a stage's features to those that are compared, by an ``Inception``.

    Args:
        inputs: channels of the stage.
        width: channels between, a multiple of 12.
        outputs: channels that are compared.
    """
    wide = width * 4 // 3
    return nn.Sequential(
        nn.Conv2d(inputs, width, 1), nn.BatchNorm2d(width), nn.ReLU(), Inception(width, wide),
        nn.Conv2d(wide, outputs, 1),
    )  # fmt: skip


@dataclass
class Pairs:
    """Points of an image and of its reference that are compared.

    Attributes:
        own: (B, n, 2) columns and rows, -1 to 1.
        other: the same in the reference.
        weight: (B, n), 0 where there is no such pair.
    """

    own: Tensor
    other: Tensor
    weight: Tensor


def read(features: Tensor, points: Tensor) -> Tensor:
    """Features (B, C, n) at points (B, n, 2)."""
    found = F.grid_sample(features, points[:, :, None].to(features), align_corners=False)
    return found[..., 0]


def hinges(own: Tensor, other: Tensor, near: Pairs, far: Pairs) -> tuple[Tensor, Tensor]:
    """How far cosines of pairs that belong together are below 0.8, of others above -0.2; cubed.

    Args:
        own: (B, C, h, w) features of the images.
        other: of the references.
        near: pairs that belong together.
        far: pairs that don't.
    """

    def term(pairs: Pairs, sign: float, at: float) -> Tensor:
        cosine = F.cosine_similarity(read(own, pairs.own), read(other, pairs.other))
        beyond = (sign * (at - cosine)).clamp_min(0) * pairs.weight
        return beyond.pow(POWER).sum() / (pairs.weight > 0).sum().clamp_min(1)

    return term(near, 1.0, NEAR), term(far, -1.0, FAR)


def weighed(own: Tensor, other: Tensor, pairs: Pairs) -> Pairs:
    """Pairs that don't belong together, weighed by how unlike the frozen features are there."""
    unlike = (read(own, pairs.own) - read(other, pairs.other)).square().sum(1)
    unlike = unlike * (pairs.weight > 0)
    share = unlike / (unlike.sum(1, keepdim=True) + 1e-7)
    return Pairs(pairs.own, pairs.other, share * pairs.weight.sum(1, keepdim=True))


def joined(a: Pairs, b: Pairs) -> Pairs:
    """Both pairs beside each other."""
    return Pairs(
        *(
            torch.cat([x, y], 1)
            for x, y in ((a.own, b.own), (a.other, b.other), (a.weight, b.weight))
        )
    )


@dataclass(frozen=True)
class Retrieval:
    """What is compared with what.

    Attributes:
        references: images that are retrieved.
        sides: of the square around a place at each scale, in cells.
        points: pairs of each kind in an image.
        largest: training images that are stored at most.
    """

    references: int
    sides: tuple[int, ...]
    points: int
    largest: int


class CascadeRetrieval(Method):
    """Retrieved images, and retrieved patches in them; see ``cpr``."""

    def __init__(
        self, backbone: Backbone, width: int, dim: int, retrieval: Retrieval, training: Trained
    ) -> None:
        super().__init__()
        if len(retrieval.sides) != len(backbone.channels):
            raise ArgumentError(
                f"sides={retrieval.sides}: give one for each of the {len(backbone.channels)} taps."
            )
        self.backbone, self.retrieval = backbone, retrieval
        self.local = nn.ModuleList(local_branch(n, width, dim) for n in backbone.channels)
        self.words = BlockWords(backbone.channels[0])
        for scale in range(len(backbone.channels)):
            self.register_buffer(f"stored_{scale}", torch.zeros(0, dim, 1, 1))
        self.corrupt = Corruption(
            shapes.perlin(), placement.anywhere, donors.tiles, blends.convex((0.5, 1.0)),
            labels.mask, clean=0.1,
        )  # fmt: skip
        self._training = training

    def phases(self) -> list[Phase]:
        optimizer = torch.optim.AdamW
        return [phase(self.local, self._training, "retrieve", keep="last", optimizer=optimizer)]

    @torch.no_grad()
    def frozen(self, image: Tensor) -> list[Tensor]:
        """The backbone's features at each scale."""
        return list(self.backbone(image).values())

    def compared(self, stages: list[Tensor]) -> list[Tensor]:
        """Features (B, dim, h, w) of each scale that are compared."""
        return [branch(stage) for branch, stage in zip(self.local, stages, strict=True)]

    def pairs(self, batch: Batch, planted: Tensor) -> tuple[Pairs, Pairs, Pairs]:
        """Pairs of the same healthy place, of places apart, and of places that were changed."""
        n, count = len(batch), self.retrieval.points
        height, width = batch.image.shape[2:]
        changed, tissue = planted.flatten(1) > 0.5, batch.foreground.flatten(1)
        tissue = tissue | tissue.roll(1, 0)
        total = height * width

        def drawn(eligible: Tensor) -> tuple[Tensor, Tensor]:
            keys = batch.rng.uniform((n, total)).to(eligible.device) + ~eligible
            found = keys.topk(min(count, total), dim=1, largest=False)
            return found.indices, (found.values < 1).float()

        def places(flat: Tensor) -> Tensor:
            at = torch.stack([flat % width, flat // width], -1).float()
            return at / torch.tensor([max(1, width - 1), max(1, height - 1)]).to(at) * 2 - 1

        same, there = drawn(tissue & ~changed)
        spoilt, any_spoilt = drawn(changed)
        apart, _ = drawn(torch.ones_like(changed))
        offset = torch.stack([apart % width - same % width, apart // width - same // width], -1)
        reach = self.backbone.strides[0] * (self.retrieval.sides[0] // 2) * 2**0.5
        clear = there * (offset.float().norm(dim=-1) > reach)
        at, off, bad = places(same), places(apart), places(spoilt)
        return Pairs(at, at, there), Pairs(off, at, clear), Pairs(bad, bad, any_spoilt)

    def loss(self, batch: Batch, phase: str, player: str) -> dict[str, Tensor]:
        made = self.corrupt(batch.image, batch.image, batch.rng, batch.foreground)
        others = batch.image.roll(1, 0)  # the next image of the batch is the reference
        stages = self.frozen(torch.cat([made.image, others]))
        together, apart, spoilt = self.pairs(batch, made.label)
        terms = []
        for stage, compared in zip(stages, self.compared(stages), strict=True):
            (own, other), (own_before, other_before) = compared.chunk(2), stage.chunk(2)
            far = joined(weighed(own_before, other_before, apart), spoilt)
            terms.append(hinges(own, other, together, far))
        return {
            "near": torch.stack([near for near, _ in terms]).sum(),
            "far": torch.stack([far for _, far in terms]).sum(),
        }

    def stored(self, scale: int) -> Tensor:
        """Unit features of the training images at a scale, (N, dim, h, w)."""
        found = getattr(self, f"stored_{scale}")
        assert isinstance(found, Tensor)
        return found

    @torch.no_grad()
    def fit(self, batches: Iterable[Batch]) -> None:
        frozen, kept = [], 0
        rng = None
        for batch in batches:
            rng = rng or batch.rng
            image = batch.image[: self.retrieval.largest - kept]
            kept += len(image)
            if len(image):
                frozen.append(self.frozen(image))
        if rng is None:
            raise ArgumentError("cpr needs at least one training image.")
        self.words.learn((stages[0] for stages in frozen), rng)
        self.words.bank = torch.cat([self.words.histograms(stages[0]) for stages in frozen])
        units = [[F.normalize(f, dim=1) for f in self.compared(stages)] for stages in frozen]
        for scale, parts in enumerate(zip(*units, strict=True)):
            setattr(self, f"stored_{scale}", torch.cat(parts))

    def need(self, samples: int) -> str:
        return (
            f"the features of {min(samples, self.retrieval.largest):,} training images are stored with "
            "the detector (largest)"
        )

    @torch.no_grad()
    def maps(self, batch: Batch) -> Maps:
        stages = self.frozen(batch.image)
        grid = tuple(stages[0].shape[2:])
        if not len(self.words.bank):
            return Maps(map=batch.image.new_zeros(len(batch), 1, *grid))
        units = [F.normalize(f, dim=1) for f in self.compared(stages)]
        nearest = self.words.nearest(stages[0], self.retrieval.references)
        found = []
        for i, chosen in enumerate(nearest):
            total = batch.image.new_zeros(1, 1, *grid)
            for scale, side in enumerate(self.retrieval.sides):
                own, others = units[scale][i], self.stored(scale)[chosen]
                distance = local_distance(own, others, side)[None, None]
                total += F.interpolate(distance, grid, mode="bilinear", align_corners=False)
            found.append(total)
        return Maps(map=torch.cat(found))


@register(
    "cpr",
    paper="Li 2024",
    dims=(2,),
    presets={
        "laptop": {
            **LAPTOP, "taps": ("layer1", "layer2"), "width": 96, "dim": 128, "steps": 300,
            "batch_size": 8, "largest": 200,
        },
    },
    postprocess=SMOOTH,
    reduction="top_1_percent",
    preprocess={"scaling": "file", "crop": "none", "fit": "stretch"},
    tiny={
        **TINY, "backbone": RESNET18, "width": 24, "dim": 16, "points": 64, "references": 5,
        "steps": 40, "batch_size": 4, "lr": 3e-3, "postprocess": ("smooth=1",),
    },
    options=tapped(
        size=320, backbone="densenet201.tv_in1k",
        taps=("features.denseblock1", "features.denseblock2"),
    )
    | schedule(lr=1e-3, weight_decay=1e-2, batch_size=32, steps=40_000),
)  # fmt: skip
def cpr(
    dims: int = 2,
    channels: int = 1,
    width: int = 192,
    dim: int = 384,
    references: int = 10,
    sides: tuple[int, ...] = (3, 1),
    points: int = 300,
    largest: int = 500,
    **options: Unpack[Trained],
) -> Method:
    """Patches compared with the same places of the healthy images that look most alike (CPR).

    Li et al., IEEE TIP 2024: the histograms of 12 visual words in 5 x 5 blocks of a frozen
    DenseNet-201's first dense block find the 10 training images most like an image (divergence of the
    four fifths of the blocks that are most alike). At each place the least cosine distance to these
    images' features there (in 3 x 3 cells at stride 4, in one cell at stride 8) is the map, summed over
    both scales and smoothed. The features come from a branch with an inception block for each of the
    first two dense blocks. It learns that the same place of two images agrees (cosine above 0.8) and
    that places apart, or changed by textures in Perlin outlines, don't (below -0.2); 300 pairs of each
    kind, AdamW 1e-3, decay 0.01, batches of 32, 40,000 updates, 320 pixels. The article reports image
    and pixel AUROCs of 99.7 and 97.8 on MVTec.

    Departures:
        references in training: the next image of the batch; one of the ten retrieved in the release.
        textures: shuffled tiles of the image itself; in the release also those of another data set.
        foreground: the preprocessing's is where pairs are drawn; the release learns one for objects
            and weighs the map by it.
        pairs apart: those too near are left out; the release draws others for them.
        noise and brightness of training images: none.
        image score: the mean of the highest hundredth; the sum of the 512 highest of 102,400 in the
            release.
        bank: 500 training images at most (``largest``).

    Args:
        width: channels between in each branch, a multiple of 12.
        dim: channels that are compared.
        references: training images that are retrieved.
        sides: of the square around a place that is searched, in cells, one for each tap.
        points: pairs of each kind in an image and update.
        largest: training images that are stored at most.
        lr: learning rate of AdamW.
        beta1: its first momentum.
        weight_decay: of AdamW.
    """
    if width % 12:
        near = (width // 12 + 1) * 12
        raise ArgumentError(f"width={width}: four branches need a multiple of 12. Use {near}.")
    return CascadeRetrieval(
        backbone_of(options, channels), width, dim, Retrieval(references, sides, points, largest),
        options,
    )  # fmt: skip
