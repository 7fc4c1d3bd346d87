"""Implicit fields: an image is a function of the place, found by searching for its code."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass
from typing import NoReturn

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from normscan.errors import ArgumentError
from normscan.methods.base import Batch, Maps, Method, Phase, Player, adam
from normscan.methods.features.common import FILLED
from normscan.networks.implicit import (
    BINS,
    Codes,
    Field,
    coordinates,
    grey_levels,
    most_common,
    nearest_level,
)
from normscan.objectives.descent import searched
from normscan.objectives.optimizers import still
from normscan.registry import register

FIELD_LR, CODE_LR, HALVINGS = 5e-4, 1e-3, 4
PENALTY, RAMP = 1e-4, 100
AT_ONCE = 2**16  # places whose logits are held at a time


@dataclass(frozen=True)
class Search:
    """How a code is looked for: updates and places in each, in two stages with an Adam each."""

    updates: tuple[int, int]
    points: tuple[int, int]
    lr: float = 1e-3


@dataclass(frozen=True)
class Training:
    """See ``implicit_field``."""

    epochs: int
    steps: int | None
    batch_size: int
    points: int
    lr: float = FIELD_LR
    code_lr: float = CODE_LR


@dataclass(frozen=True)
class Pooling:
    """Sides of the windows: most common grey level, least cross entropy, mean of that."""

    mode: int
    least: int
    mean: int


class ImplicitField(Method):
    """A field of grey levels under a code; see ``implicit_field``."""

    needs_grad = True
    counts: Tensor
    levels: Tensor
    seen: Tensor

    def __init__(
        self, field: Field, latent: int, channels: int, classes: int, pooling: Pooling,
        training: Training, search: Search,
    ) -> None:  # fmt: skip
        super().__init__()
        self.field, self.codes, self.latent = field, Codes(latent), latent
        self.classes, self.pooling, self.search = classes, pooling, search
        self.register_buffer("counts", torch.zeros(channels, BINS))
        self.register_buffer("levels", torch.linspace(0, 1, classes).repeat(channels, 1))
        self.register_buffer("seen", torch.zeros((), dtype=torch.long))
        self._training = training

    def phases(self) -> list[Phase]:
        t = self._training

        def two_rates(parameters: Iterable[nn.Parameter]) -> torch.optim.Optimizer:
            codes = {id(p) for p in self.codes.parameters()}
            known = list(parameters)
            return torch.optim.Adam([
                {"params": [p for p in known if id(p) not in codes], "lr": t.lr},
                {"params": [p for p in known if id(p) in codes], "lr": t.code_lr},
            ])  # fmt: skip

        look = Player("codes", [self.codes], still)
        learn = Player("field", [self.field, self.codes], two_rates, schedule=halved)
        return [
            Phase("levels", [look], epochs=1, batch_size=t.batch_size),
            Phase("field", [learn], t.steps, t.epochs, t.batch_size),
        ]

    def load_weights(self, state: dict[str, Tensor]) -> None:
        stored = state["codes.weight"]
        if len(stored) != len(self.codes):
            self.codes.weight.data = stored.to(self.codes.weight).clone()
        super().load_weights(state)

    def shared(self) -> NoReturn:
        """Refuse: a mean of fields is the field of no site's codes and grey levels."""
        raise ArgumentError(
            "implicit_field can't be federated: its network is fitted together with a code for each "
            "of a site's own scans and with the grey levels of that site alone, none of which may "
            "leave it, so the mean of several sites' networks fits the scans of none. Train it at "
            "each site by itself."
        )

    def labels(self, image: Tensor, flat: Tensor) -> Tensor:
        """Grey levels (B, C, P) at places (B, P) of images, smoothed by the most common one."""
        return most_common(nearest_level(image, self.levels), flat, self.pooling.mode, self.classes)

    def surprise(self, code: Tensor, image: Tensor, flat: Tensor) -> Tensor:
        """Cross entropy of the grey levels at places (B, P), mean over channels, (B, P)."""
        logits = self.field(code, coordinates(flat, tuple(image.shape[2:])).to(code))
        each = logits.unflatten(-1, (-1, self.classes)).permute(0, 3, 1, 2)
        labels = self.labels(image, flat).mT
        return F.cross_entropy(each, labels, reduction="none").mean(2)

    def loss(self, batch: Batch, phase: str, player: str) -> dict[str, Tensor]:
        index = torch.arange(len(batch)) if batch.index is None else batch.index
        index = index.to(batch.image.device)
        if phase == "levels":
            return {"size": self._look(batch, index)}
        self.seen += len(batch)
        flat = self._places(batch, self._training.points)
        code = self.codes(index)
        passed = int(self.seen) / max(1, len(self.codes))
        weight = PENALTY * min(1.0, max(1, math.ceil(passed)) / RAMP)
        return {
            "entropy": self.surprise(code, batch.image, flat).sum(1).mean(),
            "code": weight * self._training.points * code.norm(dim=1).mean(),
        }

    def _look(self, batch: Batch, index: Tensor) -> Tensor:
        """Give each sample a code, count grey values and settle the levels."""
        lacking = int(index.max()) + 1 - len(self.codes)
        if lacking > 0:
            fresh = batch.rng.normal((lacking, self.latent)) / math.sqrt(self.latent)
            self.codes.grow(fresh)
        values = batch.image.detach().transpose(0, 1).flatten(1)
        bins = (values.clamp(0, 1) * BINS).long().clamp_max(BINS - 1)
        for counts, found, levels in zip(self.counts, bins, self.levels, strict=True):
            counts += torch.bincount(found, minlength=BINS)
            levels.copy_(grey_levels(counts, self.classes))
        return self.codes.weight.square().sum()

    def _places(self, batch: Batch, number: int) -> Tensor:
        """Places (B, number) anywhere in the images, some perhaps twice."""
        pixels = math.prod(batch.image.shape[2:])
        return batch.rng.integers(0, pixels, (len(batch), number)).to(batch.image.device)

    def fit(self, batches: Iterable[Batch]) -> None:
        """Forget the codes of the training samples, which nothing needs any more."""
        self.codes.weight.data = self.codes.weight.data[:0]

    def searched(self, batch: Batch) -> Tensor:
        """The codes (B, latent) under which images are least surprising."""
        code = batch.rng.normal((len(batch), self.latent)).to(batch.image) / math.sqrt(self.latent)
        for updates, points in zip(self.search.updates, self.search.points, strict=True):

            def error(z: Tensor, points: int = points) -> Tensor:
                return self.surprise(z, batch.image, self._places(batch, points)).mean(1)

            code = searched(error, code, updates, adam(self.search.lr))
        return code

    def maps(self, batch: Batch) -> Maps:
        code = self.searched(batch)
        with torch.no_grad():
            shape = batch.image.shape[2:]
            every = torch.arange(math.prod(shape), device=batch.image.device)
            parts = [
                self.surprise(code, batch.image, part.expand(len(batch), -1))
                for part in every.split(AT_ONCE)
            ]
            entropy = torch.cat(parts, dim=1).reshape(len(batch), 1, *shape)
            return Maps(map=pooled(entropy, self.pooling.least, self.pooling.mean))


def halved(step: int, steps: int) -> float:
    """Factor of the rates, halved at each quarter of the training."""
    return 0.5 ** min(HALVINGS - 1, HALVINGS * step // max(1, steps))


def pooled(x: Tensor, least: int, mean: int) -> Tensor:
    """Least value in a window, then the mean in another, beyond whose border lies 0.

    Args:
        x: (B, 1, *spatial).
        least: side of the first window, odd.
        mean: side of the second one, odd.
    """
    maximum, average = ((F.max_pool2d, F.avg_pool2d), (F.max_pool3d, F.avg_pool3d))[x.ndim - 4]
    return average(-maximum(-x, least, 1, least // 2), mean, 1, mean // 2)


@register(
    "implicit_field",
    paper="Naval Marimont 2021",
    dims=(2, 3),
    presets={
        "laptop": {
            "size": 64, "latent": 64, "width": 128, "octaves": 5, "points": 512, "batch_size": 8,
            "steps": 2000, "field_lr": 2e-3, "code_lr": 4e-3, "search_updates": (60, 10),
            "search_points": (1024, 2048), "search_lr": 2e-2, "mean": 7,
            "preprocess": {**FILLED, "limit": 1.0},
        },
    },
    # Grey levels are those of 0 to 1.
    preprocess={"scaling": "percentile", "limit": 1.0},
    tiny={
        "size": 24, "latent": 16, "width": 48, "octaves": 2, "dropout": 0.0, "points": 128,
        "batch_size": 8, "steps": 250, "field_lr": 1e-2, "code_lr": 1e-2,
        "search_updates": (30, 5), "search_points": (200, 400), "search_lr": 3e-2, "least": 1,
        "mean": 3,
    },
)  # fmt: skip
def implicit_field(
    dims: int = 2,
    channels: int = 1,
    size: int = 160,
    latent: int = 256,
    width: int = 512,
    octaves: int = 10,
    dropout: float = 0.2,
    levels: int = 10,
    mode: int = 2,
    least: int = 3,
    mean: int = 15,
    points: int = 16_384,
    field_lr: float = FIELD_LR,
    code_lr: float = CODE_LR,
    batch_size: int = 6,
    epochs: int = 2001,
    steps: int | None = None,
    search_updates: tuple[int, int] = (501, 101),
    search_points: tuple[int, int] = (10_000, 50_000),
    search_lr: float = 1e-3,
) -> Method:
    """Healthy anatomy as a function of the place, and the code under which it is most like a scan.

    Naval Marimont and Tarroni, MICCAI 2021: intensities become 10 grey levels by k-means, each the
    most common one of its neighbours. A network of eight layers of 512 that is told a code of 256
    numbers and Fourier features of the place learns which level is there, and each training volume
    its code, from 16,384 places anywhere in each of 6 volumes (cross entropy, summed over the places
    of a volume, plus 1e-4 |code|, rising over 100 passes; Adam 5e-4, 1e-3 for codes, halved every 500
    of 2001 passes). A scan's code is searched with the network frozen, 501 steps of Adam on 10,000
    places and 101 on 50,000. The map is the cross entropy of the scan's own level, the least of 3
    neighbours along each axis, then the mean of 15. Images must lie in 0..1; the article's are
    volumes of the head with 160 voxels a side (``dims=3``).

    Departures:
        levels: k-means of all grey values of the training images, exact on a histogram of 256 bins;
            the release reads its ten from a file that isn't in it.
        grid: the map is taken at the places of the training; in the release its grid reaches one
            voxel further at the end of each axis.
        scaling: each scan's 99th percentile becomes 1; the release clips at the 2nd and 98th of what
            isn't 0 and stretches that to 0..1.
        plane, and several channels: ours; each channel has logits of its own, the map is their mean.

    Args:
        width: of the network's layers, more than the code and the Fourier features have numbers.
        octaves: of the Fourier features, the first with the wavelength of the whole image.
        dropout: share that is dropped behind each layer in training.
        levels: grey levels.
        mode: side of the window of the most common level, 1 to 3; 1 for none.
        least: side of the window of the least cross entropy, odd; 1 for none.
        mean: side of the window of its mean, odd; 1 for none.
        points: places of each image in an update.
        field_lr: learning rate of Adam for the network.
        code_lr: learning rate of Adam for the codes.
        batch_size: images in an update.
        epochs: passes over the training images.
        steps: number of updates instead of ``epochs``.
        search_updates: updates of a new scan's code, in two stages.
        search_points: places in each of those.
        search_lr: learning rate of Adam in the search.
    """
    if size < max(least, mean):
        raise ArgumentError(
            f"size={size} is smaller than the window of the map: give mean={size - 1 + size % 2} or less."
        )
    training = Training(epochs, steps, batch_size, points, field_lr, code_lr)
    field = Field(dims, latent, channels * levels, width, octaves, dropout)
    return ImplicitField(
        field, latent, channels, levels, Pooling(mode, least, mean), training,
        Search(search_updates, search_points, search_lr),
    )  # fmt: skip
