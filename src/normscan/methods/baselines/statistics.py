"""Baselines that know only the mean image, or a few numbers of an image."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

import torch
from torch import Tensor

from normscan.errors import ArgumentError
from normscan.methods.base import Batch, Maps, Method
from normscan.methods.reconstruction import absolute
from normscan.methods.wrapped import averaged
from normscan.registry import register
from normscan.rng import Rng
from normscan.scores.counted import APART, Counted, told


class MeanImage(Counted, Method):
    """The mean of the healthy images is the restoration of every image."""

    fitted = ("mean", "count")

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("mean", torch.zeros(0))

    def fit(self, batches: Iterable[Batch]) -> None:
        total, n = _sum(batches)
        if n:
            self.mean = (total / n).float()
            self.count_as(n)

    def update(self, batches: Iterable[Batch]) -> None:
        numbers, (total, n) = self.counted(), _sum(batches)
        means = zip(self.mean.double().split(1), numbers, strict=True)
        self.mean = torch.cat([(mean * k + total) / (k + n) for mean, k in means]).float()
        self.count_as(*(k + n for k in numbers))

    def merge(self, others: Sequence[Mapping[str, Tensor]], rng: Rng) -> None:
        numbers = [n for known in (self.count, *(o["count"] for o in others)) for n in told(known)]
        means = [self.mean, *(o["mean"] for o in others)]
        if len(numbers) > len(means):
            raise ArgumentError(APART)
        total = sum(m.double() * n for m, n in zip(means, numbers, strict=True))
        assert isinstance(total, Tensor)
        self.mean = (total / sum(numbers)).float()
        self.count_as(sum(numbers))

    @property
    def leaves_out(self) -> bool:
        return True

    def fit_folds(self, folds: Sequence[Iterable[Batch]]) -> None:
        sums = [_sum(fold) for fold in folds]
        total = torch.stack([part for part, _ in sums]).sum(0)
        n = sum(count for _, count in sums)
        self.mean = torch.cat([((total - part) / (n - count)).float() for part, count in sums])
        self.count_as(*(n - count for _, count in sums))

    def each(self, batch: Batch) -> list[Maps]:
        restored = [mean.expand_as(batch.image) for mean in self.mean.split(1)]
        return [Maps(map=absolute(batch.image, r), reconstruction=r) for r in restored]

    def maps(self, batch: Batch) -> Maps:
        return averaged(self.each(batch))[0]


def _sum(batches: Iterable[Batch]) -> tuple[Tensor, int]:
    """The sum of images (1, C, *shape) and their number."""
    total, n = torch.zeros(1, dtype=torch.float64), 0
    for batch in batches:
        total = total.to(batch.image.device) + batch.image.double().sum(0, keepdim=True)
        n += len(batch)
    return total, n


class ImageStatistics(Counted, Method):
    """Mahalanobis distance of a few numbers that describe an image's intensities and extent."""

    quantiles = (0.05, 0.25, 0.5, 0.75, 0.95)
    fitted = ("mean", "precision", "count")

    def __init__(self, shrinkage: float) -> None:
        super().__init__()
        self.shrinkage = shrinkage
        self.register_buffer("mean", torch.zeros(0))
        self.register_buffer("precision", torch.zeros(0, 0))

    def describe(self, batch: Batch) -> Tensor:
        """Mean, deviation and quantiles of all pixels, and the share of foreground: (B, 8)."""
        x = batch.image.double().flatten(1)
        # torch.quantile refuses more than 2**24 values, which a volume may have.
        places = [round(q * (x.shape[1] - 1)) for q in self.quantiles]
        q = x.sort(1).values[:, places]
        share = batch.foreground.double().flatten(1).mean(1)
        return torch.cat([x.mean(1)[:, None], x.std(1)[:, None], q, share[:, None]], dim=1)

    def fit(self, batches: Iterable[Batch]) -> None:
        values = torch.cat([self.describe(batch) for batch in batches])
        centred = values - values.mean(0)
        self._shrink(values.mean(0), centred.T @ centred, len(values))

    @property
    def updates(self) -> bool:
        return self.shrinkage < 1  # else the covariance is gone

    def update(self, batches: Iterable[Batch]) -> None:
        values = torch.cat([self.describe(batch) for batch in batches])
        centred = values - values.mean(0)
        self._join(len(values), values.mean(0), centred.T @ centred)

    @property
    def merges(self) -> bool:
        return self.updates

    def merge(self, others: Sequence[Mapping[str, Tensor]], rng: Rng) -> None:
        for other in others:
            n = told(other["count"])[0]
            self._join(n, other["mean"], self._scatter(other["precision"], n))

    def _join(self, m: int, mean: Tensor, scatter: Tensor) -> None:
        """Take in the mean and the summed squares of deviations of m samples."""
        n, step = self.counted()[0], mean - self.mean
        # Two groups' deviations from the mean of both (Chan et al. 1979).
        between = torch.outer(step, step) * (n * m / (n + m))
        scatter = self._scatter(self.precision, n) + scatter + between
        self._shrink(self.mean + step * (m / (n + m)), scatter, n + m)

    def _shrink(self, mean: Tensor, scatter: Tensor, n: int) -> None:
        """Take the mean, and the inverse of the shrunk covariance of n samples."""
        covariance = scatter / max(1, n - 1)
        spread = covariance.diagonal().mean().clamp_min(1e-12)
        covariance = (1 - self.shrinkage) * covariance
        covariance += self.shrinkage * spread * torch.eye(len(covariance)).to(covariance)
        self.mean, self.precision = mean, torch.linalg.inv(covariance)
        self.count_as(n)

    def _scatter(self, precision: Tensor, n: int) -> Tensor:
        """The summed squares of deviations of n samples: shrinking keeps the mean variance."""
        covariance = torch.linalg.inv(precision)
        spread = self.shrinkage * covariance.diagonal().mean()
        unshrunk = covariance - spread * torch.eye(len(covariance)).to(covariance)
        return unshrunk / (1 - self.shrinkage) * max(1, n - 1)

    def maps(self, batch: Batch) -> Maps:
        d = self.describe(batch) - self.mean
        return Maps(score=((d @ self.precision) * d).sum(1).clamp_min(0).sqrt().float())


@register(
    "mean_image", paper="baseline", dims=(2, 3), presets={"laptop": {"size": 64}}, reduction="mean",
    tiny={"size": 32},
)  # fmt: skip
def mean_image(dims: int = 2, channels: int = 1, size: int = 128) -> Method:
    """Absolute difference from the mean healthy image.

    Departures:
        none: a baseline of this library, no published system.

    Args:
        dims: spatial axes, 2 or 3.
        channels: of the image.
        size: pixels along each axis.
    """
    return MeanImage()


@register(
    "image_statistics",
    paper="baseline",
    dims=(2, 3),
    presets={"laptop": {"size": 64}},
    tiny={"size": 32},
)
def image_statistics(
    dims: int = 2, channels: int = 1, size: int = 128, shrinkage: float = 0.01
) -> Method:
    """Mahalanobis distance of eight intensity statistics; scores only, no map.

    What it finds needs no learnt anatomy: on sets gathered from the web it often separates the
    classes by framing and contrast alone.

    Departures:
        none: a baseline of this library, no published system.

    Args:
        dims: spatial axes, 2 or 3.
        channels: of the image.
        size: pixels along each axis.
        shrinkage: share of the mean variance mixed into the covariance.
    """
    return ImageStatistics(shrinkage)
