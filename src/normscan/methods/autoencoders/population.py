"""Outliers of a population, by numbers that describe each scan."""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, Literal, Unpack

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from normscan.errors import ArgumentError, nearest
from normscan.methods.base import Batch, Maps, Method, Phase
from normscan.methods.schedule import Schedule, phase, schedule
from normscan.registry import register
from normscan.scores.phenotypes import count, phenotypes

TO_DEVIATION = 1.4826  # median absolute deviation to standard deviation, for normal values
NO_SPREAD = 1e-9


def read_columns(batch: Batch, names: tuple[str, ...], role: str) -> Tensor:
    """Numbers (B, len(names)) from the cohort's columns.

    Args:
        batch: with the columns of each sample.
        names: of the columns.
        role: ``features`` or ``covariates``, for the message.

    Raises:
        ArgumentError: a column isn't there, or holds no number.
    """
    rows = batch.columns or [{} for _ in range(len(batch))]
    return torch.tensor(
        [[_number(row, n, role) for n in names] for row in rows], dtype=torch.double
    )


def _number(row: dict[str, Any], name: str, role: str) -> float:
    if name not in row:
        known = (
            f"It has: {', '.join(row)}." if row else "This scan came without a cohort's columns."
        )
        raise ArgumentError(
            f"{role} names the column '{name}', which the cohort doesn't have."
            f"{nearest(name, row)} {known} Add the column to the table, or change --{role}."
        )
    try:
        value = float(row[name])
    except (TypeError, ValueError):
        value = math.nan
    if not math.isfinite(value):
        raise ArgumentError(
            f"{role}: the column '{name}' must hold a number for each scan. Code categories as 0 "
            "and 1, and fill in or leave out scans whose value is missing."
        )
    return value


def design(covariates: Tensor, interactions: bool) -> Tensor:
    """Constant, covariates and, if asked for, the products of any two of them: (n, p)."""
    columns = [torch.ones_like(covariates[:, :1]), covariates]
    if interactions:
        pairs = itertools.combinations(covariates.unbind(1), 2)
        columns += [(a * b)[:, None] for a, b in pairs]
    return torch.cat(columns, 1)


class Standardise(nn.Module):
    """Least squares on the covariates taken away, then median and absolute deviation, while training.

    The normal equations, medians and deviations are running means over the batches seen: with one
    batch they are those of its rows, over passes through a table the regression tends to the
    table's and the others to the mean of the batches' medians. Where more than half of the values
    agree, the standard deviation scales, and 1 where all do.

    Args:
        dim: numbers to standardise.
        covariates: columns of the design.
    """

    def __init__(self, dim: int, covariates: int) -> None:
        super().__init__()
        self.seen: Tensor
        self.gram: Tensor
        self.cross: Tensor
        self.middle: Tensor
        self.spread: Tensor
        self.register_buffer("seen", torch.zeros((), dtype=torch.double))
        self.register_buffer("gram", torch.eye(covariates, dtype=torch.double))
        self.register_buffer("cross", torch.zeros(covariates, dim, dtype=torch.double))
        self.register_buffer("middle", torch.zeros(dim, dtype=torch.double))
        self.register_buffer("spread", torch.ones(dim, dtype=torch.double))

    def residual(self, values: Tensor, known: Tensor) -> Tensor:
        """What the covariates don't explain, (n, dim)."""
        # Columns of the design are brought to one scale: ages and volumes differ by many orders.
        unit = self.gram.diagonal().clamp_min(1e-300).rsqrt()
        inverse = torch.linalg.pinv(unit[:, None] * self.gram * unit, rtol=1e-10, hermitian=True)
        return values - (known * unit) @ (inverse @ (unit[:, None] * self.cross))

    def forward(self, values: Tensor, known: Tensor) -> Tensor:
        """Standardised numbers (n, dim) of values (n, dim) and the design (n, p)."""
        if self.training:
            with torch.no_grad():
                self._update(values, known)
        return ((self.residual(values, known) - self.middle) / self.spread).float()

    def _update(self, values: Tensor, known: Tensor) -> None:
        self.seen += 1
        self.gram.lerp_(known.T @ known / len(known), 1 / self.seen)
        self.cross.lerp_(known.T @ values / len(known), 1 / self.seen)
        left = self.residual(values, known)
        middle = left.quantile(0.5, 0)
        spread = TO_DEVIATION * (left - middle).abs().quantile(0.5, 0)
        usual = left.std(0, unbiased=False)
        usual = torch.where(usual > NO_SPREAD, usual, torch.ones_like(usual))
        spread = torch.where(spread > NO_SPREAD, spread, usual)
        self.middle.lerp_(middle, 1 / self.seen)
        self.spread.lerp_(spread, 1 / self.seen)


@dataclass(frozen=True)
class Numbers:
    """The numbers that describe a scan, and those that they depend on.

    Attributes:
        features: columns of the cohort; computed from the scan if empty.
        covariates: columns that are regressed out.
        interactions: and the products of any two of them.
        cells: of the grid of regions along each axis, for computed ones.
    """

    features: tuple[str, ...]
    covariates: tuple[str, ...]
    interactions: bool
    cells: int

    def of(self, batch: Batch) -> tuple[Tensor, Tensor]:
        """Numbers (B, dim) and design (B, p) of a batch."""
        if self.features:
            values = read_columns(batch, self.features, "features")
        else:
            values = phenotypes(batch.image, batch.foreground, self.cells)
        covariates = read_columns(batch, self.covariates, "covariates")
        device = batch.image.device
        return values.to(device), design(covariates, self.interactions).to(device)

    def counts(self, channels: int, dims: int) -> tuple[int, int]:
        """How many numbers and columns of the design there are."""
        known = design(torch.zeros(1, len(self.covariates)), self.interactions).shape[1]
        return len(self.features) or count(channels, dims, self.cells), known


class PopulationOutliers(Method):
    """Standardised numbers of each scan, and how badly a model of the population fits them."""

    def __init__(
        self, numbers: Numbers, counts: tuple[int, int], training: Schedule, *, scorer: str,
        loss: str, screen: str,
    ) -> None:  # fmt: skip
        super().__init__()
        self.numbers, self._training = numbers, training
        self.scorer, self.criterion, self.screen = scorer, loss, screen
        self.standardise = Standardise(*counts)
        dim = counts[0]
        self.network: nn.Module | None = None
        if scorer == "autoencoder":
            widths = [dim, max(1, dim // 2), max(1, dim // 4), max(1, dim // 2), dim]
            parts: list[nn.Module] = []
            for a, b in zip(widths, widths[1:], strict=False):
                parts += [nn.Linear(a, b), nn.Tanh()]
            self.network = nn.Sequential(*parts[:-1])
        else:
            self.register_buffer("centre", torch.zeros(dim))
            self.register_buffer("precision", torch.eye(dim))

    def phases(self) -> list[Phase]:
        if self.network is None:
            return []
        return [phase([self.standardise, self.network], self._training)]

    def loss(self, batch: Batch, phase: str, player: str) -> dict[str, Tensor]:
        assert self.network is not None
        numbers = self.standardise(*self.numbers.of(batch))
        measure = F.mse_loss if self.criterion == "mse" else F.huber_loss
        return {self.criterion: measure(self.network(numbers), numbers)}

    @torch.no_grad()
    def fit(self, batches: Iterable[Batch]) -> None:
        """The robust covariance, and the standardisation that goes before it."""
        if self.network is not None:
            return
        from sklearn.covariance import LedoitWolf, MinCovDet

        table = [self.numbers.of(batch) for batch in batches]
        self.standardise.seen.zero_()
        self.standardise.train()
        values, known = (torch.cat(part) for part in zip(*table, strict=True))
        numbers = self.standardise(values, known)
        self.standardise.eval()
        n, dim = numbers.shape
        estimator = MinCovDet(random_state=0) if n >= 5 * dim else LedoitWolf()
        estimator.fit(numbers.double().cpu().numpy())
        self.centre = torch.tensor(estimator.location_).to(numbers)
        self.precision = torch.tensor(estimator.get_precision()).to(numbers)

    @torch.no_grad()
    def maps(self, batch: Batch) -> Maps:
        numbers = self.standardise(*self.numbers.of(batch))
        if self.network is not None:
            error = (self.network(numbers) - numbers).square()
            score = error.amax(1) if self.screen == "max" else error.mean(1)
            return Maps(score=score)
        away = numbers - self.centre
        return Maps(score=((away @ self.precision) * away).sum(1).clamp_min(0).sqrt())


@register(
    "ukb_outlier_ae",
    paper="Ma 2022",
    dims=(2, 3),
    presets={
        "laptop": {"size": 64, "steps": 400, "patience": None, "preprocess": {"scaling": "median"}},
    },
    tiny={"size": 32, "steps": 400, "lr": 2e-3, "patience": None, "batch_size": 16},
    options=schedule(lr=1e-3, batch_size=64, epochs=500, patience=20),
)  # fmt: skip
def population_outliers(
    dims: int = 2,
    channels: int = 1,
    size: int = 128,
    features: tuple[str, ...] = (),
    covariates: tuple[str, ...] = (),
    interactions: bool = True,
    scorer: Literal["autoencoder", "mahalanobis"] = "autoencoder",
    loss: Literal["mse", "huber"] = "mse",
    screen: Literal["max", "mean"] = "max",
    cells: int = 3,
    **training: Unpack[Schedule],
) -> Method:
    """Population outlier screening by imaging phenotypes; scores only, no map.

    Ma et al., Human Brain Mapping 2022: numbers that describe each brain, such as volumes and
    thicknesses, are freed of age, sex and the like and scaled robustly; what a model of the
    population can't explain is an outlier to be looked at. The phenotypes are screened one by one,
    so the score is the largest error among them; give one family of phenotypes to a detector.

    Departures:
        model: the article was read in abstract and introduction, which name none, and has no code:
            the autoencoder (two hidden layers of half and one of a quarter of the phenotypes, with
            tanh), its training and the regression are ours; so is the robust Mahalanobis distance.
        population: healthy scans; unlabelled ones with outliers among them, which ``huber`` resists,
            in the article.
        phenotypes: without ``features`` computed from the prepared scan: extent, intensities, edges,
            and the same by region (``normscan.scores.phenotypes``).
        standardisation: learnt with the autoencoder, as running medians and deviations.

    Args:
        features: columns of the cohort that hold the phenotypes; computed from the scan if empty.
        covariates: columns that are regressed out by least squares, as numbers.
        interactions: regress out the products of any two covariates, too.
        scorer: ``autoencoder``, or ``mahalanobis`` by the minimum covariance determinant (by
            Ledoit and Wolf's shrinkage if there are fewer than five scans for each phenotype).
        loss: of the autoencoder, ``mse`` or ``huber``.
        screen: by the ``max`` or the ``mean`` of the autoencoder's errors over the phenotypes.
        cells: of the grid of regions along each axis.
    """
    numbers = Numbers(features, covariates, interactions, cells)
    return PopulationOutliers(
        numbers, numbers.counts(channels, dims), training, scorer=scorer, loss=loss, screen=screen
    )
