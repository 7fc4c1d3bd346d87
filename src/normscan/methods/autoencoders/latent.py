"""Autoencoders whose codes, not restorations, tell what is abnormal."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Literal, Unpack

import torch
from torch import Tensor
from torch.nn import functional as F

from normscan.errors import ArgumentError
from normscan.methods.base import Batch, Maps, Method, Phase
from normscan.methods.schedule import Schedule, phase, schedule
from normscan.networks.patch import PATCH, PatchAutoencoder, padded, patches_at
from normscan.registry import register
from normscan.rng import Rng
from normscan.scores.density import Identity, MultipleScaledMixture, OneClassSVM, Proximity
from normscan.scores.patches import assemble

Criterion = Literal["mmst", "svm", "error"]
Density = Identity | OneClassSVM | MultipleScaledMixture
# Units of the network that are mostly off give codes in heaps, whose width is next to nothing. An
# axis across a heap is as wide as a tenth of the codes' standard deviation at least.
FLOOR = 0.01


class SiamesePatches(Method):
    """Patch autoencoder with a cosine term between subjects."""

    def __init__(
        self, network: PatchAutoencoder, alpha: float, patches: int, stride: int,
        training: Schedule,
    ) -> None:  # fmt: skip
        super().__init__()
        self.network = network
        self.alpha, self.patches, self.stride = alpha, patches, stride
        self._training = training

    def phases(self) -> list[Phase]:
        return [phase(self.network, self._training, "siamese")]

    def loss(self, batch: Batch, phase: str, player: str) -> dict[str, Tensor]:
        other = batch.image.roll(-1, 0)
        both = (batch.foreground & batch.foreground.roll(-1, 0)).flatten(1)
        # Random keys, those of the common foreground above all others.
        keys = batch.rng.uniform(both.shape).to(both.device) + both
        places = keys.topk(min(self.patches, keys.shape[1])).indices
        codes, error = [], torch.zeros((), device=both.device)
        for image in (batch.image, other):
            x = patches_at(image, places).flatten(0, 1)
            codes.append(self.network.encode(x))
            error = error + (self.network.decode(codes[-1]) - x).square().flatten(1).sum(1).mean()
        alike = F.cosine_similarity(codes[0], codes[1]).mean()
        return {"restoration": error, "similarity": -self.alpha * alike}

    def codes(self, image: Tensor) -> Tensor:
        """Codes (B, latent, h, w) of the patches at each place of the grid."""
        grid = (slice(None), slice(None), *[slice(self.stride // 2, None, self.stride)] * 2)
        return self.network.encode_everywhere(padded(image))[grid]

    def places(self, foreground: Tensor, like: Tensor) -> Tensor:
        """The foreground on the grid of a map."""
        if foreground.shape[2:] == like.shape[2:]:
            return foreground
        first = self.stride // 2
        return foreground[..., first :: self.stride, first :: self.stride]


@dataclass(frozen=True)
class Controls:
    """What of the controls gives the density, and what the threshold; see ``parkinson_sae``."""

    quantile: float
    regions: int
    held_out: float
    samples: int


class SiameseDensity(SiamesePatches):
    """A density of the controls' codes, or the restoration's joint error, and a threshold of it."""

    def __init__(
        self, network: PatchAutoencoder, density: Density, controls: Controls, training: Schedule,
        *, alpha: float, patches: int, stride: int,
    ) -> None:  # fmt: skip
        super().__init__(network, alpha, patches, stride, training)
        self.density, self.controls = density, controls
        self.threshold: Tensor
        self.register_buffer("threshold", torch.zeros(()))

    def features(self, image: Tensor) -> Tensor:
        """What the density sees at each place of the grid: codes, or the joint error of a pixel."""
        codes = self.codes(image)
        if not isinstance(self.density, Identity):
            return codes
        return torch.cat([self._error(x[None], z[None]) for x, z in zip(image, codes, strict=True)])

    def _error(self, image: Tensor, codes: Tensor) -> Tensor:
        """Root of the squared error summed over channels, (1, 1, H, W), of overlapping patches."""
        h, w = image.shape[2:]
        first, step = self.stride // 2, self.stride
        grid = codes.shape[2:]
        size = tuple((n - 1) * step + PATCH for n in grid)
        parts = self.network.decode(codes.flatten(2)[0].T)[None]
        restored = assemble(parts, (size[0], size[1]), (step, step))
        # The first patch starts ``first`` pixels into the padded image.
        edge = PATCH // 2 - first
        restored = restored[..., edge : edge + h, edge : edge + w]
        return (image - restored).square().sum(1, keepdim=True).sqrt()

    def _controls(self, batches: Iterable[Batch], held: bool) -> Iterator[tuple[Tensor, Rng]]:
        """What the density sees in the foreground (n, latent) of each control, held out or not."""
        every = max(2, round(1 / self.controls.held_out))
        number = 0
        for batch in batches:
            order = torch.arange(number, number + len(batch), device=batch.image.device)
            number += len(batch)
            chosen = (order % every == every - 1) == held
            if chosen.any():
                features = self.features(batch.image[chosen])
                inside = self.places(batch.foreground[chosen], features)[:, 0]
                for values, mask in zip(features, inside, strict=True):
                    if mask.any():
                        yield values[:, mask].T, batch.rng

    @torch.no_grad()
    def fit(self, batches: Iterable[Batch]) -> None:
        """The density on some of the controls, the threshold on the others, in a second pass."""
        kept: tuple[Tensor, Tensor] | None = None
        seed = 0
        for rows, rng in self._controls(batches, held=False):
            seed = seed or rng.generators[0].initial_seed()
            keys = rng.uniform((len(rows),)).to(rows)
            if kept is not None:
                rows, keys = torch.cat([kept[0], rows]), torch.cat([kept[1], keys])
            if len(keys) > self.controls.samples:
                keys, lowest = keys.topk(self.controls.samples, largest=False)
                rows = rows[lowest]
            kept = rows, keys
        if kept is None:
            raise ArgumentError("parkinson_sae needs training images with foreground.")
        self.density.fit(kept[0], seed)
        own = [self._quantile(rows) for rows, _ in self._controls(batches, held=True)]
        # Too few controls to hold one out: the threshold is then that of all.
        own = own or [self._quantile(rows) for rows, _ in self._controls(batches, held=False)]
        # One odd control with high scores everywhere would set the percentile of them all.
        self.threshold = torch.stack(own).quantile(0.5)

    def _quantile(self, rows: Tensor) -> Tensor:
        """The quantile of a control's scores."""
        scores = torch.cat([self.density(part) for part in rows.split(8192)])
        place = min(len(scores) - 1, int(self.controls.quantile * len(scores)))
        return scores.sort().values[place]

    @torch.no_grad()
    def maps(self, batch: Batch) -> Maps:
        features = self.features(batch.image)
        b, _, h, w = features.shape
        points = features.movedim(1, 3).flatten(0, 2)
        anomaly = torch.cat([self.density(part) for part in points.split(8192)])
        anomaly = anomaly.reshape(b, 1, h, w)
        inside = self.places(batch.foreground, anomaly).float()
        over = (anomaly > self.threshold) * inside
        regions = self.controls.regions
        cells = F.adaptive_avg_pool2d(inside, regions)
        share = F.adaptive_avg_pool2d(over, regions) / cells.clamp_min(1e-6)
        # A region with hardly any foreground says nothing.
        share = share * (cells >= 0.2 * cells.amax((2, 3), keepdim=True))
        return Maps(map=anomaly, score=share.flatten(1).amax(1))


@register(
    "parkinson_sae",
    paper="Pinon 2023",
    dims=(2,),
    presets={
        "laptop": {
            "size": 64, "filters": (8, 8, 16, 16), "lr": 5e-3, "steps": 500, "patches": 16,
            "samples": 5000, "components": (4, 8), "proximity": "density",
            "preprocess": {"scaling": "median"},
        },
    },
    postprocess=("foreground",),
    tiny={
        "size": 32, "criterion": "error", "lr": 3e-3, "steps": 96, "patches": 8, "samples": 400,
        "components": (2,), "stride": 2,
    },
    options=schedule(lr=1e-3, batch_size=16, epochs=30),
)  # fmt: skip
def siamese_patch_autoencoder(
    dims: int = 2,
    channels: int = 1,
    size: int = 128,
    filters: tuple[int, int, int, int] = (3, 4, 12, 16),
    alpha: float = 0.005,
    patches: int = 32,
    criterion: Criterion = "mmst",
    components: tuple[int, ...] = (2, 4, 8, 16),
    proximity: Proximity = "weight",
    nu: float = 0.03,
    stride: int = 1,
    quantile: float = 0.98,
    regions: int = 1,
    held_out: float = 0.27,
    samples: int = 10_000,
    **training: Unpack[Schedule],
) -> Method:
    """Siamese patch autoencoder with a density of the controls' codes, for subtle anomalies.

    Pinon et al., IEEE ISBI 2023: patches of 15 x 15 pixels at the same place in two controls are
    restored while their codes are drawn together; then a density of the controls' codes scores
    every pixel by the patch around it. The image score is the share of foreground pixels above the
    controls' 98th percentile. Muñoz-Ramírez et al., Artificial Intelligence in Medicine 2022,
    threshold the restoration's joint error (``error``).

    Departures:
        network: neither article released code; that of ``siamese_ocsvm``.
        densities: one model for all places, not one for each subject or voxel; the mixture chooses
            its components by BIC, and its outlier score, the mean reciprocal weight along the axes,
            is our reading.
        regions: the whole foreground or the worst cell of a grid; an atlas in the article.
        threshold: the median over controls of each one's own percentile, so that a few odd ones
            don't set it. They are training scans that the density didn't see; the network saw them,
            so it is a little low, and the decision still rests on the healthy validation scans.

    Args:
        filters: of the four convolutions; the last is the length of the code.
        alpha: weight of the cosine between two controls' codes, beside the summed squared error.
        patches: that a pair of images gives to an update, at random common places.
        criterion: ``mmst`` for a mixture of multiple scaled t-distributions, ``svm`` for a
            one-class support vector machine, ``error`` for the root of the squared error summed
            over channels.
        components: of the mixture, to choose from.
        proximity: what the mixture's score is made of: ``weight``, as in the article, or
            ``density``, its negative log-density, our choice: a few narrow axes don't rule it.
        nu: share of the codes that the support vector machine may leave outside.
        stride: pixels between patches at test.
        quantile: of a control's pixel scores; the threshold is its median over the controls.
        regions: cells of a grid along each axis; the image score is the largest share among them.
        held_out: share of the training images that give the threshold and not the density.
        samples: random pixels of the training images that the density takes.
    """
    latent = filters[-1]
    density: Density = Identity()
    if criterion != "error":
        density = OneClassSVM(latent, nu)
    if criterion == "mmst":
        density = MultipleScaledMixture(latent, components, floor=FLOOR, proximity=proximity)
    return SiameseDensity(
        PatchAutoencoder(channels, filters), density,
        Controls(quantile, regions, held_out, samples), training,
        alpha=alpha, patches=patches, stride=stride,
    )  # fmt: skip
