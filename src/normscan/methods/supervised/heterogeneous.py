"""Heads that learn from many small sets, each with other healthy images and other anomalies."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Unpack

import torch
from torch import Tensor, nn

from normscan.errors import ArgumentError
from normscan.methods.base import Batch, Maps, Method, Phase
from normscan.methods.features.common import PICTURE
from normscan.methods.supervised.common import LAPTOP, TINY, OpenSet, Pyramid, open_set
from normscan.methods.supervised.disentangled import (
    SEEN,
    SIMULATED,
    Disentangled,
    HolisticHead,
    PlainHead,
)
from normscan.methods.supervised.episodes import Bank, Rhythm, episodes, learnt_heads, summed
from normscan.registry import register
from normscan.rng import Rng
from normscan.synthesis import blends, donors, placement, shapes
from normscan.synthesis.augment import turned
from normscan.synthesis.corruption import Corruption
from normscan.synthesis.tasks import cutpaste, draem

STRIDE = 3


class SignedHead(HolisticHead):
    """A holistic head whose score may be negative."""

    def forward(self, features: Tensor) -> Tensor:
        """Scores (B,) of features (B, width, h, w)."""
        result: Tensor = self.layers(features.mean((2, 3)))[:, 0]
        return result


class ScaledResidualHead(PlainHead):
    """A plain head on what features differ by from healthy ones, at every third place.

    Args:
        width: channels of the features.
        share: of the places.
        scale: that each channel's difference begins with; with 0 nothing ever reaches the head.
    """

    def __init__(self, width: int, share: float, scale: float) -> None:
        super().__init__(width, share)
        self.compare = nn.Conv2d(width, width, 3, STRIDE)
        self.scale = nn.Parameter(torch.full((width,), scale))
        self.shift = nn.Parameter(torch.zeros(width))

    def forward(self, features: Tensor) -> Tensor:
        """Scores (B,) of differences (B, width, h, w)."""
        found = self.compare(features) * self.scale[:, None, None] + self.shift[:, None, None]
        return super().forward(found.relu())


class Heads(nn.Module):
    """The four heads of ``dra`` on stored features, at several scales.

    Args:
        width: channels of the features.
        share: of the places.
        scale: see ``ScaledResidualHead``.
    """

    def __init__(self, width: int, share: float, scale: float) -> None:
        super().__init__()
        self.holistic = SignedHead(width)
        self.seen, self.simulated = PlainHead(width, share), PlainHead(width, share)
        self.residual = ScaledResidualHead(width, share, scale)
        layers = [m for m in self.modules() if isinstance(m, nn.Linear | nn.Conv2d)]
        for layer in layers:
            nn.init.kaiming_normal_(layer.weight)
            if layer.bias is not None:
                nn.init.zeros_(layer.bias)

    def forward(
        self, features: list[Tensor], healthy: list[Tensor], kind: Tensor
    ) -> dict[str, Tensor]:
        """The score that each head gives the samples that it looks at.

        Args:
            features: (B, width, h, w) of each scale.
            healthy: (width, h, w) of each scale, the mean of references.
            kind: (B,) ``HEALTHY``, ``SEEN`` or ``SIMULATED``; -1 is looked at by all.
        """
        found = [
            {
                "holistic": self.holistic(own),
                "seen": self.seen(own[kind != SIMULATED]),
                "simulated": self.simulated(own[kind != SEEN]),
                "residual": self.residual(mean - own),
            }
            for own, mean in zip(features, healthy, strict=True)
        ]
        return {name: torch.stack([f[name] for f in found]).mean(0) for name in found[0]}


def cutmix() -> Corruption:
    """A patch of another image at another place."""
    return Corruption(
        shapes.area_boxes(),
        placement.inside_frame,
        donors.jittered(donors.elsewhere(own=False)),
        blends.paste,
    )


class Heterogeneous(Method):
    """Heads on the features that a base learnt, by what carries over between sets; see ``ahl``.

    Args:
        base: learns first; its backbone's features are kept, its own heads are not.
        heads: on them.
        rhythm: how the heads learn.
    """

    fits_on = ("healthy", "labelled")

    def __init__(self, base: Disentangled, heads: Heads, rhythm: Rhythm) -> None:
        super().__init__()
        self.base, self.heads, self.rhythm = base, heads, rhythm
        self.heads.requires_grad_(False)
        for scale in range(base.pyramid.scales):
            self.register_buffer(f"healthy{scale}", torch.zeros(0))

    @property
    def pyramid(self) -> Pyramid:
        """The backbone that the base learnt."""
        return self.base.pyramid

    def phases(self) -> list[Phase]:
        return self.base.phases()

    def loss(self, batch: Batch, phase: str, player: str) -> dict[str, Tensor]:
        return self.base.loss(batch, phase, player)

    def need(self, samples: int) -> str:
        """The features of each training image and of three changed copies."""
        size, numbers = self.rhythm.size, 0
        for scale in range(self.pyramid.scales):
            side = -(-size // 2**scale // self.pyramid.backbone.strides[0])
            numbers += self.pyramid.width * side**2
        gib = samples * 4 * numbers * 4 / 2**30
        return f"features of {samples:,} healthy images and three changes of each: {gib:.2g} GiB"

    @torch.no_grad()
    def banked(self, batches: Iterable[Batch]) -> tuple[Bank, Rng]:
        """Features of what there is to learn from, and a source of randomness."""
        changes = (draem(), cutpaste(), cutmix())
        kept: list[list[list[Tensor]]] = [[] for _ in range(len(changes) + 2)]
        rng = None
        for batch in batches:
            assert batch.part is not None
            rng = rng or Rng(int(batch.rng.integers(0, 2**62, (len(batch),))[0]))
            sick = batch.part == 1
            image = batch.image[~sick]
            if sick.any():
                kept[-1].append(self.pyramid(batch.image[sick]))
            if not len(image):
                continue
            kept[0].append(self.pyramid(image))
            for number, change in enumerate(changes, 1):
                other, everywhere = image.roll(1, 0), torch.ones_like(image[:, :1]).bool()
                made = change(image, image if number == 2 else other, batch.rng, everywhere).image
                if number > 1:
                    made = turned(made, batch.rng, torch.pi, beyond="zeros")
                kept[number].append(self.pyramid(made))
        assert rng is not None
        groups = [[torch.cat(scale) for scale in zip(*group, strict=True)] for group in kept]
        return Bank(groups), rng

    def fit(self, batches: Iterable[Batch]) -> None:
        """Train the heads on the features of the trained base."""
        self.eval()
        bank, rng = self.banked(batches)
        with torch.enable_grad():
            weights = learnt_heads(
                self.heads, bank, episodes(bank, self.rhythm, rng), self.rhythm, rng
            )
        for name, weight in self.heads.named_parameters():
            weight.data.copy_(weights[name])
        for scale, mean in enumerate(bank.references(self.rhythm.references, rng)):
            setattr(self, f"healthy{scale}", mean.clone())

    def healthy(self, features: list[Tensor]) -> list[Tensor]:
        """The mean healthy features of each scale, 0 before training."""
        known = [getattr(self, f"healthy{scale}") for scale in range(len(features))]
        pairs = zip(known, features, strict=True)
        return [k.to(f) if len(k) else torch.zeros_like(f[0]) for k, f in pairs]

    @torch.no_grad()
    def maps(self, batch: Batch) -> Maps:
        features = self.pyramid(batch.image)
        every = torch.full((len(batch.image),), -1, device=batch.image.device)
        return Maps(score=summed(self.heads(features, self.healthy(features), every)))


@register(
    "ahl",
    paper="Zhu 2024",
    regime="few-anomalies",
    preprocess=PICTURE,
    presets={
        "code": {"scale": 0.0},
        "laptop": {**LAPTOP, "size": 192, "rounds": 9, "updates": 5},
    },
    tiny={**TINY, "steps": 60, "rounds": 9, "updates": 2, "clusters": 2},
    options=open_set(steps=600),
)
def ahl(
    dims: int = 2,
    channels: int = 1,
    references: int = 5,
    clusters: int = 3,
    rounds: int = 29,
    passes: int = 2,
    updates: int = 20,
    scale: float = 1.0,
    **options: Unpack[OpenSet],
) -> Method:
    """Anomaly heterogeneity learning: heads that generalise from one kind of anomaly to others.

    Zhu et al., CVPR 2024, on ``dra``: when that has learnt, the features of its backbone at both
    scales are kept, and four new heads learn on them. Healthy images fall into 3 clusters (k-means on
    the features), and each ordered pair makes a set to learn from and one to be judged on: the
    healthy images of one cluster and a half of the known anomalies; those of the other, the other
    half, and two of the first half again. Half of the healthy images of both are changed in one way
    for each pair: textures in Perlin outlines (DRAEM), a part moved within the image (CutPaste), or
    a part of another one (CutMix). In each round the heads take steps of 2e-4 on the first set, one
    and then 2 passes of 20 batches of 48, a third of each kind, and the gradient of the deviation
    losses of 20 batches of the other set goes back through the first step to where they began; the
    sum over all pairs is one update with Adam 2e-3, decay 1e-4, a gradient of norm 1 at most, the
    rate a tenth after 9 and 19. A bidirectional LSTM learns to foretell the scores that the heads of
    each pair give from those of 5 rounds (squared error; Adam 2e-3, decay 1e-3). From round 8 on
    pairs count by 0.5 + 0.5 w; w is a softmax of minus the squared errors of what is foretold, half
    for healthy and for changed images, once for known anomalies; since they are divided by the number
    of samples twice, as in the release, all w are much alike. Scores as in ``dra``, but the first
    head's may be negative, and residuals are seen at every third place; there is no map.

    Departures:
        base: ``dra`` alone, as is the release's default; it has the head of ``devnet``, too.
        scale: of the residual head's affine layer begins with 1; with 0 in the release
            (``code``), so that nothing in the head ever has a gradient and its score stays 0.
        clusters: hold their own images, and the halves of the anomalies make up the whole; the
            release takes as many first files as a cluster has images, and draws both halves anew.
        single cluster: where less than two have more than two images, two random halves stand for
            them.
        features: with the batch norms' running statistics; the release writes them image by image
            and never puts the base into evaluation mode.
        changes: other healthy images in place of textures, which aren't turned; no jitter of hue and
            saturation; turned between pixels linearly.
        passes: the release goes through a first pass of which the last batch alone has effect, and
            adds losses without effect after it; they are left out. Its 30 epochs are 29 updates.
        references: five healthy images, the same for every test image; the release draws new ones.
        figures: of the release are those of the best epoch on the test images; here the last counts.

    Args:
        size: pixels along each axis; the smallest copy must have three places along each.
        taps: the stage whose features are scored, one.
        references: healthy images that the residual head compares with.
        clusters: of healthy images.
        rounds: updates of the heads.
        passes: through ``updates`` batches after the first step.
        updates: batches of a pass, and batches that a round is judged on.
        scale: that differences begin with in the residual head.
    """
    base = Disentangled(Pyramid(options, channels), None, references, options)
    pyramid, size = base.pyramid, options["size"]
    least = STRIDE * pyramid.backbone.strides[0] * 2 ** (pyramid.scales - 1)
    if size < least:
        raise ArgumentError(
            f"size={size}, taps={options['taps']}, scales={pyramid.scales}: the smallest copy of an "
            f"image has less than {STRIDE} places along an axis. Use size={least} or more."
        )
    rhythm = Rhythm(
        size,
        clusters,
        rounds,
        passes,
        updates,
        options["batch_size"],
        options["margin"],
        references,
    )
    return Heterogeneous(base, Heads(pyramid.width, options["share"], scale), rhythm)
