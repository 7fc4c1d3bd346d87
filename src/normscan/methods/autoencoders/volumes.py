"""Autoencoders of whole volumes."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Literal, Unpack

import torch
from torch import Tensor
from torch.nn import functional as F

from normscan.methods.autoencoders.plain import LAPTOP_POSTPROCESS
from normscan.methods.base import Batch, Maps, Method, Phase
from normscan.methods.reconstruction import Reconstruction, absolute
from normscan.methods.schedule import Schedule, phase, schedule
from normscan.networks.divergences import kl_standard_normal
from normscan.networks.volumes import PooledAutoencoder, StridedResidualAutoencoder
from normscan.objectives.losses import per_image_sum
from normscan.registry import register

_LAPTOP = {
    "size": 48,
    "lr": 1e-3,
    "batch_size": 2,
    "postprocess": LAPTOP_POSTPROCESS,
    "preprocess": {"scaling": "median"},
}
_TINY = {"size": 32, "width": 8, "lr": 2e-3, "batch_size": 16, "steps": 120, "postprocess": ()}


@register(
    "massive_healthy_vq",
    paper="Luo 2023",
    dims=(2, 3),
    presets={"laptop": {**_LAPTOP, "width": 8, "steps": 80}},
    postprocess=("erode=3",),
    tiny={**_TINY, "stages": 3},
    options=schedule(lr=1e-4, batch_size=2, epochs=200),
)
def massive_healthy_autoencoder(
    dims: int = 3,
    channels: int = 1,
    size: int = 128,
    width: int = 32,
    stages: int = 4,
    error: Literal["l1", "l2"] = "l1",
    **training: Unpack[Schedule],
) -> Method:
    """Residual autoencoder of whole volumes, learnt from many healthy brains.

    Luo et al., Computers in Biology and Medicine 2023, on T2-weighted volumes of 578 people: an
    autoencoder without skips and, despite the id, without a codebook; the map is the absolute
    residual.

    Departures:
        sizes: no code was released and the article's numbers aren't known here: the stages (stride
            2, residual, instance norm), their number and width, the error and the schedule are ours.
        augmentation: none.
        map: inside the foreground, eroded by 3, since the fluid at the brain's edge restores worst.
        image score: the mean of the map over the foreground.
        slices: with ``dims=2`` it works on them, too.

    Args:
        stages: residual stages, each of which halves the grid.
        error: absolute (``l1``) or squared (``l2``) error that is trained on.
    """

    def loss(restored: Tensor, batch: Batch) -> dict[str, Tensor]:
        difference = restored - batch.image
        return {error: (difference.abs() if error == "l1" else difference.square()).mean()}

    network = StridedResidualAutoencoder(dims, channels, width, stages)
    return Reconstruction(network, loss, absolute, training)


class NeonatalAutoencoder(Method):
    """Signed difference from a restored volume, in healthy deviations; see ``neonatal_ae``."""

    tile_mean: Tensor
    tile_std: Tensor

    def __init__(
        self, network: PooledAutoencoder, kl_weight: float, bright: float | None, spread: float,
        tiles: int, training: Schedule,
    ) -> None:  # fmt: skip
        super().__init__()
        self.network: PooledAutoencoder = network
        self.kl_weight, self.bright, self.spread, self.tiles = kl_weight, bright, spread, tiles
        self._training = training
        dims = network.dims
        self.register_buffer("tile_mean", torch.zeros([1] * (dims + 2)))
        self.register_buffer("tile_std", torch.full([1] * (dims + 2), spread))

    def phases(self) -> list[Phase]:
        return [phase(self.network, self._training)]

    def loss(self, batch: Batch, phase: str, player: str) -> dict[str, Tensor]:
        x = batch.image
        code = self.network.encode(x)
        if len(code) == 1:
            return {"l2": (self.network.decode(code[0], x) - x).square().mean()}
        mean, log_std = code
        z = mean + log_std.exp() * batch.rng.normal(mean.shape).to(mean)
        kl = per_image_sum(kl_standard_normal(mean, log_std)) / x[0].numel()
        error = (self.network.decode(z, x) - x).square().mean()
        return {"l2": error, "kl": self.kl_weight * kl}

    def difference(self, x: Tensor, restored: Tensor) -> Tensor:
        """Mean of x - x^ over the channels, zero where x reaches ``bright``."""
        d = (x - restored).mean(dim=1, keepdim=True)
        if self.bright is None:
            return d
        return d * (x.mean(dim=1, keepdim=True) < self.bright)

    def _tiled(self, values: Tensor) -> Tensor:
        """Means over tiles in the plane of each slice."""
        a, b, *slices = values.shape[2:]
        a, b = min(self.tiles, a), min(self.tiles, b)
        if not slices:
            return F.adaptive_avg_pool2d(values, (a, b))
        return F.adaptive_avg_pool3d(values, (a, b, slices[0]))

    @torch.no_grad()
    def fit(self, batches: Iterable[Batch]) -> None:
        sums: list[Tensor] = []
        n = 0
        for batch in batches:
            d = self.difference(batch.image, self.network(batch.image)).double()
            part = torch.cat([self._tiled(d), self._tiled(d.square())], dim=1).sum(0, keepdim=True)
            sums = [part if not sums else sums[0] + part]
            n += len(batch)
        mean, square = (sums[0] / n).split(1, dim=1)
        # A tile of background hardly differs: its deviation must not blow a grain of noise up.
        std = (square - mean.square()).clamp_min(0).sqrt().clamp_min(self.spread / 10)
        self.tile_mean, self.tile_std = mean.float(), std.float()

    @torch.no_grad()
    def maps(self, batch: Batch) -> Maps:
        x = batch.image
        restored = self.network(x)
        d = self.difference(x, restored)
        mean, std = (
            F.interpolate(t, d.shape[2:], mode="nearest") for t in (self.tile_mean, self.tile_std)
        )
        score = (((d - mean) / std).abs() * batch.foreground).flatten(1).sum(1)
        return Maps(map=d.abs() / self.spread, score=score, reconstruction=restored)


@register(
    "neonatal_ae",
    paper="Raad 2023",
    dims=(2, 3),
    # Bright voxels may be the lesions where the images aren't T2-weighted ones of newborns.
    presets={"laptop": {**_LAPTOP, "width": 8, "levels": 3, "bright": None, "steps": 120}},
    preprocess={"scaling": "minmax"},
    tiny={**_TINY, "levels": 3, "bright": None, "preprocess": {"scaling": "auto"}},
    options=schedule(lr=1e-4, batch_size=1, epochs=200),
)
def neonatal_autoencoder(
    dims: int = 3,
    channels: int = 1,
    size: int = 256,
    width: int = 8,
    levels: int = 5,
    variational: bool = False,
    latent: int = 64,
    kl_weight: float = 1.0,
    bright: float | None = 141 / 256,
    spread: float = 0.1,
    tiles: int = 4,
    **training: Unpack[Schedule],
) -> Method:
    """Autoencoder of whole volumes of newborns' brains, scored in healthy deviations.

    Raad et al., Scientific Reports 2023, on T2-weighted volumes of 256 x 256 x 256: convolutions
    with max pooling, trained on the squared error; ``variational`` adds a Gaussian code. Fluid,
    above 140 of 256 grey values, is left out, since the score would otherwise follow the ventricles
    and the age. The map is the absolute difference over 0.1; the article shows what exceeds 3. The
    score sums the absolute difference in deviations of the healthy training volumes, of which each
    tile of 64 x 64 pixels of each slice has its own.

    Departures:
        network: released neither with its layers nor with its weights: number and width of the
            levels, rate and schedule are ours, and the "8 x 8 components" of a file's name are read
            as 64 numbers of the variational code; the plain code is the deepest grid.
        score: over the foreground; the released curves divide by the mean difference of all training
            voxels where a deviation is meant, only its pictures by the tiles.
        tiles: of the difference without the fluid, with a deviation of a tenth of ``spread`` at
            least; of the whole difference, without a least one, in the release.
        brightest voxels: left out; a value of exactly 1 turns to 0 in the release's 8 bits and stays.
        intensities: from the smallest to the largest value; matched to uniform numbers in the
            release, which the step ``histogram_match`` is near to.
        alignment: none; to the first subject in the article.
        slices: with ``dims=2`` it works on them, too.

    Args:
        levels: how often the grid is halved.
        variational: a Gaussian code of ``latent`` numbers instead of the deepest grid.
        kl_weight: weight of the divergence, which like the squared error is a mean over the voxels.
        bright: intensity from which on a voxel is left out; the 141st of 256 grey values in the
            article, whose images end at 1. Other contrasts need another one. None for all in.
        spread: difference that is one deviation of the map.
        tiles: along each axis of the plane; 4 of 64 pixels in the article.
    """
    network = PooledAutoencoder(
        dims, channels, size, width, levels, latent if variational else None
    )
    return NeonatalAutoencoder(network, kl_weight, bright, spread, tiles, training)
