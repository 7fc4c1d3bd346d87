"""Trees that judge what the map of another method looks like in each part of an image."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from scipy import stats
from torch import Tensor
from torch.nn import functional as F

from normscan import registry
from normscan.errors import ArgumentError
from normscan.methods.base import Batch, Batches, Maps, Method, Use
from normscan.methods.features.common import FILLED, PICTURE
from normscan.methods.wrapped import Wrapped
from normscan.registry import register
from normscan.rng import Rng, derive_seed
from normscan.scores.boosted import Boosting, Forest
from normscan.scores.postprocess import apply_chain


def statistics(anomaly: np.ndarray, parts: np.ndarray, count: int) -> np.ndarray:
    """Four numbers of a map in each part, and its maximum, (4 count + 1,).

    They are the 0.995 quantile, skewness, kurtosis above that of a normal distribution, and the
    mean; 0 where a part is empty. What is constant has no shape: its skewness and kurtosis are 0.

    Args:
        anomaly: (*spatial).
        parts: (*spatial) the number of each pixel's part.
        count: parts.
    """
    found: list[float] = []
    for number in range(count):
        inside = anomaly[parts == number].astype(np.float64)
        if not len(inside):
            found += [0.0] * 4
        elif np.ptp(inside) == 0:
            found += [inside[0], 0.0, 0.0, inside[0]]
        else:
            shape = stats.skew(inside), stats.kurtosis(inside)
            found += [np.quantile(inside, 0.995), *shape, inside.mean()]
    return np.array([*found, anomaly.max()], np.float32)


class SegmentStatistics(Wrapped):
    """A detector of which a part of the healthy images is kept for trees on its maps; see ``segad``.

    Args:
        inner: gives the maps.
        chain: that these go through.
        parts: of an image.
        anatomy: whether they are the scan's structures, else foreground and background.
        held: one of so many healthy subjects is kept from the inner method.
        how: the trees are grown.
    """

    fits_on = ("healthy", "labelled")

    def __init__(
        self, inner: Method, chain: tuple[str, ...], parts: int, anatomy: bool, held: int,
        how: Boosting,
    ) -> None:  # fmt: skip
        super().__init__(inner)
        self.forest, self.how = Forest(), how
        self.chain, self.parts, self.held = chain, parts, held
        if anatomy:
            use = Use(("healthy", "val", "labelled"), "needed")
            self.uses = {**inner.uses, "structures": use}
        self.anatomy = anatomy

    @property
    def fits(self) -> bool:
        return True

    def kept_aside(self, batch: Batch) -> list[bool]:
        """Which samples of a batch of healthy images the inner method must not see."""
        assert batch.subject is not None
        return [number % self.held == 0 for number in batch.subject.tolist()]

    def loss(self, batch: Batch, phase: str, player: str) -> dict[str, Tensor]:
        if not torch.is_grad_enabled():  # validation scans are none of the training's
            return self.inner.loss(batch, phase, player)
        aside = self.kept_aside(batch)
        own = [i for i, kept in enumerate(aside) if not kept]
        if own and len(own) < len(batch):
            # Batch norms need two samples, and the batch its size.
            own = (own * len(batch))[: len(batch)]
        if not own:
            parameters = [p for p in self.inner.parameters() if p.requires_grad]
            nothing = torch.stack([p.flatten()[0] for p in parameters]).sum()
            return {"nothing": 0.0 * nothing}
        return self.inner.loss(batch.taken(own), phase, player)

    def fit(self, batches: Iterable[Batch]) -> None:
        batches = list(batches) if isinstance(batches, Iterator) else batches
        if self.inner.fits:
            self.inner.fit(Batches(lambda: self._own(batches)))
        rows, truth = [], []
        for batch in batches:
            assert batch.part is not None and batch.subject is not None
            aside = self.kept_aside(batch)
            ill = (batch.part == 1).tolist()
            chosen = [i for i in range(len(batch)) if ill[i] or aside[i]]
            if chosen:
                part = batch.taken(chosen)
                seeds = [derive_seed("segments", n) for n in range(len(chosen))]
                rows.append(self.described(replace(part, rng=Rng(seeds)))[1])
                truth += [int(ill[i]) for i in chosen]
        y = np.array(truth)
        weight = max(1, (y == 0).sum()) / max(1, (y == 1).sum())
        self.forest.grow(np.concatenate(rows), y, float(weight), self.how, derive_seed("forest"))

    def _own(self, batches: Iterable[Batch]) -> Iterator[Batch]:
        """What the inner method may see."""
        for batch in batches:
            assert batch.part is not None
            aside = self.kept_aside(batch)
            own = [i for i, part in enumerate(batch.part.tolist()) if part == 0 and not aside[i]]
            if own:
                yield batch.taken(own)

    def described(self, batch: Batch) -> tuple[Maps, np.ndarray]:
        """The inner method's maps, and the features of each image (B, F)."""
        found = self.inner.maps(batch)
        assert found.map is not None
        size = batch.image.shape[2:]
        way = "bilinear" if len(size) == 2 else "trilinear"
        large = F.interpolate(found.map.detach().float(), size, mode=way, align_corners=False)
        seen = batch.foreground[:, 0].cpu().numpy()
        parts = seen.astype(int)
        if self.anatomy:
            assert batch.structures is not None
            parts = batch.structures[:, 0].cpu().numpy()
        rows = []
        for image, inside, part in zip(large[:, 0].cpu().numpy(), seen, parts, strict=True):
            done = apply_chain(self.chain, image, inside, inside[None])
            rows.append(statistics(np.asarray(done), part, self.parts))
        return found, np.stack(rows)

    def maps(self, batch: Batch) -> Maps:
        found, features = self.described(batch)
        score = self.forest(torch.from_numpy(features).to(batch.image.device))
        return replace(found, score=score.float())


@register(
    "segad",
    paper="Baitieva 2024",
    regime="few-anomalies",
    preprocess=PICTURE,
    postprocess=("smooth=4",),
    presets={
        "laptop": {
            "size": 128, "base": "patchcore", "base_preset": "laptop", "preprocess": FILLED,
        },
    },
    tiny={
        "size": 48, "base": "padim", "base_preset": "tiny", "held": 0.3, "rounds": 3, "trees": 20,
        "preprocess": FILLED, "postprocess": ("smooth=1",),
    },
)  # fmt: skip
def segad(
    dims: int = 2,
    channels: int = 1,
    size: int = 256,
    base: str = "rd4ad",
    base_preset: str = "paper",
    base_arguments: dict[str, Any] | None = None,
    parts: int = 2,
    anatomy: bool = False,
    held: float = 0.1,
    rounds: int = 10,
    trees: int = 200,
    depth: int = 5,
    rate: float = 0.3,
    share: float = 0.6,
) -> Method:
    """Trees on the statistics of another method's map in each part of an image (SegAD).

    Baitieva et al., CVPR 2024: a detector is trained on 90 % of the healthy images. Of its maps the
    0.995 quantile, skewness, kurtosis and mean in each part of the image, and the maximum of all,
    are the features of a boosted random forest, which learns from the other 10 % and ten labelled
    anomalies: 10 rounds of 200 trees of depth 5, rate 0.3, each tree with 0.6 of the samples, of the
    features, and at each split of these; L1 penalty 1, anomalies weighed by the ratio of healthy to
    anomalous ones. The score is the log odds; the map is the detector's own.

    Departures:
        forest: Newton's steps on scikit-learn's trees, whose splits minimise the squared error of the
            step in place of XGBoost's penalised gain; leaves are penalised as there. Sums of second
            derivatives in a leaf are at least 1, as is XGBoost's default.
        weight: of the anomalies that there are; the release always divides by 10.
        shape of what is constant: 0 in place of not a number.
        parts: foreground and background, or the scan's structures; the release has a segmentation of
            each object.

    Args:
        size: pixels along each axis.
        base: id of the method whose maps are judged; it learns from healthy scans.
        base_preset: of that method.
        base_arguments: of that method, changes to the preset.
        parts: of an image, counted from 0, which is the background.
        anatomy: the parts are the structures of the scans, else foreground and background.
        held: share of the healthy subjects that only the trees learn from.
        rounds: of boosting.
        trees: in a round.
        depth: of a tree.
        rate: of boosting.
        share: of the samples and the features that a tree sees.

    Raises:
        ArgumentError: a base that needs more than healthy scans, or a share out of range.
    """
    card = registry.card(base)
    if card.regime != "healthy" or dims not in card.dims or not 0 < held <= 0.5:
        raise ArgumentError(
            f"base='{base}', held={held}: give a method for healthy scans with {dims} spatial axes, and "
            "a share above 0, at most 0.5."
        )
    own = {"dims": dims, "channels": channels, "size": size, **(base_arguments or {})}
    inner = card.create(**card.arguments(base_preset, **own))
    how = Boosting(rounds, trees, depth, rate, share, share)
    return SegmentStatistics(inner, card.postprocess, parts, anatomy, round(1 / held), how)
