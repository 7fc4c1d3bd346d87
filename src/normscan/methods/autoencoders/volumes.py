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
from normscan.networks.volumes import PooledAutoencoder, StridedResidualAutoencoder
from normscan.objectives.losses import kl_standard_normal, per_image_sum
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

    A plain autoencoder without skips and, despite the id, without a codebook; the map is the
    absolute residual inside the foreground, a little eroded since the fluid at the brain's edge
    restores worst. Luo et al., Computers in Biology and Medicine 2023, who trained on T2-weighted
    volumes of 578 people. No code was released. The stages (stride 2, residual, instance norm), their
    number and width, the error, the schedule, the erosion and the image score, the mean over the
    foreground, are our choice; so is leaving out augmentation.

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
    """Signed difference from a restored volume, in healthy deviations; see ``neonatal``."""

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
        """Mean of x - x^ over the channels, zero where x is brighter than ``bright``."""
        d = (x - restored).mean(dim=1, keepdim=True)
        if self.bright is None:
            return d
        return d * (x.mean(dim=1, keepdim=True) <= self.bright)

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
    tiny={**_TINY, "levels": 3, "bright": None},
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
    bright: float | None = 140 / 256,
    spread: float = 0.1,
    tiles: int = 4,
    **training: Unpack[Schedule],
) -> Method:
    """Autoencoder of whole volumes of newborns' brains, scored in healthy deviations.

    Convolutions with max pooling, trained on the squared error; ``variational`` adds a Gaussian
    code. The bright fluid of T2-weighted images is left out, since the score would otherwise follow
    the ventricles and the age. The map is the absolute difference over 0.1: the article shows what
    exceeds 3, here the map stays continuous and 3 is a threshold on it. The score is the sum over
    the foreground of the absolute difference in deviations of the healthy training volumes, of
    which each tile in the plane of each slice has its own. Raad et al., Scientific Reports 2023.

    The weights are not released with their layers: number and width of the levels, the learning
    rate and the schedule are our choice, as is reading the code's "8 x 8 components" as 64 numbers
    of the variational code. The plain code is the deepest grid. Only foreground counts in the sum,
    and a tile's deviation is at least a tenth of ``spread``. The article's alignment and its match
    of histograms to a uniform sample belong to the preprocessing: the step ``histogram_match`` is
    near to it, though its landmarks are learnt from the training scans.

    Args:
        levels: how often the grid is halved.
        variational: a Gaussian code of ``latent`` numbers instead of the deepest grid.
        kl_weight: weight of the divergence, which like the squared error is a mean over the voxels.
        bright: intensity above which a voxel is left out; 140 of 256 grey values in the article,
            whose images end at 1. Other scalings and contrasts need another one. None for all in.
        spread: difference that is one deviation of the map.
        tiles: along each axis of the plane; 4 of 64 pixels in the article.
    """
    network = PooledAutoencoder(
        dims, channels, size, width, levels, latent if variational else None
    )
    return NeonatalAutoencoder(network, kl_weight, bright, spread, tiles, training)
