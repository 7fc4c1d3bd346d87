"""Variational autoencoders of whole volumes: with erased boxes, and with the age as a second task."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, Unpack

import torch
from torch import Tensor, nn

from normscan.methods.autoencoders.plain import OWN_RANGE, absolute_sum
from normscan.methods.autoencoders.population import read_columns
from normscan.methods.base import Batch, Maps, Method, Phase
from normscan.methods.reconstruction import absolute
from normscan.methods.schedule import Schedule, phase, with_training
from normscan.methods.variational.vae import VariationalReconstruction
from normscan.networks.autoencoder import BaurAutoencoder, Code, Levels
from normscan.registry import register
from normscan.synthesis.rectangles import Erasure, erased


class Volume(Schedule):
    """The arguments of the network, those of ``schedule`` among them."""

    size: int
    latent: int
    width: int


VOLUME = with_training(
    Volume,
    {"size": 128, "latent": 512, "width": 32},
    {
        "size": "voxels along each axis, a power of two times 8.",
        "latent": "numbers in the code.",
        "width": "channels of the first convolution; the widest has eight times as many.",
    },
    lr=1e-4,
    batch_size=8,
    epochs=200,
)
SMALL: dict[str, Any] = {
    "size": 32, "latent": 64, "width": 8, "lr": 2e-3, "steps": 200, "batch_size": 8,
    "postprocess": ("erode=1", "median=3"),
    "preprocess": {**OWN_RANGE, "steps": [], "scaling": "median"},
}  # fmt: skip
TINY: dict[str, Any] = {
    **SMALL, "latent": 16, "lr": 3e-3, "steps": 100, "batch_size": 8, "postprocess": (),
    "preprocess": {**OWN_RANGE, "steps": [], "scaling": "auto"},
}  # fmt: skip
# The group's later code: percentiles in the mask, erosion by a 25th of the width, a median of 5.
RANGE: dict[str, Any] = {
    "steps": [{"percentile": {"low": 1, "high": 99, "outside": 0.0}}],
    "scaling": "none", "crop": "foreground", "fit": "pad",
}  # fmt: skip
CLEANED = ("erode=5", "median=5")


def volume_network(dims: int, channels: int, options: Volume) -> BaurAutoencoder:
    """Convolutions of stride 2 to 8 voxels along each axis, two heads of a dense code, and back."""
    width = options["width"]
    levels = Levels(width, 8 * width)
    return BaurAutoencoder(
        dims, channels, options["size"], Code(options["latent"], 2), levels, dropout=0.0
    )


@register(
    "spatial_erasing_3d",
    paper="Bengs 2021",
    dims=(3, 2),
    presets={"laptop": SMALL},
    preprocess=RANGE,
    postprocess=CLEANED,
    smallest_component=7,
    tiny=TINY,
    options=VOLUME,
)
def spatial_erasing_vae(
    dims: int = 3,
    channels: int = 1,
    kl_weight: float = 1.0,
    erasing: Erasure = "cuboids",
    boxes: int = 3,
    largest: float = 0.5,
    **options: Unpack[Volume],
) -> Method:
    """Variational autoencoder of whole volumes that restores what boxes hide.

    Bengs, Behrendt, Krueger, Opfer and Schlaefer, International Journal of Computer Assisted
    Radiology and Surgery 2021, on T1-weighted volumes of healthy people: squares of slices, cuboids
    or slices of the input are erased in training, and the whole volume is restored. The article
    finds 3D above 2D, and erasing above none.

    Departures:
        sizes: no code was released and the article's numbers of layers, of boxes and their sizes
            weren't known: the network is the study's of Baur et al. 2021 with 32 to 256 channels,
            which theirs follows; number, size and place of the boxes, inside the brain's bounding
            box, are ours.
        loss: summed absolute error and summed divergence; their weights weren't known.
        range, erosion, median, rate: of the group's later code, which has no variational
            autoencoder; its smoothing by curvature flow is left out.
        grid: a cube; 160 x 192 x 160 mm at 2 mm there.
        score: the mean of the map over the foreground; the article segments. No threshold from
            lesions, as it takes.

    Args:
        kl_weight: of the summed divergence beside the summed error.
        erasing: ``squares``, each slice its own, ``cuboids``, or ``slabs`` of whole slices.
        boxes: number of them; 0 erases nothing.
        largest: share of the brain's bounding box along an axis that a side has at most.
    """

    def corrupt(batch: Batch) -> Tensor:
        return erased(batch.image, batch.foreground, batch.rng, erasing, boxes, largest)

    network = volume_network(dims, channels, options)
    return VariationalReconstruction(
        network, absolute_sum, absolute, options, corrupt=corrupt, kl_weight=kl_weight
    )


YEARS = (50.0, 20.0)  # what an age is less by and divided by, for the network


class AgeAware(VariationalReconstruction):
    """The code must tell the age, too; see ``brain_age_multitask``.

    Args:
        *parts: of ``VariationalReconstruction``.
        latent: numbers in the code.
        hidden: of the layer between code and age.
        column: of the cohort, in years.
        age_weight: of the absolute error of the age.
        **options: of ``VariationalReconstruction``.
    """

    usual: Tensor
    line: Tensor

    def __init__(
        self, *parts: Any, latent: int, hidden: int, column: str, age_weight: float, **options: Any
    ) -> None:
        super().__init__(*parts, **options)
        self.column, self.age_weight = column, age_weight
        self.age = nn.Sequential(nn.Linear(latent, hidden), nn.ReLU(), nn.Linear(hidden, 1))
        # Mean and deviation of the error and of the gap of healthy scans; gap = a + b age.
        self.register_buffer("usual", torch.tensor([[0.0, 1.0], [0.0, 1.0]]))
        self.register_buffer("line", torch.zeros(2))

    def phases(self) -> list[Phase]:
        return [phase([self.network, self.age], self._training)]  # type: ignore[arg-type]

    def told(self, batch: Batch) -> Tensor:
        """Ages (B,) in units of the network.

        Raises:
            ArgumentError: the cohort has no such column, or a scan no age.
        """
        middle, unit = YEARS
        years = read_columns(batch, (self.column,), "age")[:, 0]
        return ((years - middle) / unit).to(batch.image)

    def guessed(self, mean: Tensor) -> Tensor:
        """Ages (B,) of codes, in units of the network."""
        ages: Tensor = self.age(mean)[:, 0]
        return ages

    def loss(self, batch: Batch, phase: str, player: str) -> dict[str, Tensor]:
        terms = super().loss(batch, phase, player)
        mean, _ = self.encode(batch.image)
        wrong = (self.guessed(mean) - self.told(batch)).abs().mean()
        return {**terms, "age": self.age_weight * wrong}

    def measured(self, batch: Batch) -> tuple[Tensor, Tensor, Tensor]:
        """Mean error in the foreground, gap and age of each volume, (B,) each."""
        mean, _ = self.encode(batch.image)
        error = self._residual(batch.image, self.network.decode(mean)) * batch.foreground
        size = batch.foreground.flatten(1).sum(1).clamp_min(1)
        age = self.told(batch)
        return error.flatten(1).sum(1) / size, self.guessed(mean) - age, age

    @torch.no_grad()
    def fit(self, batches: Iterable[Batch]) -> None:
        """Take the line through healthy gaps by age, and what is usual beside it."""
        columns = zip(*(self.measured(batch) for batch in batches), strict=True)
        error, gap, age = (torch.cat(c).double() for c in columns)
        design = torch.stack([torch.ones_like(age), age], 1)
        line = torch.linalg.lstsq(design, gap[:, None], driver="gelsd").solution[:, 0]
        left = gap - design @ line
        spread = [v.std(unbiased=False).clamp_min(1e-6) for v in (error, left)]
        self.usual = torch.stack([torch.stack([error.mean(), spread[0]]),
                                  torch.stack([left.mean(), spread[1]])]).float()  # fmt: skip
        self.line = line.float()

    @torch.no_grad()
    def maps(self, batch: Batch) -> Maps:
        found = super().maps(batch)
        error, gap, age = self.measured(batch)
        left = gap - self.line[0] - self.line[1] * age
        (mean, spread), (middle, width) = self.usual
        score = (error - mean) / spread + ((left - middle) / width).abs()
        return Maps(found.map, score, found.reconstruction)


@register(
    "brain_age_multitask",
    paper="Bengs 2022",
    dims=(3, 2),
    presets={"laptop": SMALL},
    preprocess=RANGE,
    postprocess=CLEANED,
    # The toys have no ages.
    tiny={**TINY, "age": None},
    options=VOLUME,
)
def brain_age_vae(
    dims: int = 3,
    channels: int = 1,
    kl_weight: float = 1.0,
    age: str | None = "age",
    age_weight: float = 1000.0,
    hidden: int = 128,
    **options: Unpack[Volume],
) -> Method:
    """Variational autoencoder of whole volumes whose code also tells the age.

    Bengs, Behrendt, Laves, Krueger, Opfer and Schlaefer, SPIE Medical Imaging 2022, on T1-weighted
    volumes of healthy people: the network restores the volume and, from the code, predicts the age;
    at test both errors say whether the scan is anomalous. The article reports an area under the
    curve of 0.926 with the age against 0.844 without it. Every scan needs its age, in years, in
    training and at test: a cohort that lacks the column, or an age, is refused by name.

    Departures:
        sizes: no code was released; network, range and training are those of
            ``spatial_erasing_3d``, without erasing. The head of the age, two linear layers on the
            mean of the code, the absolute error and its weight are ours.
        score: the deviation of the mean error from that of healthy training scans, plus that of the
            gap between predicted and true age, without its sign: ours. A line by age is taken off
            the gap first, since predictions tend to the mean age.
        map: the absolute residual.
        ages: in units of 20 years about 50, for the network.

    Args:
        kl_weight: of the summed divergence beside the summed error.
        age: column of the cohort with the age in years; None for the variational autoencoder
            without the second task, whose score is the mean of the map.
        age_weight: of the absolute error of the age, in units of 20 years, beside sums over all
            voxels.
        hidden: numbers between code and age.
    """
    network = volume_network(dims, channels, options)
    if age is None:
        return VariationalReconstruction(
            network, absolute_sum, absolute, options, kl_weight=kl_weight
        )
    return AgeAware(
        network, absolute_sum, absolute, options, latent=options["latent"], hidden=hidden,
        column=age, age_weight=age_weight, kl_weight=kl_weight,
    )  # fmt: skip
